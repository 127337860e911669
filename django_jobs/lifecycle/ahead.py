"""What comes next: the next scheduled job and the next tick, asked in one statement, because idle processes ask each second."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Subquery

from django_jobs.models import Job, JobStatus, Schedule, WorkerProcess

from .transactions import DbNow, jobs_alias


def seconds_ahead(process_id: str, alias: str | None = None) -> tuple[float | None, float | None]:
    """Return the seconds until the next scheduled job is due, and until the next tick; None where there is none.

    Negative when it is overdue by the database's clock. The row of the asking process is what carries the question.
    """
    using = alias or jobs_alias()
    due = Job.objects.using(using).filter(status=JobStatus.SCHEDULED).order_by("available_at")
    ticks = Schedule.objects.using(using).filter(enabled=True, next_run_at__isnull=False).order_by("next_run_at")
    row = (
        WorkerProcess.objects.using(using)
        .filter(pk=process_id)
        .values_list(Subquery(due.values("available_at")[:1]), Subquery(ticks.values("next_run_at")[:1]), DbNow())
        .first()
    )
    return (None, None) if row is None else (_between(row[2], row[0]), _between(row[2], row[1]))


def _between(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else (moment - now).total_seconds()
