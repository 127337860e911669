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

from django_jobs.db.errors import is_away
from django_jobs.db.transactions import transactional
from django_jobs.due import seconds_until_tick
from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.lifecycle.submit import submit_many
from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.models.fields import DbNow
from django_jobs.models.job import LIVE
from django_jobs.models.schedule import CatchUp, Overlap
from django_jobs.submission import NewJob
from django_jobs.text import describe_exception

from .spec import Spec
from .store import disable_rows, payload_as_known_here

logger = logging.getLogger("django_jobs")
SCHEDULES_PER_CALL = 100
TICKS_PER_TRANSACTION = 100
MOST_CAUGHT_UP = 10_000
ON_TIME_SECONDS = 60.0  # "skip" takes a tick that is no later than this for one that was not missed
REST_WHEN_BUSY = 0.05
MOST_LOOKED_AT = 1_000  # of a schedule's ticks, for a job that is still live
_MICROSECOND = timedelta(microseconds=1)


def tick() -> float | None:
    """Make the ticks of up to SCHEDULES_PER_CALL due schedules; return the seconds until the next tick, or None without one.

    A schedule that cannot tick is disabled, with the reason in its `last_error`; the others go on.
    """
    rest = seconds_until_tick()
    if rest is None or rest > 0:
        return rest
    due = Schedule.objects.due().order_by("next_run_at").values_list("pk", flat=True)
    made = [_tick_one(pk) for pk in list(due[:SCHEDULES_PER_CALL])]
    rest = seconds_until_tick()
    if rest is None or rest > 0:
        return rest
    # What is still due although nothing could be had is in another process's hands.
    return 0.0 if any(made) else REST_WHEN_BUSY


@transactional
def run_schedule_now(name: str) -> Job:
    """Submit the schedule's job at once, whether it is enabled or not; its next tick stays as it is.

    Raises ScheduleNotFound, and InvalidJob when the row is broken.
    """
    row = _locked(Schedule.objects.filter(name=name), skip_locked=False)
    if row is None:
        raise ScheduleNotFound(name)
    with payload_as_known_here(row):
        row.checked()
        moment: datetime = row.now
        while ScheduleTick.objects.filter(schedule_id=row.pk, due_at=moment).exists():
            moment += _MICROSECOND
        row.jitter_seconds = 0.0
        return _submit(row, [moment])[0]


def _tick_one(pk: int) -> bool:
    """Make what is due of one schedule; False when another process has it. An error disables the schedule alone."""
    try:
        return _take(pk)
    except Exception as error:
        if is_away(error):
            raise
        _disable_broken(pk, error)
        return True


@transactional
def _take(pk: int) -> bool:
    row = _locked(Schedule.objects.due().filter(pk=pk), skip_locked=True)
    if row is None:
        return False
    with payload_as_known_here(row):
        _take_locked(row)
    return True


def _take_locked(row: Any) -> None:
    pk, due = row.pk, row.next_run_at
    spec = row.checked()
    wanted, following = _plan(spec, due, row.now)
    done = ScheduleTick.objects.filter(schedule_id=pk, due_at__in=wanted)
    taken = set(done.values_list("due_at", flat=True))  # the clock in the row was set back by hand
    ticks = [moment for moment in wanted if moment not in taken]
    if row.overlap == Overlap.SKIP and ticks:
        ticks = [] if _has_live_job(pk) else ticks[:1]
    if ticks:
        _submit(row, ticks)
    changes: dict[str, Any] = {"next_run_at": following, "last_error": "", "updated_at": DbNow()}
    if ticks:
        changes["last_run_at"] = ticks[-1]
    if following is None:
        changes["enabled"] = False
        if not wanted:
            changes["last_error"] = (
                f"missed: it was due at {due:%Y-%m-%d %H:%M:%S} UTC, and its catch-up policy skipped it"
            )
    Schedule.objects.filter(pk=pk).update(**changes)


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


def _submit(row: Schedule, ticks: list[datetime]) -> list[Job]:
    """Write the job and the tick's row for each moment."""
    jobs = submit_many([_new_job(row, moment) for moment in ticks], any_type=True)
    ScheduleTick.objects.bulk_create(
        ScheduleTick(schedule_id=row.pk, due_at=moment, job_id=job.pk) for moment, job in zip(ticks, jobs, strict=True)
    )
    return jobs


def _new_job(row: Schedule, moment: datetime) -> NewJob:
    options: dict[str, Any] = {
        "queue": row.queue or None,
        "priority": row.priority,
        "max_retries": row.max_retries,
        "timeout_seconds": row.timeout_seconds,
        "limit_key": row.limit_key,
        "fair_key": row.fair_key,
        "metadata": {**row.metadata, "schedule": row.name, "tick": moment.isoformat()},
    }
    if row.jitter_seconds:
        late = random.uniform(0, row.jitter_seconds)  # noqa: S311  spread, no secret
        options["scheduled_at"] = moment + timedelta(seconds=late)
    return NewJob(row.job_type, row.payload, **options)


def _has_live_job(pk: int) -> bool:
    newest = ScheduleTick.objects.filter(schedule_id=pk, job__isnull=False).order_by("-due_at")[:MOST_LOOKED_AT]
    return any(status in LIVE for status in newest.values_list("job__status", flat=True))


def _disable_broken(pk: int, error: Exception) -> None:
    why = str(error) if isinstance(error, InvalidJob) else describe_exception(error)
    if disable_rows(Schedule.objects.filter(pk=pk, enabled=True), why):
        name = Schedule.objects.filter(pk=pk).values_list("name", flat=True).first()
        logger.error("schedule %r cannot tick and was disabled: %s", name, why)


def _locked(rows: models.QuerySet[Schedule], *, skip_locked: bool) -> Any:
    """Return the one row, locked, with the database's time as `now`; None when it is gone or another process has it."""
    return rows.annotate(now=DbNow()).select_for_update(skip_locked=skip_locked).first()
