"""Celery on Redis: results off, prefetch multiplier raised for short tasks, early acknowledgement, no gossip.

Its optimising guide: raise `worker_prefetch_multiplier` for short tasks, `ignore_result`, `task_acks_late` off,
transient delivery, `--without-gossip --without-mingle --without-heartbeat`. No-op jobs: a
prefork pool of one process; I/O jobs: the thread pool.
"""

import os
from collections.abc import Callable

import celery

from benchmarks import stores, work
from benchmarks.peer import Peer, module

POOL = os.environ.get("BENCH_CELERY_POOL", "threads")
PREFETCH = int(os.environ.get("BENCH_CELERY_PREFETCH", "4"))

app = celery.Celery("bench", broker=stores.current().url)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH,
    task_acks_late=False,
    task_default_delivery_mode="transient",
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    task_store_errors_even_if_ignored=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="tick")
def tick() -> None:
    work.tick()


@app.task(name="nap")
def nap() -> None:
    work.nap()


@app.task(name="stamp")
def stamp(number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "Celery"
    packages = ("celery", "redis")
    stores = ("redis",)
    settings = f"-P {POOL} (I/O: threads), prefetch multiplier {PREFETCH}, early ack, no results, no gossip"

    def prepare(self) -> None:
        """Nothing to make in Redis."""

    def submit(self, job: str, count: int) -> None:
        task = globals()[job]
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                task.apply_async(producer=producer)

    def submitter(self, job: str) -> Callable[[int], object]:
        task = globals()[job]
        return task.delay if job == "stamp" else lambda number: task.delay()

    def commands(self, processes: int) -> list[list[str]]:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
        one = module("celery", "-A", __name__, "worker", *quiet)
        if self.load != "noop":
            return [[*one, "-P", "threads", "-c", str(self.concurrency)]] * processes
        if POOL == "prefork":
            return [[*one, "-P", "prefork", "-c", str(processes)]]
        return [[*one, "-n", f"w{number}@%h", "-P", POOL, "-c", "1"] for number in range(processes)]

    def remaining(self) -> int:
        client = stores.redis_client(self.store)
        return int(client.llen("celery") + client.hlen("unacked"))
