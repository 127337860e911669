"""procrastinate: `procrastinate worker --concurrency N --delete-jobs successful`, coroutine jobs, LISTEN/NOTIFY on.

Its performance notes name concurrency as the lever; deleting finished jobs spares it the growing table. Bulk submit is
`batch_defer`.
"""

import logging
import os
from collections.abc import Callable

import procrastinate

from benchmarks import stores, work
from benchmarks.peer import Peer, script

CONCURRENCY = os.environ.get("BENCH_PROCRASTINATE_CONCURRENCY", "10")

logging.getLogger("procrastinate").setLevel(logging.ERROR)
connector = procrastinate.PsycopgConnector(conninfo=stores.current().url, min_size=4, max_size=10)
app = procrastinate.App(connector=connector)


@app.task(name="tick")
async def tick() -> None:
    work.tick()


@app.task(name="anap")
async def anap() -> None:
    await work.anap()


@app.task(name="stamp")
async def stamp(number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "procrastinate"
    packages = ("procrastinate", "psycopg")
    stores = ("postgresql",)
    settings = f"worker --concurrency {CONCURRENCY} --delete-jobs successful, coroutines, pool of 10"
    bulk = "batch_defer"

    def prepare(self) -> None:
        self.connect()
        self.sync.schema_manager.apply_schema()

    def connect(self) -> None:
        self.sync = procrastinate.App(
            connector=procrastinate.SyncPsycopgConnector(conninfo=self.store.url), import_paths=[]
        )
        self.sync.open()

    def submit(self, job: str, count: int) -> None:
        for start in range(0, count, 1_000):
            self.sync.configure_task(job).batch_defer(*[{}] * min(1_000, count - start))

    def submitter(self, job: str) -> Callable[[int], object]:
        task = self.sync.configure_task(job)
        return (lambda number: task.defer(number=number)) if job == "stamp" else (lambda number: task.defer())

    def commands(self, processes: int) -> list[list[str]]:
        slots = str(self.concurrency) if self.load != "noop" else CONCURRENCY
        one = script("procrastinate", "--app", f"{__name__}.app", "worker", "--concurrency", slots)
        return [[*one, "--delete-jobs", "successful"]] * processes

    def remaining(self) -> int:
        sql = "SELECT COUNT(*) AS left FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        return int(self.sync.connector.get_sync_connector().execute_query_one(sql)["left"])
