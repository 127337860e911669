"""RQ on Redis: `SimpleWorker`, which runs jobs in its own process without a fork for each, JSON serializer, no results.

Its performance notes name SimpleWorker for short jobs. Bulk submit is `enqueue_many` on a pipeline. One job at a time
per process; I/O jobs use as many processes as jobs at a time would need, so RQ is left out there.
"""

from collections.abc import Callable

from rq import Queue
from rq.serializers import JSONSerializer

from benchmarks import stores, work
from benchmarks.peer import Peer, script

FUNCTIONS = {"tick": work.tick, "stamp": work.stamp}


class Adapter(Peer):
    name = "RQ"
    packages = ("rq", "redis")
    stores = ("redis",)
    settings = "rq worker -w rq.SimpleWorker, JSON serializer, result_ttl=0"
    bulk = "enqueue_many on a pipeline"

    def prepare(self) -> None:
        self.client = stores.redis_client(self.store)
        self.queue = Queue("bench", connection=self.client, serializer=JSONSerializer)

    def submit(self, job: str, count: int) -> None:
        one = Queue.prepare_data(FUNCTIONS[job], result_ttl=0)
        for start in range(0, count, 1_000):
            size = min(1_000, count - start)
            with self.client.pipeline() as pipe:
                self.queue.enqueue_many([one._replace(job_id=None) for _ in range(size)], pipeline=pipe)
                pipe.execute()

    def submitter(self, job: str) -> Callable[[int], object]:
        function = FUNCTIONS[job]
        if job == "stamp":
            return lambda number: self.queue.enqueue(function, number, result_ttl=0)
        return lambda number: self.queue.enqueue(function, result_ttl=0)

    def commands(self, processes: int) -> list[list[str]]:
        options = ["--url", self.store.url, "-w", "rq.SimpleWorker", "-S", "json", "-q"]
        return [script("rq", "worker", *options, "--disable-job-desc-logging", "bench")] * processes

    def remaining(self) -> int:
        return self.queue.count + self.queue.started_job_registry.count
