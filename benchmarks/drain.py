"""Drain no-op jobs: all are submitted first, then the workers start. One process, two, and four for the fastest queues.

`python -m benchmarks.drain [--jobs 20000] [--processes 1]`. See `workers.drain` for what is timed. Queues that submit one by
one and run fewer than a thousand a second get a backlog that they cannot finish either: 4,000 at most.
"""

from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

ENTRIES = {
    "postgresql": ("django_jobs", "bare", "pgqueuer", "chancy", "procrastinate", "django_ox", "django_tasks_db"),
    "redis": ("huey", "dramatiq", "taskiq", "celery", "rq"),
    "sqlite": ("django_jobs", "bare", "huey", "django_ox", "django_tasks_db"),
    "mariadb": ("django_jobs", "bare", "django_ox", "django_tasks_db"),
}

SLOW = ("procrastinate", "django_ox", "django_tasks_db", "celery", "rq")
SLOW_JOBS = 4_000
FASTEST = ("django_jobs", "bare", "pgqueuer", "huey")


def measure(peer: Peer, jobs: int, processes: int, limit: float) -> dict[str, Any]:
    """Return jobs a second."""
    peer.prepare()
    peer.submit("tick", jobs)
    stores.settle(peer.store)
    with Workers(peer, processes) as workers:
        return drain(workers, jobs, processes, peer.remaining, limit)


def _jobs(peer: str, jobs: int) -> int:
    return min(jobs, SLOW_JOBS) if peer in SLOW else jobs


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=20_000, processes=0, limit=5)
    cases = [
        Case(peer, store, {"jobs": _jobs(peer, options.jobs), "processes": processes, "limit": options.limit})
        for processes in ([options.processes] if options.processes else [1, 2, 4])
        for store, peers in ENTRIES.items()
        for peer in peers
        if processes <= 2 or peer in FASTEST
    ]
    suite.run("drain", cases, options)


if __name__ == "__main__":
    main()
