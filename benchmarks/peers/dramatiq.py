"""Dramatiq on Redis: one process, 8 threads, prefetch for no-op jobs, and only the middleware that runs jobs.

Its guide recommends threads by workload and `dramatiq_queue_prefetch` for short messages; the Prometheus middleware is
left out, no results back end. Messages are acknowledged after the work.
"""

import os
from collections.abc import Callable

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import stores, work
from benchmarks.peer import Peer, script

THREADS = os.environ.get("BENCH_DRAMATIQ_THREADS", "8")
PREFETCH = os.environ.get("BENCH_DRAMATIQ_PREFETCH", "1000")

broker = RedisBroker(url=stores.current().url)
dramatiq.set_broker(broker)


@dramatiq.actor
def tick() -> None:
    work.tick()


@dramatiq.actor
def nap() -> None:
    work.nap()


@dramatiq.actor
def stamp(number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "Dramatiq"
    packages = ("dramatiq", "redis")
    stores = ("redis",)
    settings = f"dramatiq --processes 1 --threads {THREADS}, queue prefetch {PREFETCH}, no results"

    def prepare(self) -> None:
        """Nothing to make in Redis."""

    def submit(self, job: str, count: int) -> None:
        actor = globals()[job]
        for _ in range(count):
            actor.send()

    def submitter(self, job: str) -> Callable[[int], object]:
        actor = globals()[job]
        return actor.send if job == "stamp" else lambda number: actor.send()

    def environment(self) -> dict[str, str]:
        return {"dramatiq_queue_prefetch": PREFETCH}

    def commands(self, processes: int) -> list[list[str]]:
        threads = str(self.concurrency) if self.load != "noop" else THREADS
        one = script("dramatiq", __name__, "--processes", str(processes), "--threads", threads, "--skip-logging")
        return [one]

    def remaining(self) -> int:
        client = stores.redis_client(self.store)
        acks = sum(client.scard(key) for key in client.scan_iter("dramatiq:__acks__.*"))
        return int(client.llen("dramatiq:default") + acks)
