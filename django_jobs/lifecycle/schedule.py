"""Tick: submit the jobs of schedules that are due. Any process may do it at any time; each tick is made once.

A tick is one transaction under the lock of the schedule's row: the tick's row, its job and the next tick's time are
committed together, or none of them is.
"""

from __future__ import annotations

import logging
import random
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.db import models

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.models.job import LIVE
from django_jobs.models.schedule import CatchUp, Overlap
from django_jobs.newjob import NewJob
from django_jobs.schedules import ScheduleNotFound, Spec
from django_jobs.text import describe_exception

from .schedule_rows import create_schedule, delete_schedule, disable, enable, sync_declared
from .submit import submit_many
from .transactions import DbNow, is_away, jobs_alias, run_transaction

logger = logging.getLogger("django_jobs")
SCHEDULES_PER_CALL = 100
TICKS_PER_TRANSACTION = 100
MOST_CAUGHT_UP = 10_000
ON_TIME_SECONDS = 60.0  # "skip" takes a tick that is no later than this for one that was not missed
REST_WHEN_BUSY = 0.05
_MICROSECOND = timedelta(microseconds=1)

__all__ = [
    "create_schedule",
    "delete_schedule",
    "disable",
    "enable",
    "run_schedule_now",
    "seconds_until_tick",
    "sync_declared",
    "tick",
]


def seconds_until_tick(alias: str | None = None) -> float | None:
    """Return the seconds until the next tick by the database's clock, negative when it is overdue; None without one."""
    row = (
        Schedule.objects.using(alias or jobs_alias())
        .filter(enabled=True, next_run_at__isnull=False)
        .order_by("next_run_at")
        .values_list("next_run_at", DbNow())
        .first()
    )
    return None if row is None else float((row[0] - row[1]).total_seconds())


def tick(alias: str | None = None, limit: int = SCHEDULES_PER_CALL) -> float | None:
    """Make the ticks of up to `limit` due schedules; return the seconds until the next tick, or None without one.

    A schedule that cannot tick is disabled, with the reason in its `last_error`; the others go on.
    """
    using = alias or jobs_alias()
    rest = seconds_until_tick(using)
    if rest is None or rest > 0:
        return rest
    due = Schedule.objects.using(using).due().order_by("next_run_at").values_list("pk", flat=True)
    made = [_tick_one(pk, using) for pk in list(due[:limit])]
    rest = seconds_until_tick(using)
    if rest is None or rest > 0:
        return rest
    # What is still due although nothing could be had is in another process's hands.
    return 0.0 if any(made) else REST_WHEN_BUSY


def run_schedule_now(name: str, alias: str | None = None) -> Job:
    """Submit the schedule's job at once, whether it is enabled or not; its next tick stays as it is.

    Raises ScheduleNotFound, and InvalidJob when the row is broken.
    """
    using = alias or jobs_alias()

    def move() -> Job:
        row = _locked(Schedule.objects.using(using).filter(name=name), skip_locked=False)
        if row is None:
            raise ScheduleNotFound(name)
        row.checked()
        moment: datetime = row.now
        while ScheduleTick.objects.using(using).filter(schedule_id=row.pk, due_at=moment).exists():
            moment += _MICROSECOND
        return _submit(row, [moment], using)[0]

    return run_transaction(move, using)


def _tick_one(pk: int, using: str) -> bool:
    """Make what is due of one schedule; False when another process has it. An error disables the schedule alone."""
    try:
        return run_transaction(lambda: _take(pk, using), using)
    except Exception as error:
        if is_away(error):
            raise
        _disable_broken(pk, error, using)
        return True


