"""Huey on Redis or SQLite: `huey_consumer`, thread workers, no results, no periodic tasks, a short polling delay.

Redis: `RedisHuey` (blocking pop), -w 4 threads for no-op jobs. SQLite: `SqliteHuey` in WAL mode, one worker,
because its workers take an exclusive lock to dequeue. A dequeued task is gone from the store: a killed worker loses it.
"""

import os
from collections.abc import Callable
from typing import Any

from huey import RedisHuey, SqliteHuey

from benchmarks import stores, work
from benchmarks.peer import Peer, script

REDIS_THREADS = os.environ.get("BENCH_HUEY_THREADS", "4")


def _make() -> Any:
    store = stores.current()
    if store.kind == "redis":
        return RedisHuey("bench", url=store.url, results=False)
    return SqliteHuey("bench", filename=f"/{store.name.lstrip('/')}", results=False, fsync=False)


huey = _make()


@huey.task()
def tick() -> None:
    work.tick()


@huey.task()
def nap() -> None:
    work.nap()


@huey.task()
def stamp(number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "Huey"
    packages = ("huey", "redis")
    stores = ("redis", "sqlite")
    settings = f"huey_consumer -k thread -w {REDIS_THREADS} (SQLite: -w 1), results off, -d 0.01 -m 0.1"

    def prepare(self) -> None:
        """Nothing to make: the storage makes its own."""

    def submit(self, job: str, count: int) -> None:
        task = globals()[job]
        for _ in range(count):
            task()

    def submitter(self, job: str) -> Callable[[int], object]:
        return globals()[job] if job == "stamp" else lambda number: globals()[job]()  # type: ignore[no-any-return]

    def commands(self, processes: int) -> list[list[str]]:
        threads = REDIS_THREADS if self.store.kind == "redis" else "1"
        slots = str(self.concurrency) if self.load != "noop" else threads
        options = ["-k", "thread", "-w", slots, "-q", "-n", "-d", "0.01", "-m", "0.1"]
        return [script("huey_consumer", f"{__name__}.huey", *options)] * processes

    def remaining(self) -> int:
        return int(huey.pending_count())
