"""pgqueuer: `PgQueuer.run(batch_size=…)` on asyncpg, coroutine jobs, `pgq autovac` and durable tables.

It is run from a program, as its guide shows, because `pgq run` does not start with the newest typer. The guide names
batch size and the driver as the levers ("increase batch_size when jobs are short-lived"); durability stays at its
default, `durable`, as losing jobs in a crash would be another product. Bulk submit is its `enqueue` with lists.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Job

from benchmarks import stores, work
from benchmarks.peer import Peer, module, script

BATCH = os.environ.get("BENCH_PGQUEUER_BATCH", "500")


async def worker(batch: int, limit: int | None) -> None:
    """Run one worker process until it is stopped."""
    connection = await asyncpg.connect(stores.current().url)
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("tick")
    async def tick(job: Job) -> None:
        work.tick()

    @queue.entrypoint("anap")
    async def anap(job: Job) -> None:
        await work.anap()

    @queue.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        work.stamp(int(job.payload or b""))

    await queue.run(batch_size=batch, max_concurrent_tasks=limit)


class Adapter(Peer):
    name = "pgqueuer"
    packages = ("pgqueuer", "asyncpg")
    stores = ("postgresql",)
    settings = f"run(batch_size={BATCH}), asyncpg, coroutines, pgq autovac, durable tables"
    bulk = "enqueue(lists)"

    def prepare(self) -> None:
        for command in ("install", "autovac"):
            subprocess.run(
                script("pgq", "--pg-dsn", self.store.url, command), check=True, capture_output=True, timeout=60
            )
        self.connect()

    def connect(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.connection = self.loop.run_until_complete(asyncpg.connect(self.store.url))
        self.queries = Queries(AsyncpgDriver(self.connection))

    def submit(self, job: str, count: int) -> None:
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            self._wait(self.queries.enqueue([job] * size, [b"{}"] * size, [0] * size))

    def submitter(self, job: str) -> Callable[[int], object]:
        return lambda number: self._wait(self.queries.enqueue(job, str(number).encode()))

    def commands(self, processes: int) -> list[list[str]]:
        if self.load != "noop":  # the limit must be twice the batch at least
            return [module(__name__, str(self.concurrency // 2), str(self.concurrency))] * processes
        return [module(__name__, BATCH)] * processes

    def remaining(self) -> int:
        return int(self._wait(self.connection.fetchval("SELECT COUNT(*) FROM pgqueuer")))

    def _wait(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)


if __name__ == "__main__":
    asyncio.run(worker(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None))
