"""Chancy: `chancy worker start` with the asyncio executor, high concurrency and eager polling.

Its documentation names the executor and the queue's concurrency as the levers; `eager_polling` polls again as soon as
a job ends. Default plugins. Bulk submit is `push_many` (in batches of 1,000).
"""

import logging
import os
from collections.abc import Callable

from chancy import Chancy, Queue, job

from benchmarks import stores, work
from benchmarks.peer import Peer, script

CONCURRENCY = int(os.environ.get("BENCH_CHANCY_CONCURRENCY", "500"))

quiet = logging.getLogger("chancy")
quiet.setLevel(logging.ERROR)
app = Chancy(stores.current().url, log=quiet)


@job()
async def tick() -> None:
    work.tick()


@job()
async def anap() -> None:
    await work.anap()


@job()
async def stamp(*, number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "Chancy"
    packages = ("chancy", "psycopg")
    stores = ("postgresql",)
    settings = f"asyncio executor, concurrency {CONCURRENCY}, eager_polling"
    bulk = "sync_push_many"

    def prepare(self) -> None:
        import asyncio

        asyncio.run(self._declare())
        app.sync_pool.open()

    async def _declare(self) -> None:
        slots = self.concurrency if self.load != "noop" else CONCURRENCY
        async with Chancy(self.store.url, log=quiet) as chancy:
            await chancy.migrate()
            await chancy.declare(
                Queue(
                    "default", concurrency=slots, executor=Chancy.Executor.Async, polling_interval=1, eager_polling=True
                )
            )

    def submit(self, job: str, count: int) -> None:
        one = globals()[job].job
        for _ in app.sync_push_many([one] * count, batch_size=1_000):
            pass

    def submitter(self, job: str) -> Callable[[int], object]:
        one = globals()[job].job
        if job != "stamp":
            return lambda number: app.sync_push(one)
        return lambda number: app.sync_push(one.with_kwargs(number=number))

    def commands(self, processes: int) -> list[list[str]]:
        return [script("chancy", "--app", f"{__name__}.app", "worker", "start")] * processes

    def remaining(self) -> int:
        with stores.postgresql(self.store.url) as connection:
            sql = "SELECT COUNT(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying')"
            return int(connection.execute(sql).fetchone()[0])
