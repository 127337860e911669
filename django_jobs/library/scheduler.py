"""Schedules that are made at run time: once, at an interval, by cron. What is wrong with one is an InvalidJob."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django_jobs.db.connections import check_holds_jobs, on_database
from django_jobs.handlers import registry
from django_jobs.models import Schedule
from django_jobs.scheduling.store import create_schedule, delete_schedule
from django_jobs.submission import unix_moment


class Scheduler:
    """Create and cancel schedules; worker processes make their ticks.

    Args:
        queue: where the jobs go unless a call says otherwise: a name, or a `JobQueue`, whose handlers are known too.
        using: the alias of the database that holds the schedules and their jobs; that of a `JobQueue`, else of the routers.
    """

    def __init__(self, queue: Any = None, *, using: str | None = None) -> None:
        if using is not None:
            check_holds_jobs(using)
        self._using: str | None = using if using is not None else getattr(queue, "using", None)
        self._queue: str | None = getattr(queue, "name", queue)
        self._handlers = getattr(queue, "handlers", registry)

    def schedule_once(
        self,
        job_id: str,
        job_type: str,
        run_at: datetime | float,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job at an aware datetime, or Unix seconds; a past one at once. `job_id` names the schedule."""
        at = unix_moment("run_at", run_at) if isinstance(run_at, int | float) else run_at
        return self._create(job_id, job_type, payload, {"at": at, **options})

    def schedule_interval(
        self,
        job_id: str,
        job_type: str,
        interval: timedelta | float,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job every `interval` (seconds or a timedelta), the first time one interval from now."""
        return self._create(job_id, job_type, payload, {"every": interval, **options})

    def schedule_cron(
        self,
        job_id: str,
        job_type: str,
        cron: str,
        payload: Mapping[str, Any] | None = None,
        *,
        timezone: str | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job by a cron expression, in a time zone (the site's by default)."""
        return self._create(job_id, job_type, payload, {"cron": cron, "timezone": timezone, **options})

    def cancel(self, job_id: str) -> bool:
        """Delete a schedule; return False when there is none. The jobs that it submitted stay."""
        with on_database(self._using):
            return delete_schedule(job_id)

    def _create(self, name: str, job_type: str, payload: Mapping[str, Any] | None, options: dict[str, Any]) -> Schedule:
        options = {"queue": self._queue, **options}
        with on_database(self._using):
            return create_schedule(name, job_type, payload=payload, handlers=self._handlers, **options)
