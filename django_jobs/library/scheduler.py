"""Schedules that are made at run time: once, at an interval, by cron. What is wrong with one is an InvalidJob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypeVar, cast

from django_jobs.db.connections import check_holds_jobs, use_database, usual_alias
from django_jobs.handlers import registry
from django_jobs.models import Schedule
from django_jobs.scheduling.store import create_schedule, delete_schedule
from django_jobs.submission import unix_moment

F = TypeVar("F", bound=Callable[..., Any])


def _named(method: F) -> F:
    """Let `job_id` be another word for a schedule's `name`."""

    @wraps(method)
    def run(self: Scheduler, *args: Any, **given: Any) -> Any:
        if "job_id" in given:
            given.setdefault("name", given.pop("job_id"))
        return method(self, *args, **given)

    return cast(F, run)


class Scheduler:
    """Create and cancel schedules by name (`job_id` is accepted for it); worker processes make their ticks.

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

    @_named
    def schedule_once(
        self,
        name: str,
        job_type: str,
        run_at: datetime | float,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job at an aware datetime, or Unix seconds; a past one at once."""
        at = unix_moment("run_at", run_at) if isinstance(run_at, int | float) else run_at
        return self._create(name, job_type, payload, {"at": at, **options})

    @_named
    def schedule_interval(
        self,
        name: str,
        job_type: str,
        interval: timedelta | float,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job every `interval` (seconds or a timedelta), the first time one interval from now."""
        return self._create(name, job_type, payload, {"every": interval, **options})

    @_named
    def schedule_cron(
        self,
        name: str,
        job_type: str,
        cron: str,
        payload: Mapping[str, Any] | None = None,
        *,
        timezone: str | None = None,
        **options: Any,
    ) -> Schedule:
        """Submit a job by a cron expression, in a time zone (the site's by default)."""
        return self._create(name, job_type, payload, {"cron": cron, "timezone": timezone, **options})

    @_named
    def cancel(self, name: str) -> bool:
        """Delete a schedule; return False when there is none. The jobs that it submitted stay."""
        with use_database(self._using or usual_alias()):
            return delete_schedule(name)

    def _create(self, name: str, job_type: str, payload: Mapping[str, Any] | None, options: dict[str, Any]) -> Schedule:
        options = {"queue": self._queue, **options}
        with use_database(self._using or usual_alias()):
            return create_schedule(name, job_type, payload=payload, handlers=self._handlers, **options)
