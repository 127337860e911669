"""The schedules of django-ox that are rows, and its waiting tasks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.utils import timezone

from django_jobs.db.connections import jobs_alias
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.scheduling.store import create_schedule

from .found import Found, payload_for, rows, take_task

MACROS = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
EPOCH = datetime(1970, 1, 1)  # of the wall clock: its intervals are counted from there


def schedules_and_tasks() -> Iterator[Found]:
    """Find the schedules, then what waits. Those that settings declare are the code's to change."""
    for row in rows("django_ox", "OxSchedule").order_by("name"):
        yield _schedule(row)
    for row in rows("django_ox", "OxTask").filter(status="READY").order_by("enqueued_at"):
        yield Found("job", str(row.pk), row.task_path, take=partial(_take_task, row))


def _schedule(row: Any) -> Found:
    from django_ox import registry as theirs

    if not row.enabled:
        return Found("schedule", row.name, row.task_key, why="disabled there")
    try:
        job_type = theirs.get(row.task_key).task.module_path
    except KeyError:
        return Found("schedule", row.name, row.task_key, why="its key names no task there")
    try:
        timing = _timing(row)
    except InvalidJob as error:
        return Found("schedule", row.name, job_type, why=str(error))
    return Found("schedule", row.name, job_type, take=partial(_take_schedule, row, job_type, timing))


def _timing(row: Any) -> dict[str, Any]:
    if row.end_time is not None:
        raise InvalidJob("it has end_time, which a schedule has not here")
    late = row.starting_deadline_seconds
    grace = {} if late is None else {"grace_seconds": late}
    if row.trigger == "interval":
        return {"every": row.every_seconds, **grace}
    cron = MACROS.get(row.cron.strip().lower(), row.cron)
    fields = cron.split()
    if len(fields) == 5 and any(
        a.startswith("*/") and b != "*" for a, b in ((fields[2], fields[4]), (fields[4], fields[2]))
    ):
        raise InvalidJob(
            "django-ox runs on each day that its day of the month or of the week names, and cron where both do"
        )
    return {"cron": cron, "timezone": timezone.get_default_timezone_name(), **grace}


def _take_schedule(row: Any, job_type: str, timing: dict[str, Any]) -> None:
    from django_ox.stored import update_schedule

    payload = payload_for(registry.get(job_type), [], row.arguments)
    ours = create_schedule(row.name, job_type, payload=payload, **timing)
    if "every" in timing:
        ours.next_run_at = _next_in_step(row)
        ours.save(using=jobs_alias())
    update_schedule(row, enabled=False)  # tells its workers, too


def _next_in_step(row: Any) -> datetime:
    """Return its next tick: by the wall clock every so many seconds since 1970, and `phase_seconds` later."""
    every, first = timedelta(seconds=row.every_seconds), EPOCH + timedelta(seconds=row.phase_seconds)
    elapsed = timezone.localtime().replace(tzinfo=None) - first
    return timezone.make_aware(first + (elapsed // every + 1) * every)


def _take_task(row: Any) -> None:
    take_task(
        row, row.args, row.kwargs, max_retries=max(0, row.max_attempts - row.attempts - 1)
    )  # what is left of its attempts
