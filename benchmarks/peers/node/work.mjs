// What a job does in the benchmark, as in `work.py`; and how these programs are asked.
import { appendFileSync, closeSync, openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

export const url = process.env.BENCH_URL;
export const load = createRequire(`${process.env.BENCH_NODE}/`);

const here = (suffix) => `${process.env.BENCH_DIR}/${process.pid}.${suffix}`;
const now = () => Number(process.hrtime.bigint()) / 1e9;  // CLOCK_MONOTONIC, as Python's time.monotonic()
const slot = Buffer.alloc(16);
let count = 0;
let file = null;

export function tick() {
  file ??= openSync(here("slot"), "w");
  slot.writeDoubleLE(now(), 0);
  slot.writeBigUInt64LE(BigInt(++count), 8);
  writeSync(file, slot, 0, 16, 0);
}

export function stamp(number) {
  appendFileSync(here("stamps"), `${number} ${now()}\n`);
}

export async function serve({ prepare, submit, work, left, stop }) {
  const act = process.argv[2];
  if (act === "prepare") {
    await prepare();
    await stop();
  } else if (act === "work") {
    process.on("SIGTERM", async () => {
      await stop();
      if (file !== null) closeSync(file);
      process.exit(0);
    });
    await work();
  } else {
    for await (const line of createInterface({ input: process.stdin })) {
      const [job, number] = line.split(" ");
      const answer = job === "left" ? await left() : ((await submit(job, Number(number))), number);
      process.stdout.write(`${answer}\n`);
    }
    await stop();
    process.exit(0);
  }
}
