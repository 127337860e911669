"""awa: an `AsyncClient` with its tasks as coroutines, started from a program as its guide shows; queue storage as it comes.

Its jobs' names come from the classes of their arguments. Bulk submit is `insert_many_copy`.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import awa

from benchmarks import stores, work
from benchmarks.peer import Peer, module

WORKERS = int(os.environ.get("BENCH_AWA_WORKERS", "64"))
LEFT = "SELECT COUNT(*) FROM awa.jobs WHERE state::text NOT IN ('completed', 'failed', 'cancelled')"


@dataclass
class Tick:
    """Arguments of `tick`."""


@dataclass
class Stamp:
    """Arguments of `stamp`."""

    number: int


async def worker() -> None:
    """Run one worker process until it is asked to stop."""
    client = awa.AsyncClient(stores.current().url)

    @client.task(Tick, queue="default")
    async def tick(job: Any) -> None:
        work.tick()

    @client.task(Stamp, queue="default")
    async def stamp(job: Any) -> None:
        work.stamp(job.args.number)

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await client.start([("default", WORKERS)])
    await stopping.wait()
    await client.shutdown()


class Adapter(Peer):
    name = "awa"
    packages = ("awa-pg",)
    stores = ("postgresql",)
    settings = f"AsyncClient, queue of {WORKERS} workers, coroutines, queue storage at its defaults"
    bulk = "insert_many_copy"

    def prepare(self) -> None:
        self.connect()
        self.client.migrate()

    def connect(self) -> None:
        self.client = awa.Client(self.store.url)

    def submit(self, job: str, count: int) -> None:
        for start in range(0, count, 10_000):
            self.client.insert_many_copy([Tick()] * min(10_000, count - start))

    def submitter(self, job: str) -> Callable[[int], object]:
        if job == "stamp":
            return lambda number: self.client.insert(Stamp(number))
        return lambda number: self.client.insert(Tick())

    def commands(self, processes: int) -> list[list[str]]:
        return [module(__name__)] * processes

    def remaining(self) -> int:
        with stores.postgresql(self.store.url) as connection:
            return int(connection.execute(LEFT).fetchone()[0])


if __name__ == "__main__":
    asyncio.run(worker())
