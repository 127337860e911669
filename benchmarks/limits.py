"""Limits: the rate of jobs that have one, by key, and what 100,000 jobs that are held back cost the others of their queue.

`keys`: all jobs have a limit with that many values of its key, of which `at_once` jobs each may run at once. `held`: the drain of
no-op jobs without a limit, beside so many of another type that are held back, ÷ the mean of the drains before and after it, when
there are none. `bulk`: the drain of jobs of a bulk handler, in lists of up to 500, ÷ the mean of the drains of single no-op jobs
before and after it. All drains of a ratio are of one measurement. The process of the benchmark runs the one job that holds the
others.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

HOLDER = "bench-holder"
BEAT_SECONDS = 2.0
CHUNK = 10_000
STORES = ("postgresql", "sqlite", "mariadb")


def measure(
    peer: Peer,
    jobs: int,
    limit: float,
    keys: int = 0,
    held: int = 0,
    processes: int = 1,
    at_once: int = 8,
    bulk: bool = False,
) -> dict[str, Any]:
    """Return jobs a second; with `held` or `bulk`, also the rate without, and the one's part of the other."""
    os.environ["BENCH_AT_ONCE"] = str(at_once)
    if not bulk:
        os.environ["BENCH_LIMITS"] = "1"  # for the workers, too
    peer.prepare()
    if keys:
        return _drained(peer, "bench.limited", jobs, processes, limit, keys)
    before = _drained(peer, "bench.tick", jobs, processes, limit)
    with _held_back(held) if held else nullcontext():
        result = _drained(peer, "bench.bulk" if bulk else "bench.tick", jobs, processes, limit)
    after = _drained(peer, "bench.tick", jobs, processes, limit)
    clean = (before["jobs_per_second"] + after["jobs_per_second"]) / 2
    return result | {"clean_jobs_per_second": clean, "of_clean": result["jobs_per_second"] / clean}


def _drained(peer: Peer, job_type: str, jobs: int, processes: int, limit: float, keys: int = 1) -> dict[str, float]:
    from django_jobs import NewJob, submit_many
    from django_jobs.models import Job

    for start in range(0, jobs, CHUNK):
        submit_many([NewJob(job_type, {"account": n % keys}) for n in range(min(CHUNK, jobs - start))])

    def remaining() -> int:
        return Job.objects.filter(job_type=job_type).live().count()

    stores.settle(peer.store)
    for path in stores.run_dir().glob("*.slot"):
        path.unlink()  # this drain starts at nought
    with Workers(peer, processes) as workers:
        result = drain(workers, jobs, processes, remaining, limit)
        workers.wait_for(lambda: remaining() == 0)
    return result


@contextmanager
def _held_back(number: int) -> Iterator[None]:
    """Run one job of a type of which one may run, and hold `number` others back, until the end of the block."""
    from django.db import connections

    from django_jobs import NewJob, submit_many
    from django_jobs.lifecycle import leases
    from django_jobs.lifecycle.claim import claim
    from django_jobs.models import Job

    leases.register(HOLDER, queues=[], threads=1)
    for start in range(0, number + 1, CHUNK):
        submit_many([NewJob("bench.held", {}) for _ in range(min(CHUNK, number + 1 - start))])
    claim("default", CHUNK, HOLDER)
    there = Job.objects.filter(job_type="bench.held").held_back().count()
    if there != number:
        raise RuntimeError(f"{there} of {number} jobs are held back")
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(BEAT_SECONDS):
            leases.beat(HOLDER)
        connections.close_all()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        Job.objects.filter(job_type="bench.held").delete()


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=20_000, limit=10, held=100_000, processes=1)
    common = {"jobs": options.jobs, "limit": options.limit, "processes": options.processes}
    cases = [
        Case("django_jobs", store, common | more)
        for more in (
            *({"keys": 1, "at_once": number} for number in (1, 5, 8, 16)),
            {"keys": 50},
            {"keys": 1_000},
            {"held": options.held},
            {"bulk": True},
        )
        for store in STORES
    ]
    suite.run("limits", cases, options)


if __name__ == "__main__":
    main()
