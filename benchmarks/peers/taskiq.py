"""TaskIQ on Redis: `taskiq worker`, one process, coroutine jobs, no result back end, no argument parsing.

`RedisStreamBroker`, which acknowledges, reads 100 messages at a time and is the broker its documentation recommends.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks import stores, work
from benchmarks.peer import Peer, script

KIND = os.environ.get("BENCH_TASKIQ_BROKER", "stream")
PREFETCH = os.environ.get("BENCH_TASKIQ_PREFETCH", "500")

broker: Any
if KIND == "stream":
    broker = RedisStreamBroker(stores.current().url, consumer_id="0", xread_count=500)
else:
    broker = ListQueueBroker(stores.current().url)


@broker.task
async def tick() -> None:
    work.tick()


@broker.task
async def anap() -> None:
    await work.anap()


@broker.task
async def stamp(number: int) -> None:
    work.stamp(number)


class Adapter(Peer):
    name = "TaskIQ"
    packages = ("taskiq", "taskiq-redis")
    stores = ("redis",)
    settings = f"taskiq worker -w 1 --max-async-tasks 100 --max-prefetch {PREFETCH} --no-parse, Redis {KIND} broker"

    def prepare(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(broker.startup())

    def submit(self, job: str, count: int) -> None:
        async def all_of_them() -> None:
            for _ in range(count):
                await globals()[job].kiq()

        self.loop.run_until_complete(all_of_them())

    def submitter(self, job: str) -> Callable[[int], object]:
        task = globals()[job]
        arguments = (lambda number: (number,)) if job == "stamp" else (lambda number: ())
        return lambda number: self.loop.run_until_complete(task.kiq(*arguments(number)))

    def commands(self, processes: int) -> list[list[str]]:
        tasks = str(self.concurrency) if self.load != "noop" else "100"
        options = ["--max-async-tasks", tasks, "--max-prefetch", PREFETCH, "--no-parse", "--log-level", "ERROR"]
        return [script("taskiq", "worker", f"{__name__}:broker", "--workers", str(processes), *options)]

    def remaining(self) -> int:
        client = stores.redis_client(self.store)
        if KIND != "stream":
            return int(client.llen("taskiq"))
        group = client.xinfo_groups("taskiq")[0]
        return int(group["lag"] or 0) + int(group["pending"])
