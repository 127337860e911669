"""What a step costs beside one small INSERT with its commit, and `iterate` beside the bare loop, in turns on one database.

    python benchmarks/steps.py [sqlite:///path | postgresql://… | mysql://…] [--number 2000] [--rows 100000] [--rounds 7]

The database is created and dropped. A step stands beside four INSERTs of a row as long as its own, each with its commit:
`bare` is the statement on Django's cursor, into a table with no index but its key; `same` the statement into the steps' own
table, whose unique index and check it has to pass; `record` the step's statement, which looks whether the run still holds its
job; `create` what a site writes, `Model.objects.create()`. The bare loop is `QuerySet.iterator()` with as many rows a page.

The promises are 1.2 times `create` and 1.15 times the bare loop; the exit code says whether they held.
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

STEP, ITERATE = 1.2, 1.15
WARM_UP = 50
CHUNK = 2000  # as `iterate` reads
Turns = dict[str, list[float]]
_SAME = (
    "INSERT INTO django_jobs_jobstep (job_id, position, name, kind, result, started_at, ended_at)"
    " VALUES (%s, %s, %s, 'step', %s, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
)
_INSERT = "INSERT INTO bench_small (job_id, place, name, result, at) VALUES (%s, %s, %s, %s, CURRENT_TIMESTAMP)"
_TABLE = (
    "CREATE TABLE bench_small (id {key}, job_id varchar(64), place int, name varchar(220), result text, at {moment})"
)
_TYPES = {
    "sqlite": ("integer PRIMARY KEY", "text"),
    "postgresql": ("bigserial PRIMARY KEY", "timestamptz"),
    "mysql": ("bigint AUTO_INCREMENT PRIMARY KEY", "datetime(6)"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="default: a SQLite file in a temporary directory")
    parser.add_argument("--number", type=int, default=2000, help="of steps")
    parser.add_argument("--rows", type=int, default=100_000, help="that a loop goes over")
    parser.add_argument("--rounds", type=int, default=7, help="of loops")
    options = parser.parse_args()
    with scratch_site(options.url):
        held = [measure_steps(options.number), measure_loops(options.rows, options.rounds)]
    return 0 if all(held) else 1


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_steps(number: int) -> bool:
    """Take the steps of one job in turns with INSERTs; print what each costs, and the ratios."""
    from django.db import connection
    from django.utils import timezone

    from django_jobs.db.dialects import dialect
    from django_jobs.db.dialects.base import StepRow
    from django_jobs.models import JobStep

    key, moment = _TYPES[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(_TABLE.format(key=key, moment=moment))
    turns: Turns = {name: [] for name in ("bare", "same", "record", "create", "step")}

    def flow(context: Any, payload: Any) -> None:
        def insert(statement: str, owner: str, place: int) -> None:
            with connection.cursor() as cursor:
                cursor.execute(statement, (owner, place, f"step {place}", '{"done": 7}'))

        def record(place: int) -> None:
            row = StepRow(10**6 + place, f"record {place}", "step", '{"done": 7}')  # at positions that no step comes to
            dialect().insert_done_step(context.job_id, context.fence, row)

        def create(place: int) -> None:
            now = timezone.now()
            values = {"name": f"step {place}", "kind": "step", "result": {"done": 7}}
            JobStep.objects.create(job_id="created", position=place, started_at=now, ended_at=now, **values)

        works: dict[str, Callable[[int], object]] = {
            "bare": lambda place: insert(_INSERT, context.job_id, place),
            "same": lambda place: insert(_SAME, "inserted", place),
            "record": record,
            "create": create,
            "step": lambda place: context.step(f"step {place}", dict, done=7),
        }
        names = list(works)
        for place in range(number + WARM_UP):
            first = place % len(names)  # none always comes first
            for name in names[first:] + names[:first]:
                seconds = seconds_of(lambda work=works[name], place=place: work(place))  # type: ignore[misc]
                if place >= WARM_UP:
                    turns[name].append(seconds)

    run(flow)
    for base in ("bare", "same", "record"):
        compare(turns, base, "step", None, "a step")
    return compare(turns, "create", "step", STEP, "a step")


def measure_loops(rows: int, rounds: int) -> bool:
    """Go over rows, in one job for each turn, in turns with the bare loop; print both costs and their ratio."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import connection

    many = ContentType.objects.order_by("pk")
    ContentType.objects.bulk_create(
        (ContentType(app_label="bench", model=f"row {number}") for number in range(rows)), batch_size=500
    )
    if connection.vendor != "mysql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    turns: Turns = {"bare": [], "iterate": []}

    def flow(context: Any, payload: Any) -> None:
        def bare() -> None:
            for row in many.iterator(chunk_size=CHUNK):
                row.model.upper()

        def iterate() -> None:
            for row in context.iterate("rows", ContentType.objects.all()):
                row.model.upper()

        works = {"bare": bare, "iterate": iterate}
        for name in sorted(works, reverse=payload["turn"] % 2 == 1):
            turns[name].append(seconds_of(works[name]))

    for turn in range(rounds):
        run(flow, {"turn": turn})
    return compare(turns, "bare", "iterate", ITERATE, f"iterate over {rows:,} rows")


def run(flow: Callable[[Any, Any], None], payload: dict[str, Any] | None = None) -> None:
    """Run a handler as a worker does: claimed, executed, settled."""
    from django_jobs import submit
    from django_jobs.handlers import make_handler, registry
    from django_jobs.lifecycle import leases
    from django_jobs.lifecycle.claim import claim
    from django_jobs.lifecycle.settle import settle
    from django_jobs.worker.executor import execute
    from django_jobs.worker.run import Run

    handler = make_handler(flow, "bench.flow", {"takes_context": True})
    registry.replace(handler)
    leases.register("bench", queues=[], threads=1)
    submit("bench.flow", payload)
    (job,) = claim("default", 1, "bench")
    outcome = execute(Run(job), handler, registry, "bench")
    if not outcome.is_completed:
        raise RuntimeError(outcome.error)
    settle([outcome], "bench")
    leases.leave("bench")


def compare(turns: Turns, base: str, other: str, allowed: float | None, what: str) -> bool:
    """Print the medians and their ratio, beside those of the fastest quarters; return whether the ratio is allowed."""
    first, second = (statistics.median(turns[name]) * 1e6 for name in (base, other))
    quick_first, quick_second = (statistics.quantiles(turns[name], n=4)[0] * 1e6 for name in (base, other))
    said = "" if allowed is None else f" (allowed {allowed})"
    print(
        f"{what}: {base} {first:,.0f} µs, {other} {second:,.0f} µs, ratio {second / first:.3f}{said};"
        f" first quartiles {quick_first:,.0f} and {quick_second:,.0f}, {quick_second / quick_first:.3f}"
    )
    return allowed is None or second / first <= allowed


if __name__ == "__main__":
    sys.exit(main())
