"""Idle pickup: single jobs, one after another with random pauses, to one idle worker process.

Reported twice: from the moment before the submit call, which is what a user waits for, and from its return, when
the job is committed. A wake-up can arrive before the submitter's call returns, so the second can be below zero.
"""

import random
import statistics
import time
from typing import Any

from benchmarks import stores, suite, work
from benchmarks.drain import ENTRIES
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers

WARM_UP = 5
PAUSE_SECONDS = (0.020, 0.120)


def measure(peer: Peer, jobs: int) -> dict[str, Any]:
    """Return quantiles in milliseconds."""
    peer.prepare()
    submit = peer.submitter("stamp")
    directory = stores.run_dir()
    pauses = random.Random(1)
    called: dict[int, float] = {}
    stored: dict[int, float] = {}
    with Workers(peer, 1) as workers:
        for number in range(WARM_UP + jobs):
            called[number] = time.monotonic()
            submit(number)
            stored[number] = time.monotonic()
            if number < WARM_UP:
                _wait_for(workers, number + 1)
                time.sleep(1.0 if number == 0 else 0)  # a worker that has just started settles down
            time.sleep(pauses.uniform(*PAUSE_SECONDS))
        _wait_for(workers, WARM_UP + jobs)
    started = work.stamps(directory)
    numbers = range(WARM_UP, WARM_UP + jobs)
    return _quantiles("from call", [started[n] - called[n] for n in numbers]) | _quantiles(
        "from commit", [started[n] - stored[n] for n in numbers]
    )


def _wait_for(workers: Workers, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(work.stamps(stores.run_dir())) < count:
        if time.monotonic() > deadline or workers.all_ended():
            raise workers.complaint(f"{len(work.stamps(stores.run_dir()))} of {count} jobs started")
        time.sleep(0.005)


def _quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles([1000 * each for each in seconds], n=100, method="inclusive")
    return {f"{name} p50 ms": cuts[49], f"{name} p99 ms": cuts[98]}


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=200)
    cases = [Case(peer, store, {"jobs": options.jobs}) for store, peers in ENTRIES.items() for peer in peers]
    suite.run("latency", [case for case in cases if case.peer != "bare"], options)


if __name__ == "__main__":
    main()