def _take(pk: int, using: str) -> bool:
    row = _locked(Schedule.objects.using(using).due().filter(pk=pk), skip_locked=True)
    if row is None:
        return False
    due: datetime = row.next_run_at
    spec = row.checked()
    wanted, following = _plan(spec, due, row.now)
    done = ScheduleTick.objects.using(using).filter(schedule_id=pk, due_at__in=wanted)
    taken = set(done.values_list("due_at", flat=True))  # the clock in the row was set back by hand
    ticks = [moment for moment in wanted if moment not in taken]
    if row.overlap == Overlap.SKIP and ticks:
        ticks = [] if _last_job_is_live(pk, using) else ticks[:1]
    if ticks:
        _submit(row, ticks, using)
    changes: dict[str, Any] = {"next_run_at": following, "last_error": "", "updated_at": DbNow()}
    if ticks:
        changes["last_run_at"] = ticks[-1]
    if following is None:
        changes["enabled"] = False
        if not wanted:
            changes["last_error"] = (
                f"missed: it was due at {due:%Y-%m-%d %H:%M:%S} UTC, and its catch-up policy skipped it"
            )
    Schedule.objects.using(using).filter(pk=pk).update(**changes)
    return True


def _plan(spec: Spec, due: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """Return the ticks that want a job, oldest first, and the time of the next tick, None after a one-off."""
    timing = spec.timing
    if spec.catch_up == CatchUp.ALL:
        begin = timing.bounded(due, now, MOST_CAUGHT_UP)
        missed = list(islice(timing.ticks(begin, now), TICKS_PER_TRANSACTION))
        following = timing.following(missed[-1], missed[-1])
    else:
        latest = timing.latest(due, now)
        # More than one is due: the site was down, and "skip" waits for the next one.
        missed = [] if spec.catch_up == CatchUp.SKIP and latest > due else [latest]
        following = timing.following(latest, now)
    grace = spec.grace_seconds
    if grace is None and spec.catch_up == CatchUp.SKIP:
        grace = ON_TIME_SECONDS
    if grace is not None:
        oldest = now - timedelta(seconds=grace)
        missed = [moment for moment in missed if moment >= oldest]
    return missed, following


def _submit(row: Schedule, ticks: list[datetime], using: str) -> list[Job]:
    """Write the job and the tick's row for each moment."""
    jobs = submit_many([_new_job(row, moment) for moment in ticks], any_type=True)
    ScheduleTick.objects.using(using).bulk_create(
        ScheduleTick(schedule_id=row.pk, due_at=moment, job_id=job.pk) for moment, job in zip(ticks, jobs, strict=True)
    )
    return jobs


def _new_job(row: Schedule, moment: datetime) -> NewJob:
    options: dict[str, Any] = {
        "queue": row.queue or None,
        "priority": row.priority,
        "max_retries": row.max_retries,
        "timeout_seconds": row.timeout_seconds,
        "metadata": {**row.metadata, "schedule": row.name, "tick": moment.isoformat()},
    }
    if row.jitter_seconds:
        late = random.uniform(0, row.jitter_seconds)  # noqa: S311  spread, no secret
        options["scheduled_at"] = moment + timedelta(seconds=late)
    return NewJob(row.job_type, row.payload, **options)


def _last_job_is_live(pk: int, using: str) -> bool:
    made = ScheduleTick.objects.using(using).filter(schedule_id=pk, job__isnull=False)
    status = made.order_by("-due_at").values_list("job__status", flat=True).first()
    return status in LIVE


def _disable_broken(pk: int, error: Exception, using: str) -> None:
    said = str(error) if isinstance(error, InvalidJob) else describe_exception(error)
    rows = Schedule.objects.using(using).filter(pk=pk, enabled=True)
    changed = run_transaction(
        lambda: rows.update(enabled=False, next_run_at=None, last_error=said, updated_at=DbNow()), using
    )
    if changed:
        name = Schedule.objects.using(using).filter(pk=pk).values_list("name", flat=True).first()
        logger.error("schedule %r cannot tick and was disabled: %s", name, said)


def _locked(rows: models.QuerySet[Schedule], *, skip_locked: bool) -> Any:
    """Return the one row, locked, with the database's time as `now`; None when it is gone or another process has it."""
    return rows.annotate(now=DbNow()).select_for_update(skip_locked=skip_locked).first()
