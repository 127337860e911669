"""The periodic tasks of django-celery-beat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.scheduling.store import create_schedule

from .found import Found, payload_for, rows

PERIODS = {"microseconds": 1e-6, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


def periodic_tasks() -> Iterator[Found]:
    """Find the schedules."""
    for row in rows("django_celery_beat", "PeriodicTask").order_by("name"):
        found = partial(Found, "schedule", row.name, row.task)
        if not row.enabled:
            yield found(why="disabled there")
        elif row.task.startswith("celery."):
            yield found(why="Celery's own: RETENTION removes what is old here")
        else:
            try:
                timing = _beat_timing(row)
            except InvalidJob as error:
                yield found(why=str(error))
            else:
                yield found(take=partial(_take_periodic_task, row, timing))


def _beat_timing(row: Any) -> dict[str, Any]:
    for name in ("expires", "expire_seconds", "start_time"):
        if getattr(row, name) is not None:
            raise InvalidJob(f"it has {name}, which a schedule has not here")
    if row.solar is not None:
        raise InvalidJob(f"solar schedules ({row.solar.event}) do not exist here")
    if row.clocked is not None:
        return {"at": row.clocked.clocked_time}
    if row.one_off:
        raise InvalidJob("it runs once, at the first tick of an interval or a crontab: give it a time")
    if row.interval is not None:
        return {"every": row.interval.every * PERIODS[row.interval.period]}
    if row.crontab is None:
        raise InvalidJob("it has no schedule")
    cron = row.crontab
    if "*" not in (cron.day_of_month[:1], cron.day_of_week[:1]):
        raise InvalidJob("Celery wants the day of the month and of the week both to match, and cron either of them")
    fields = (cron.minute, cron.hour, cron.day_of_month, cron.month_of_year, cron.day_of_week)
    return {"cron": " ".join(field.replace(" ", "") for field in fields), "timezone": str(cron.timezone)}


def _take_periodic_task(row: Any, timing: dict[str, Any]) -> None:
    try:
        args, kwargs = json.loads(row.args or "[]"), json.loads(row.kwargs or "{}")
    except ValueError as error:
        raise InvalidJob(f"its arguments are no JSON: {error}") from None
    payload = payload_for(registry.get(row.task), args, kwargs)
    create_schedule(row.name, row.task, payload=payload, queue=row.queue or None, **timing)
    row.enabled = False
    row.save()  # tells its scheduler, too
