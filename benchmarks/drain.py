"""Drain no-op jobs: all are submitted first, then the workers start. One process and two.

`python -m benchmarks.drain [--jobs 20000] [--processes 1]`. See `workers.drain` for what is timed.
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


def measure(peer: Peer, jobs: int, processes: int, limit: float) -> dict[str, Any]:
    """Return jobs a second."""
    peer.prepare()
    peer.submit("tick", jobs)
    stores.settle(peer.store)
    with Workers(peer, processes) as workers:
        return drain(workers, jobs, processes, peer.remaining, limit)


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=20_000, processes=0, limit=5)
    cases = [
        Case(peer, store, {"jobs": options.jobs, "processes": processes, "limit": options.limit})
        for processes in ([options.processes] if options.processes else [1, 2])
        for store, peers in ENTRIES.items()
        for peer in peers
    ]
    suite.run("drain", cases, options)


if __name__ == "__main__":
    main()
