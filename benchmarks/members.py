"""What a member of a batch costs beside a job without one, from its claim to its settle, in turns on one database.

    python benchmarks/members.py [sqlite:///path | postgresql://… | mysql://…] [--jobs 5000] [--rounds 7] [--batches 1]

The database is created and dropped. Jobs are claimed and settled 500 at a time, as a worker process does with no-op jobs. What
counts is processor time, of this process and of the server's session together: it hardly depends on who else uses the machine.
What the server does later in the background (vacuum, purge) is not in it. Submits are shown as well.

The promise is that a member has 0.8 of a plain job's rate; the exit code says whether it held.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scratch import scratch_site

ALLOWED = 0.8
AT_ONCE = 500
Costs = dict[tuple[str, str], list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="default: a SQLite file in a temporary directory")
    parser.add_argument("--jobs", type=int, default=5000, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=1, help="that the members of a round are spread over")
    options = parser.parse_args()
    with scratch_site(options.url):
        held = measure(options.jobs, options.rounds, options.batches)
    return 0 if held else 1


def measure(jobs: int, rounds: int, batches: int) -> bool:
    """Run plain jobs and members in turns; print what each costs, and what part of the rate a member has."""
    import django_jobs
    from django_jobs import NewJob, submit_many
    from django_jobs.handlers import make_handler, registry
    from django_jobs.lifecycle import leases

    registry.replace(make_handler(lambda payload: None, "bench.tick", {}))
    leases.register("bench", queues=[], threads=1)
    cpu = processor_time()
    costs: Costs = {}

    def timed(kind: str, part: str, work: Callable[[], object]) -> None:
        before = cpu()
        work()
        costs.setdefault((kind, part), []).append((cpu() - before) * 1e6 / jobs)

    def plain() -> None:
        for _ in range(batches):
            submit_many([NewJob("bench.tick")] * (jobs // batches))

    def member() -> None:
        for _ in range(batches):
            with django_jobs.batch() as batch:
                batch.submit_many([NewJob("bench.tick")] * (jobs // batches))

    kinds = {"plain": plain, "member": member}
    for number in range(rounds + 1):
        for kind in sorted(kinds, reverse=number % 2 == 1):
            timed(kind, "submit", kinds[kind])
            timed(kind, "claim and settle", run_all)
            leases.beat("bench")
        if number == 0:
            costs.clear()  # to warm up
    for part in ("submit", "claim and settle"):
        first, second = costs["plain", part], costs["member", part]
        ratios = sorted(one / other for one, other in zip(first, second, strict=True))
        print(
            f"{part}: plain {statistics.median(first):.1f} µs (least {min(first):.1f}), member"
            f" {statistics.median(second):.1f} µs (least {min(second):.1f}); part of the rate, median of {rounds} rounds"
            f" {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), of the least {min(first) / min(second):.3f}"
        )
    return statistics.median(ratios) >= ALLOWED


def run_all() -> None:
    """Claim and settle until nothing is ready."""
    from django_jobs.lifecycle.claim import claim
    from django_jobs.lifecycle.outcome import Outcome
    from django_jobs.lifecycle.settle import settle_unlocked

    while jobs := claim("default", AT_ONCE, "bench"):
        settle_unlocked([Outcome.completed(job) for job in jobs], "bench")


def processor_time() -> Callable[[], float]:
    """Return what reads the processor time of this process and of its session's server process or thread, in seconds."""
    task = _session_task()
    if task is None:
        return time.process_time
    return lambda: time.process_time() + int(task.read_text().split()[0]) / 1e9


def _session_task() -> Path | None:
    from django.db import connection

    asked: dict[str, Any] = {
        "postgresql": "SELECT pg_backend_pid()",
        "mysql": "SELECT TID FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()",  # MariaDB alone tells it
    }
    if connection.vendor not in asked:
        return None
    with connection.cursor() as cursor:
        cursor.execute(asked[connection.vendor])
        number = int(cursor.fetchone()[0])
    return next(Path("/proc").glob(f"[0-9]*/task/{number}/schedstat"))


if __name__ == "__main__":
    sys.exit(main())
