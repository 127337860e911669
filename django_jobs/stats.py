"""Reads: statistics of queues and of the newest jobs. Each question is bounded: by an index, a cap, or the newest jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Count, Func, IntegerField

from django_jobs.db.dialects import dialect
from django_jobs.models import Job, JobStatus, Queue

WINDOW = 100_000
SAMPLE = 2_000


@dataclass(kw_only=True)
class QueueStats:
    """One queue now. `ready` stops at 10,001; `oldest` is when the job that waits longest became due."""

    name: str
    ready: int = 0
    oldest: datetime | None = None
    running: int = 0
    paused_at: datetime | None = None
    waits: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def waited(self, now: datetime) -> float:
        """Return how long the job that is ready longest has waited (seconds); 0 without one."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


def queue_stats(names: Sequence[str] = ()) -> dict[str, QueueStats]:
    """Return stats by queue: of the named ones, those with a ready or running job, and those with a row."""
    stats = {name: QueueStats(name=name) for name in names}

    def of(name: str) -> QueueStats:
        return stats.setdefault(name, QueueStats(name=name))

    for name, oldest in dialect().oldest_ready():
        one = of(name)
        one.oldest = min(oldest, one.oldest or oldest)
    waiting = [name for name, one in stats.items() if one.oldest]
    for name, number in zip(waiting, dialect().count_ready(waiting), strict=True):
        of(name).ready = number
    running = Job.objects.filter(status=JobStatus.RUNNING).order_by().values_list("queue")
    for name, number in running.annotate(number=Count("pk")):
        of(name).running = number
    for name, paused_at in Queue.objects.values_list("name", "paused_at"):
        of(name).paused_at = paused_at
    return dict(sorted(stats.items()))


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


def newest_stats(now: datetime, floor: Floor) -> Newest:
    """Count the jobs that ended in the last 24 hours, by minute, among the newest WINDOW jobs."""
    jobs = Job.objects.filter(finished_at__gte=now - timedelta(days=1))
    if floor is not None:
        jobs = jobs.filter(pk__gte=floor[0])
    minutes: dict[datetime, tuple[int, int]] = {}
    counted = jobs.exclude(status=JobStatus.CANCELLED).order_by().values_list(Minute("finished_at"), "status")
    for since_1970, status, number in counted.annotate(number=Count("pk")):
        minute = datetime.fromtimestamp(since_1970 * 60, tz=UTC)
        good, bad = minutes.get(minute, (0, 0))
        minutes[minute] = (good + number, bad) if status == JobStatus.COMPLETED else (good, bad + number)
    return Newest(minutes=minutes, since=floor[1] if floor else None)


def window_floor() -> Floor:
    """Return id and time of the oldest of the newest WINDOW jobs, or None when there are not more jobs than that."""
    newest = Job.objects.order_by("-pk")
    return newest.values_list("pk", "created_at")[WINDOW - 1 : WINDOW].first()


def add_times(stats: dict[str, QueueStats], floor: Floor) -> None:
    """Fill in waits and runs, in seconds, of the newest SAMPLE jobs that completed."""
    done = Job.objects.filter(status=JobStatus.COMPLETED, started_at__isnull=False)
    if floor is not None:
        done = done.filter(pk__gte=floor[0])
    times = done.order_by("-pk").values_list("queue", "available_at", "started_at", "finished_at")
    for queue, available_at, started_at, finished_at in times[:SAMPLE]:
        one = stats.setdefault(queue, QueueStats(name=queue))
        if started_at and finished_at:
            one.waits.append((started_at - available_at).total_seconds())
            one.runs.append((finished_at - started_at).total_seconds())


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the value that `percent` of them do not exceed (nearest rank), or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]
