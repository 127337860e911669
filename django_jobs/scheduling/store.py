"""The rows of schedules: create and delete, enable and disable, and keep the declared ones as the code says."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from django.db import IntegrityError, models

from django_jobs.conf import NAME, get_settings, this_site
from django_jobs.db.connections import jobs_alias, jobs_connection, jobs_databases, use_database, usual_alias
from django_jobs.db.transactions import database_now, transactional
from django_jobs.encryption import carried
from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.handlers import Registry, encrypts_type, payload_problems, registry, unknown_job_type
from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.models.fields import DbNow
from django_jobs.models.schedule import ScheduleKind
from django_jobs.payloads import sealed
from django_jobs.submission import DEFAULT_QUEUE

from .cron import no_zone_data
from .spec import Spec, check_schedule, declared_for

logger = logging.getLogger("django_jobs")
NO_LONGER_DECLARED = "no longer declared in the code"


def create_schedule(
    name: str,
    job_type: str,
    *,
    payload: Mapping[str, Any] | None = None,
    handlers: Registry | None = registry,
    **options: Any,
) -> Schedule:
    """Write a schedule and return it.

    Args:
        handlers: who must know the job type; None: its handler lives in another process.
        options: exactly one of `cron`, `every` and `at`, and the other options of `check_schedule`.

    Raises InvalidJob with every problem of the call, and when the name is taken; nothing is written then.
    """
    spec = check_schedule(name, job_type, payload=payload, handlers=handlers, **options)
    if Schedule.objects.filter(name=name).exists():
        raise _taken(name)
    try:
        return _create(spec)
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
def delete_made(name: str) -> None:
    """Delete a schedule that somebody made by hand, as `delete_schedule` does; raise ScheduleNotFound, and InvalidJob for others.

    One that the code declares would be back with the next `migrate`.
    """
    row = _get(name)
    if row.declared:
        raise InvalidJob(f"schedule {name!r} is declared in the code; take it out there, or disable it")
    row.delete(using=jobs_alias())


@transactional
def save_schedule(row: Schedule) -> None:
    """Write a schedule that somebody made or changed by hand; one that is enabled ticks by its new timing from now on.

    Raises InvalidJob with every problem, and when the code declares the schedule: the next `migrate` would write what that says.
    Raises ScheduleNotFound when it was deleted meanwhile.
    """
    row.checked(registry)
    if row.pk is not None:
        now = Schedule.objects.filter(pk=row.pk).select_for_update().first()
        if now is None:
            raise ScheduleNotFound(row.name)
        if now.declared:
            raise InvalidJob(f"schedule {now.name!r} is declared in the code; change it there")
        row.take_progress_of(now)
    if row.enabled:
        row.last_error = ""
    row.save(using=jobs_alias())


@transactional
def enable(name: str) -> None:
    """Let a schedule tick again from now on; nothing is caught up, and an enabled one is left as it is.

    Raises ScheduleNotFound, and InvalidJob when the row is broken or a one-off whose time is over.
    """
    row = _get(name)
    if row.enabled:
        return
    now = database_now()
    with payload_as_known_here(row):
        first = row.checked().timing.first(now)
    if row.kind == ScheduleKind.ONCE and first <= now:
        raise InvalidJob(f"schedule {name!r} was due at {first:%Y-%m-%d %H:%M:%S} UTC; give it another time")
    Schedule.objects.filter(pk=row.pk).update(enabled=True, next_run_at=first, last_error="", updated_at=DbNow())


@transactional
def disable(name: str) -> None:
    """Stop a schedule from ticking; the jobs that it submitted stay. Raises ScheduleNotFound.

    It has no error then: one with an error is enabled by the next change of its declaration.
    """
    disable_rows(Schedule.objects.filter(pk=_get(name).pk), "")


@contextmanager
def payload_as_known_here(row: Schedule) -> Iterator[None]:
    """Let the payload of a schedule whose handler is at another site stay as it is stored, until the block ends.

    That site may have encrypted it, under keys that are not this one's.
    """
    if registry.find(row.job_type) is not None:
        yield
        return
    with carried():
        row.payload = Schedule.objects.filter(pk=row.pk).values_list("payload", flat=True).get()
        yield


class ScheduleState(NamedTuple):
    """A schedule as it was elsewhere: its columns, and the last tick that has a job: its time and the job's id."""

    columns: dict[str, Any]
    last_tick: tuple[datetime, str] | None


def is_untouched(row: Schedule) -> bool:
    """Say whether a row is as `migrate` wrote it for the code: it has not ticked."""
    return row.declared and row.last_run_at is None and not row.ticks.exists()


@transactional
def restore_schedules(states: Collection[ScheduleState]) -> None:
    """Write schedules as they were elsewhere; a declared one that has not ticked here takes the state on.

    A row keeps the site that declared it here. Raises InvalidJob when another row has the name.
    """
    for columns, last_tick in states:
        row = Schedule.objects.filter(name=columns["name"]).select_for_update().first()
        if row is None:
            row = Schedule.objects.create(**columns)
        elif is_untouched(row):
            state = {name: value for name, value in columns.items() if name != "site"}
            if encrypts_type(row.job_type):
                state["payload"] = sealed(state["payload"])
            Schedule.objects.filter(pk=row.pk).update(**state, updated_at=DbNow())
        else:
            raise _taken(row.name)
        if last_tick is not None and Job.objects.filter(pk=last_tick[1]).exists():
            ScheduleTick.objects.create(schedule_id=row.pk, due_at=last_tick[0], job_id=last_tick[1])


