"""The rows of schedules: create and delete, enable and disable, and keep the declared ones as the code says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, models

from django_jobs.db.connections import jobs_alias, jobs_connection
from django_jobs.db.transactions import database_now, transactional
from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.handlers import Registry, registry, unknown_job_type
from django_jobs.models import Schedule
from django_jobs.models.fields import DbNow
from django_jobs.models.schedule import ScheduleKind

from .spec import Spec, check_schedule, declared

logger = logging.getLogger("django_jobs")
NO_LONGER_DECLARED = "no longer declared in the code"


def create_schedule(
    name: str,
    job_type: str,
    *,
    payload: Mapping[str, Any] | None = None,
    handlers: Registry | None = registry,
    **said: Any,
) -> Schedule:
    """Write a schedule and return it.

    Args:
        handlers: who must know the job type; None: its handler lives in another process.
        said: exactly one of `cron`, `every` and `at`, and the options of `schedules.check_schedule`.

    Raises InvalidJob with every problem of the call, and when the name is taken; nothing is written then.
    """
    spec = check_schedule(name, job_type, payload=payload, handlers=handlers, **said)

    if Schedule.objects.filter(name=name).exists():
        raise _taken(name)
    try:
        return _create(spec, declared=False)
    except IntegrityError:
        if Schedule.objects.filter(name=name).exists():
            raise _taken(name) from None
        raise


@transactional
def delete_schedule(name: str) -> bool:
    """Delete a schedule; False when there is none. The jobs that it submitted stay."""
    # Locked first: a tick that is being made would leave a row behind that names it.
    row = Schedule.objects.filter(name=name).select_for_update().first()
    if row is None:
        return False
    row.delete(using=jobs_alias())
    return True


@transactional
def enable(name: str) -> None:
    """Let a schedule tick again from now on; nothing is caught up, and an enabled one is left as it is.

    Raises ScheduleNotFound, and InvalidJob when the row is broken or a one-off whose time is over.
    """
    row = _get(name)
    if row.enabled:
        return
    now = database_now()
    first = row.checked().timing.first(now)
    if row.kind == ScheduleKind.ONCE and first <= now:
        raise InvalidJob(f"schedule {name!r} was due at {first:%Y-%m-%d %H:%M:%S} UTC; give it another time")
    row.enabled, row.next_run_at, row.last_error = True, first, ""
    row.save(using=jobs_alias())


@transactional
def disable(name: str) -> None:
    """Stop a schedule from ticking; the jobs that it submitted stay. Raises ScheduleNotFound."""
    row = _get(name)
    row.enabled = False
    row.save(using=jobs_alias())


def sync_declared() -> None:
    """Write the schedules that the code declares; an operator's `enabled` is kept, and so is the time of the next tick.

    One that cannot be written is logged and does not stop the others.
    """
    rows = Schedule.objects.in_bulk([spec.name for spec in declared()], field_name="name")
    for spec in declared():
        row = rows.get(spec.name)
        if registry.find(spec.job_type) is None:
            problem = unknown_job_type(spec.job_type, registry.job_types())
            logger.error("schedule %r is declared and was not written: %s", spec.name, problem)
        elif row is not None and not row.declared:
            logger.warning("schedule %r is declared, but a row of that name was made by hand and is kept", spec.name)
        elif row is None or _differs(row, spec) or row.last_error == NO_LONGER_DECLARED:
            _write(spec)
    _plan_forgotten()


def sync_after_migrate(migrated: str) -> None:
    """Write the declared schedules once `migrate` has made the tables in the jobs' database, and disable undeclared ones.

    A worker does not disable: in the middle of a deployment it may be the old code that starts one more time.
    """
    if migrated == jobs_alias() and Schedule._meta.db_table in jobs_connection().introspection.table_names():
        sync_declared()
        disable_undeclared()


def disable_undeclared() -> None:
    """Disable the rows of schedules that the code declared once and no longer does."""
    names = [spec.name for spec in declared()]
    gone = Schedule.objects.filter(declared=True, enabled=True).exclude(name__in=names)
    if disable_rows(gone, NO_LONGER_DECLARED):
        logger.info("schedules that are no longer declared in the code were disabled")


@transactional
def disable_rows(rows: models.QuerySet[Schedule], why: str) -> int:
    """Stop schedules from ticking, each with a `last_error` that says why; return how many."""
    return rows.update(enabled=False, next_run_at=None, last_error=why, updated_at=DbNow())


def _write(spec: Spec) -> None:
    try:
        _create_or_update(spec)
    except IntegrityError:
        # Another process has just written the same one.
        if not Schedule.objects.filter(name=spec.name).exists():
            raise


@transactional
def _create_or_update(spec: Spec) -> None:
    row = Schedule.objects.filter(name=spec.name).select_for_update().first()
    if row is None:
        _create(spec, declared=True)
        return
    # What a tick or a removal disabled, a new declaration mends; what an operator disabled stays so.
    enabled = row.enabled or bool(row.last_error)
    starts_anew = row.timing != spec.timing or not row.enabled
    for column, value in spec.columns().items():
        setattr(row, column, value)
    row.enabled, row.last_error = enabled, ""
    if enabled and starts_anew:
        row.next_run_at = spec.timing.first(database_now())
    row.save(using=jobs_alias())


@transactional
def _create(spec: Spec, *, declared: bool) -> Schedule:
    first = spec.timing.first(database_now())
    return Schedule.objects.create(**spec.columns(), declared=declared, next_run_at=first)


def _differs(row: Schedule, spec: Spec) -> bool:
    return any(getattr(row, column) != value for column, value in spec.columns().items())


def _plan_forgotten() -> None:
    """Find the next tick of enabled rows that have none, such as rows that were written in bulk."""
    for row in Schedule.objects.filter(enabled=True, next_run_at__isnull=True):
        row.save(using=jobs_alias())


def _get(name: str) -> Schedule:
    row = Schedule.objects.filter(name=name).select_for_update().first()
    if row is None:
        raise ScheduleNotFound(name)
    return row


def _taken(name: str) -> InvalidJob:
    return InvalidJob(f"schedule {name!r} exists already; choose another name, or cancel it first")
