"""Dependencies: drain a fan-in, a fan-out and a chain, and jobs without any, with and without the look for dependents.

`plain` has no dependencies, but each settle looks for some all the same; `plain, no look` is the same with that look
patched out of the worker, so the two differ by what dependencies cost those who do not use them. A chain is one job after
another: its rate is one over the time of a claim, a settle and a wake.
"""

from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer, module
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

TYPE = "bench.tick"
NO_LOOK = "plain, no look"
SHAPES = ("plain", NO_LOOK, "fan-in", "fan-out", "chain")


def submit(shape: str, size: int) -> None:
    """Submit `size` jobs of this shape in one transaction."""
    from django_jobs import NewJob, submit_many

    ids = [f"n{number:06}" for number in range(size)]
    first, rest, last = ids[0], ids[1:], ids[-1]
    before: dict[str, list[str]] = {
        "fan-in": {last: ids[:-1]},
        "fan-out": {each: [first] for each in rest},
        "chain": {each: [previous] for previous, each in zip(ids, rest, strict=False)},
    }.get(shape, {})
    submit_many([NewJob(TYPE, {}, job_id=each, depends_on=before.get(each)) for each in ids])


def measure(peer: Peer, shape: str, jobs: int, limit: float) -> dict[str, Any]:
    """Return jobs a second."""
    peer.prepare()
    submit(shape, jobs)
    stores.settle(peer.store)
    with GraphWorkers(peer, shape) as workers:
        return drain(workers, jobs, 1, peer.remaining, limit)


class GraphWorkers(Workers):
    """One worker; its settles look for dependents, unless the shape says that they do not."""

    def __init__(self, peer: Peer, shape: str) -> None:
        super().__init__(peer, 1)
        if shape == NO_LOOK:
            (command,) = self.commands
            self.commands = [module("benchmarks.no_look", *command[command.index("runworkers") :])]


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=10_000, limit=60)
    cases = [
        Case("django_jobs", store, {"shape": shape, "jobs": options.jobs, "limit": options.limit})
        for store in ("postgresql", "sqlite", "mariadb")
        for shape in SHAPES
    ]
    suite.run("graph", cases, options)


if __name__ == "__main__":
    main()
