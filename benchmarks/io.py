"""I/O jobs: each waits 10 ms, 32 at a time in one worker process, as threads or as coroutines; and 1,000 coroutines.

The ideal is concurrency / 10 ms; `of_ideal` says how much of it was reached. The 1,000 coroutines are compared with the
peer's own no-op drain, because no queue here hands out 100,000 jobs a second.
"""

import os
from typing import Any

from benchmarks import stores, suite, work
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

CASES = (
    ("django_jobs", "postgresql", "nap"),
    ("django_jobs", "postgresql", "anap"),
    ("pgqueuer", "postgresql", "anap"),
    ("chancy", "postgresql", "anap"),
    ("procrastinate", "postgresql", "anap"),
    ("django_ox", "postgresql", "nap"),
    ("huey", "redis", "nap"),
    ("dramatiq", "redis", "nap"),
    ("taskiq", "redis", "anap"),
    ("celery", "redis", "nap"),
    ("django_jobs", "sqlite", "nap"),
    ("django_jobs", "mariadb", "nap"),
)


def measure(peer: Peer, job: str, concurrency: int, jobs: int, limit: float) -> dict[str, Any]:
    """Return jobs a second, and as a share of the ideal."""
    os.environ["BENCH_CONCURRENCY"] = str(concurrency)
    peer.prepare()
    peer.submit(job, jobs)
    stores.settle(peer.store)
    with Workers(peer, 1) as workers:
        result = drain(workers, jobs, 1, peer.remaining, limit)
    ideal = concurrency / work.SLEEP_SECONDS
    return result | {"of_ideal": result["jobs_per_second"] / ideal}


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=10_000, limit=4)
    common = {"jobs": options.jobs, "limit": options.limit}
    cases = [
        Case(peer, store, {"load": "async" if job == "anap" else "io", "job": job, "concurrency": 32} | common)
        for peer, store, job in CASES
    ] + [
        Case(peer, "postgresql", {"load": "async", "job": "anap", "concurrency": 1000} | common)
        for peer in ("django_jobs", "pgqueuer", "chancy")
    ]
    suite.run("io", cases, options)


if __name__ == "__main__":
    main()
