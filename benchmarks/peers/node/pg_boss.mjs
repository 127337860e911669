import { load, serve, stamp, tick, url } from "./work.mjs";

const { PgBoss } = load("pg-boss");
const { Pool } = load("pg");
const works = process.argv[2] === "work";
const boss = new PgBoss({ connectionString: url, useListenNotify: works, supervise: works, schedule: works });
boss.on("error", (error) => console.error(error.message));
await boss.start();
const pool = new Pool({ connectionString: url, max: 1 });
const options = { batchSize: 50, pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 0.5 };

await serve({
  prepare: async () => {
    for (const name of ["tick", "stamp"]) await boss.createQueue(name, { notify: true });
  },
  submit: (job, number) =>
    job === "tick"
      ? boss.insert("tick", Array.from({ length: number }, () => ({ data: {} })))
      : boss.send("stamp", { number }),
  work: async () => {
    await boss.work("tick", options, async (jobs) => jobs.forEach(() => tick()));
    await boss.work("stamp", options, async (jobs) => jobs.forEach(({ data }) => stamp(data.number)));
  },
  left: async () =>
    (await pool.query("SELECT COUNT(*) AS n FROM pgboss.job WHERE state IN ('created', 'retry', 'active')")).rows[0].n,
  stop: async () => {
    await boss.stop({ graceful: false });
    await pool.end();
  },
});
