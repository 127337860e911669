"""Claims beside a long queue: how long one takes with 1,000 ready jobs and with 500,000.

One thread claims and settles through the library's own moves; as many jobs are submitted before each claim as it takes, so
that the backlog keeps its length, and only the claim is timed.
"""

import statistics
import time
from typing import Any

from benchmarks import stores, suite
from benchmarks.growth import fill
from benchmarks.peer import Peer
from benchmarks.suite import Case

PROCESS = "bench"
WARM_UP = 50


def measure(peer: Peer, backlog: int, batch: int, claims: int) -> dict[str, Any]:
    """Return quantiles in milliseconds."""
    peer.prepare()
    fill(peer, "backlog", backlog)
    stores.settle(peer.store)
    from django_jobs.lifecycle import leases
    from django_jobs.lifecycle.claim import claim
    from django_jobs.lifecycle.outcome import Outcome
    from django_jobs.lifecycle.settle import settle

    leases.register(PROCESS, queues=[], threads=1)
    seconds = []
    for number in range(WARM_UP + claims):
        peer.submit("tick", batch)
        started = time.perf_counter()
        jobs = claim("default", batch, PROCESS)
        seconds.append(time.perf_counter() - started)
        if len(jobs) != batch or settle([Outcome.completed(job) for job in jobs], PROCESS):
            raise RuntimeError(f"{len(jobs)} of {batch} jobs claimed, or their settle was lost")
        if number % 200 == 0:
            leases.beat(PROCESS)
    cuts = statistics.quantiles([1000 * each for each in seconds[WARM_UP:]], n=100, method="inclusive")
    return {"p99 ms": cuts[98], "p50 ms": cuts[49]}


def main() -> None:
    options = suite.arguments(__doc__ or "", claims=2000, scale=100)
    cases = [
        Case("django_jobs", store, {"backlog": backlog * options.scale // 100, "batch": batch, "claims": claims})
        for store in ("postgresql", "sqlite", "mariadb")
        for batch, claims in ((1, options.claims), (128, options.claims // 10))
        for backlog in (1_000, 500_000)
    ]
    suite.run("claim", cases, options)


if __name__ == "__main__":
    main()
