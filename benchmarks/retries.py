"""Retries: jobs that fail once or twice, a millisecond apart, and then complete; beside jobs that do not fail.

Each failure costs a settle of its own kind (an attempt's row with the traceback, the next start's time), a promotion and
a second claim. `runs_per_second` counts every start of a handler, `jobs_per_second` the jobs that completed.
"""

from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

JOBS = {0: "tick", 1: "fail_once", 2: "fail_twice"}


def measure(peer: Peer, failures: int, jobs: int, limit: float) -> dict[str, Any]:
    """Return jobs and starts a second."""
    peer.prepare()
    peer.submit(JOBS[failures], jobs)
    stores.settle(peer.store)
    starts = failures + 1
    with Workers(peer, 1) as workers:
        result = drain(workers, jobs * starts, 1, lambda: peer.remaining() * starts, limit)
    rate = result.pop("jobs_per_second")
    costs = {name: value * starts for name, value in result.items() if name.endswith("_us")}
    return {"runs_per_second": rate, "jobs_per_second": rate / starts, "seconds": result["seconds"]} | costs


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=10_000, limit=30)
    cases = [
        Case("django_jobs", store, {"failures": failures, "jobs": options.jobs, "limit": options.limit})
        for store in ("postgresql", "sqlite", "mariadb")
        for failures in JOBS
    ]
    suite.run("retries", cases, options)


if __name__ == "__main__":
    main()
