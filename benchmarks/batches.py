"""Drain no-op jobs that are members of one batch, beside the same jobs without a batch; compare the two lines of a store.

`python -m benchmarks.batches [--jobs 20000] [--processes 1]`, as `drain`. What a member costs by itself is in `members.py`.
"""

from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

STORES = ("postgresql", "sqlite", "mariadb")


def measure(peer: Peer, jobs: int, processes: int, limit: float, batch: int) -> dict[str, Any]:
    """Return jobs a second."""
    peer.prepare()
    if batch:
        import django_jobs
        from django_jobs import NewJob

        with django_jobs.batch("bench") as one:
            one.submit_many([NewJob("bench.tick", {}) for _ in range(jobs)])
    else:
        peer.submit("tick", jobs)
    stores.settle(peer.store)
    with Workers(peer, processes) as workers:
        return drain(workers, jobs, processes, peer.remaining, limit)


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=20_000, processes=1, limit=10)
    common = {"jobs": options.jobs, "processes": options.processes, "limit": options.limit}
    cases = [Case("django_jobs", store, common | {"batch": batch}) for store in STORES for batch in (0, 1)]
    suite.run("batches", cases, options)


if __name__ == "__main__":
    main()
