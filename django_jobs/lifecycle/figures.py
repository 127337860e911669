"""The figures of the overview. Each question is bounded: by an index, a cap, or the newest jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import Count, Func, IntegerField

from django_jobs.models import Job, JobStatus, Queue

from .sql import dialect
from .transactions import jobs_alias

MOST_COUNTED = 10_000
WINDOW = 100_000
SAMPLE = 2_000
_AT_ONCE = 100  # subqueries in one statement
_READY = "status = 'pending' AND pending_dependencies = 0"

# Hops along the index of ready jobs, as `queues_with_work` does, and on to each rank within a queue: of each pair of queue
# and rank only the first entry is read, which is its oldest job.
_LANES = """
WITH RECURSIVE found(queue) AS (
    SELECT MIN(queue) FROM django_jobs_job WHERE READY
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM django_jobs_job AS job WHERE READY AND job.queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL),
lane(queue, place) AS (
    SELECT found.queue, (SELECT MIN(job.rank) FROM django_jobs_job AS job WHERE READY AND job.queue = found.queue)
    FROM found WHERE found.queue IS NOT NULL
    UNION ALL
    SELECT lane.queue, (SELECT MIN(job.rank) FROM django_jobs_job AS job
                        WHERE READY AND job.queue = lane.queue AND job.rank > lane.place)
    FROM lane WHERE lane.place IS NOT NULL)
SELECT lane.queue, (SELECT MIN(job.available_at) FROM django_jobs_job AS job
                    WHERE READY AND job.queue = lane.queue AND job.rank = lane.place)
FROM lane WHERE lane.place IS NOT NULL""".replace("READY", _READY)


@dataclass(kw_only=True)
class QueueFigures:
    """One queue now. `ready` stops at MOST_COUNTED + 1; `oldest` is when the job that waits longest became due."""

    name: str
    ready: int = 0
    oldest: datetime | None = None
    running: int = 0
    paused_at: datetime | None = None
    waits: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)


def queue_figures(names: Sequence[str] = (), alias: str | None = None) -> dict[str, QueueFigures]:
    """Return figures by queue: of the named ones, those with a ready or running job, and those with a row."""
    using = alias or jobs_alias()
    figures = {name: QueueFigures(name=name) for name in names}

    def of(name: str) -> QueueFigures:
        return figures.setdefault(name, QueueFigures(name=name))

    for name, oldest in _oldest(using):
        one = of(name)
        one.oldest = min(oldest, one.oldest or oldest)
    waiting = [name for name, one in figures.items() if one.oldest]
    for name, number in zip(waiting, _count_ready(waiting, using), strict=True):
        of(name).ready = number
    running = Job.objects.using(using).filter(status=JobStatus.RUNNING).order_by().values_list("queue")
    for name, number in running.annotate(number=Count("pk")):
        of(name).running = number
    for name, paused_at in Queue.objects.using(using).values_list("name", "paused_at"):
        of(name).paused_at = paused_at
    return dict(sorted(figures.items()))


def _oldest(using: str) -> list[tuple[str, datetime]]:
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(_LANES)
        rows = cursor.fetchall()
    to_datetime = dialect(connection).to_datetime
    return [(queue, to_datetime(oldest)) for queue, oldest in rows if oldest is not None]


def _count_ready(names: Sequence[str], using: str) -> list[int]:
    """Count the ready jobs of each queue up to the cap; a statement for every hundred queues."""
    counts: list[int] = []
    one = (
        f"SELECT %s AS place, (SELECT COUNT(*) FROM (SELECT 1 AS one FROM django_jobs_job WHERE queue = %s AND {_READY}"
        f" LIMIT {MOST_COUNTED + 1}) AS capped) AS number"
    )
    for start in range(0, len(names), _AT_ONCE):
        chunk = names[start : start + _AT_ONCE]
        values = [value for place, name in enumerate(chunk) for value in (place, name)]
        with connections[using].cursor() as cursor:
            cursor.execute(" UNION ALL ".join([one] * len(chunk)) + " ORDER BY place", values)
            counts += [number for _, number in cursor.fetchall()]
    return counts


class Minute(Func):
    """The minute of a time, as the number of minutes since 1970."""

    output_field = IntegerField()
    arity = 1

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="STRFTIME('%%%%s', %(expressions)s) / 60", **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "FLOOR(DATE_PART('epoch', %(expressions)s) / 60)::integer"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "TIMESTAMPDIFF(MINUTE, '1970-01-01', %(expressions)s)"
        return self.as_sql(compiler, connection, template=template, **extra)


@dataclass(frozen=True, kw_only=True)
class Newest:
    """What is known from the newest WINDOW jobs: how many ended in each minute of the last day, well and badly.

    `since` is when the oldest of them was submitted, when there are more jobs than that.
    """

    minutes: dict[datetime, tuple[int, int]]
    since: datetime | None


Floor = tuple[str, datetime] | None


def newest_figures(now: datetime, floor: Floor, alias: str | None = None) -> Newest:
    """Count the jobs that ended in the last 24 hours, by minute, among the newest WINDOW jobs."""
    using = alias or jobs_alias()
    jobs = Job.objects.using(using).filter(finished_at__gte=now - timedelta(days=1))
    if floor is not None:
        jobs = jobs.filter(pk__gte=floor[0])
    minutes: dict[datetime, tuple[int, int]] = {}
    counted = jobs.exclude(status=JobStatus.CANCELLED).order_by().values_list(Minute("finished_at"), "status")
    for since_1970, status, number in counted.annotate(number=Count("pk")):
        minute = datetime.fromtimestamp(since_1970 * 60, tz=UTC)
        good, bad = minutes.get(minute, (0, 0))
        minutes[minute] = (good + number, bad) if status == JobStatus.COMPLETED else (good, bad + number)
    return Newest(minutes=minutes, since=floor[1] if floor else None)


def window_floor(alias: str | None = None) -> Floor:
    """Return id and time of the oldest of the newest WINDOW jobs, or None when there are not more jobs than that."""
    newest = Job.objects.using(alias or jobs_alias()).order_by("-pk")
    return newest.values_list("pk", "created_at")[WINDOW - 1 : WINDOW].first()


def add_times(figures: dict[str, QueueFigures], floor: Floor, alias: str | None = None) -> None:
    """Fill in waits and runs, in seconds, of the newest SAMPLE jobs that completed."""
    using = alias or jobs_alias()
    done = Job.objects.using(using).filter(status=JobStatus.COMPLETED, started_at__isnull=False)
    if floor is not None:
        done = done.filter(pk__gte=floor[0])
    times = done.order_by("-pk").values_list("queue", "available_at", "started_at", "finished_at")
    for queue, available_at, started_at, finished_at in times[:SAMPLE]:
        one = figures.setdefault(queue, QueueFigures(name=queue))
        if started_at and finished_at:
            one.waits.append((started_at - available_at).total_seconds())
            one.runs.append((finished_at - started_at).total_seconds())


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that `percent` of them do not exceed (nearest rank), or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]
