import { load, serve, stamp, tick, url } from "./work.mjs";

const { makeWorkerUtils, run } = load("graphile-worker");
const { Logger } = load("@graphile/logger");
const { Pool } = load("pg");
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const utils = await makeWorkerUtils({ connectionString: url, logger });
const pool = new Pool({ connectionString: url, max: 1 });
let runner = null;

await serve({
  prepare: () => utils.migrate(),
  submit: (job, number) =>
    job === "tick"
      ? utils.addJobs(Array.from({ length: number }, () => ({ identifier: "tick", payload: {} })))
      : utils.addJob("stamp", { number }),
  work: async () => {
    const taskList = { tick: () => tick(), stamp: ({ number }) => stamp(number) };
    runner = await run({ connectionString: url, concurrency: 50, noHandleSignals: true, taskList, logger });
    await runner.promise;
  },
  left: async () => (await pool.query("SELECT COUNT(*) AS n FROM graphile_worker.jobs")).rows[0].n,
  stop: async () => {
    await runner?.stop();
    await utils.release();
    await pool.end();
  },
});