def sync_declared() -> None:
    """Write the schedules that the code declares; an operator's `enabled` is kept, and so is the time of the next tick.

    One that cannot be written is logged and does not stop the others. A row that another site declares is that site's, until
    its code no longer declares it.
    """
    rows = Schedule.objects.in_bulk([spec.name for spec in _declared_here()], field_name="name")
    for spec in _declared_here():
        row = rows.get(spec.name)
        if not spec.timing.is_known_here:
            logger.error(
                "schedule %r is declared and was not written: %s", spec.name, no_zone_data(spec.timing.timezone)
            )
        elif registry.find(spec.job_type) is None:
            problem = unknown_job_type(spec.job_type, registry.job_types())
            logger.error("schedule %r is declared and was not written: %s", spec.name, problem)
        elif problems := payload_problems(registry.find(spec.job_type), spec.payload):
            logger.error("schedule %r is declared and was not written: %s", spec.name, "; ".join(problems))
        elif row is not None and not row.declared:
            logger.warning("schedule %r is declared, but a row of that name was made by hand and is kept", spec.name)
        else:
            complete = _with_job_options(spec)
            if row is None or row.last_error == NO_LONGER_DECLARED or _differs(row, complete):
                _write(complete)
    _plan_forgotten()


def sync_after_migrate(migrated: str) -> None:
    """Write the declared schedules once `migrate` has made the tables in the jobs' database, and disable undeclared ones.

    A worker does not disable: in the middle of a deployment it may be the old code that starts one more time.
    """
    if migrated not in jobs_databases():
        return
    with use_database(migrated):
        if Schedule._meta.db_table in jobs_connection().introspection.table_names():
            sync_declared()
            disable_undeclared()


def _declared_here() -> list[Spec]:
    """Return the schedules that the code declares for this database: by its name, or without one for that of the routers."""
    is_usual = get_settings().DATABASES is None or jobs_alias() == usual_alias()
    return declared_for(jobs_alias(), is_usual=is_usual)


def disable_undeclared() -> None:
    """Disable the rows of schedules that the code of this site declared once and no longer does."""
    names = [spec.name for spec in _declared_here()]
    gone = Schedule.objects.declared_here().filter(enabled=True).exclude(name__in=names)
    disabled = sorted(gone.values_list("name", flat=True))
    if disable_rows(gone, NO_LONGER_DECLARED):
        logger.warning(
            "disabled the schedules that the code of the site %r no longer declares: %s; if another site on this database"
            " declares them, give each its own %s['SITE']",
            this_site(), ", ".join(disabled), NAME,
        )  # fmt: skip


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
        _create(spec, declared=True, site=this_site())
        return
    if row.site != this_site() and row.last_error != NO_LONGER_DECLARED:
        logger.error(
            "schedule %r is declared and was not written: the site %r declares one of that name; rename one of the two",
            spec.name, row.site,
        )  # fmt: skip
        return
    # What a tick or a removal disabled, a new declaration mends; what an operator disabled stays so.
    enabled = row.enabled or bool(row.last_error)
    starts_anew = row.timing != spec.timing or not row.enabled
    for column, value in spec.columns().items():
        setattr(row, column, value)
    row.enabled, row.last_error, row.site = enabled, "", this_site()
    if enabled and starts_anew:
        row.next_run_at = spec.timing.first(database_now())
    row.save(using=jobs_alias())


@transactional
def _create(spec: Spec, **columns: Any) -> Schedule:
    first = spec.timing.first(database_now())
    return Schedule.objects.create(**spec.columns(), **columns, next_run_at=first)


def _with_job_options(spec: Spec) -> Spec:
    """Return a declared schedule with the options that its jobs have at this site.

    Any process makes its ticks, also one of another site on this database, which has neither the handler nor these settings.
    """
    handler = registry.get(spec.job_type)
    queue = spec.queue or handler.queue or DEFAULT_QUEUE
    options = registry.job_options(handler, queue)
    return replace(
        spec,
        queue=queue,
        priority=options.priority if spec.priority is None else spec.priority,
        max_retries=options.max_retries if spec.max_retries is None else spec.max_retries,
        timeout_seconds=options.timeout_seconds if spec.timeout_seconds is None else spec.timeout_seconds,
    )


def _differs(row: Schedule, spec: Spec) -> bool:
    return any(getattr(row, column) != value for column, value in spec.columns().items())


def _plan_forgotten() -> None:
    """Find the next tick of enabled rows that have none, such as rows that were written in bulk."""
    for row in Schedule.objects.known_here().filter(enabled=True, next_run_at__isnull=True):
        with payload_as_known_here(row):
            row.save(using=jobs_alias())


def _get(name: str) -> Schedule:
    row = Schedule.objects.filter(name=name).select_for_update().first()
    if row is None:
        raise ScheduleNotFound(name)
    return row


def _taken(name: str) -> InvalidJob:
    return InvalidJob(f"schedule {name!r} exists already; choose another name, or cancel it first")
