"""Reads: what is due now, and when the next thing will be. Times are the database's; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from django.db.models import QuerySet, Subquery

from .db.dialects import dialect
from .models import Job, JobStatus, Queue, Schedule, WorkerProcess
from .models.fields import DbNow


def seconds_until_due() -> float | None:
    """Return the seconds until the next scheduled job is due, negative when it is overdue; None when there is none."""
    return _seconds(_scheduled(), "available_at")


def seconds_until_tick() -> float | None:
    """Return the seconds until the next tick of a schedule, negative when it is overdue; None when there is none."""
    return _seconds(_ticking(), "next_run_at")


def seconds_ahead(process_id: str) -> tuple[float | None, float | None]:
    """Return `seconds_until_due` and `seconds_until_tick`, asked in one statement because idle processes ask each second.

    The row of the asking process is what carries the question; without one both are None.
    """
    row = (
        WorkerProcess.objects.filter(pk=process_id)
        .values_list(
            Subquery(_scheduled().values("available_at")[:1]), Subquery(_ticking().values("next_run_at")[:1]), DbNow()
        )
        .first()
    )
    return (None, None) if row is None else (_between(row[2], row[0]), _between(row[2], row[1]))


def queues_with_work() -> list[str]:
    """Return the queues that have a ready job."""
    return dialect().queues_with_work()


def known_queues() -> set[str]:
    """Return every queue that a row or a job names."""
    rows = Queue.objects.values_list("name", flat=True)
    return {*rows, *Job.objects.order_by().values_list("queue", flat=True).distinct()}


def has_due_work(queues: Iterable[str] | None = None) -> bool:
    """Say whether a job of the queues (None: any queue that is not paused) is ready, or it or a schedule is due."""
    if Schedule.objects.due().exists():
        return True
    jobs = Job.objects.exclude(queue__in=Queue.objects.paused_names())
    if queues is not None:
        jobs = jobs.in_queues(queues)
    return jobs.ready().exists() or jobs.due().exists()


def _scheduled() -> QuerySet[Job]:
    return Job.objects.filter(status=JobStatus.SCHEDULED).order_by("available_at")


def _ticking() -> QuerySet[Schedule]:
    return Schedule.objects.filter(enabled=True, next_run_at__isnull=False).order_by("next_run_at")


def _seconds(rows: QuerySet[Job] | QuerySet[Schedule], column: str) -> float | None:
    row = rows.values_list(column, DbNow()).first()
    return None if row is None else _between(row[1], row[0])


def _between(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else (moment - now).total_seconds()
