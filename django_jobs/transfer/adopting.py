"""Adopting: schedules and waiting jobs of another queue in the same database become ours, each told, none of them twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from django.apps import apps
from django.db import router, transaction

from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, registry
from django_jobs.lifecycle.submit import submit
from django_jobs.scheduling.store import create_schedule
from django_jobs.text import shown

NO_TIME = datetime(9000, 1, 1, tzinfo=UTC)  # django-tasks-db writes the year 9999 where no time is asked for
PERIODS = {"microseconds": 1e-6, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule or a waiting job of another queue. `why` says why it stays there; else `take` makes it ours."""

    kind: Literal["schedule", "job"]
    name: str
    job_type: str
    take: Callable[[], None] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one of them."""

    kind: str
    name: str
    job_type: str
    is_adopted: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all of them, and the types that have no handler here yet."""

    told: list[Told]
    without_handler: list[str]

    def module(self) -> str:
        """Return a `jobs.py` for the types that have no handler, to be filled in."""
        handlers = (
            f'@job("{job_type}")\ndef {re.sub(r"[^0-9A-Za-z]+", "_", job_type)}(payload):\n    raise NotImplementedError\n'
            for job_type in self.without_handler
        )
        return "\n\n".join(["from django_jobs import job\n", *handlers])


@transactional
def adopt(source: str, *, dry_run: bool = False) -> Report:
    """Make the schedules and the waiting jobs of another queue ours in one transaction; what cannot be stays there, and is told.

    A schedule that is adopted is disabled there, and a job is deleted there, so that neither runs twice, here or when this is
    called again. What is running there stays there. With `dry_run` all is done and rolled back.

    Raises InvalidJob for a queue that is not installed, or whose tables are in another database.
    """
    told: list[Told] = []
    missing: dict[str, None] = {}
    for found in SOURCES[source]():
        why = found.why
        if not why and registry.find(found.job_type) is None:
            why = "no handler here"
            missing[found.job_type] = None
        if not why and found.take is not None:
            try:
                found.take()
            except InvalidJob as error:
                why = str(error)
        told.append(Told(found.kind, found.name, found.job_type, not why, why))
    if dry_run:
        transaction.set_rollback(True, using=jobs_alias())
    return Report(told, list(missing))


def _rows(app: str, model: str) -> Any:
    config = next((config for config in apps.get_app_configs() if config.name == app), None)
    if config is None:
        raise InvalidJob(f"{app} is not in INSTALLED_APPS: leave it there until its rows are adopted")
    found: Any = config.get_model(model)
    if (alias := router.db_for_write(found)) != jobs_alias():
        raise InvalidJob(
            f"{app} is in the database {alias!r}, and jobs are in {jobs_alias()!r}: one transaction covers one"
        )
    return found.objects.using(alias).select_for_update()


def _payload(handler: Handler, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the payload with which our handler gets what the other queue would have given its function."""
    if hasattr(handler.function, "task"):  # one of Django's
        return {"args": args, "kwargs": kwargs}
    if handler.arguments is not None:
        return handler.arguments.payload(*args, **kwargs)
    if args:
        raise InvalidJob(f"its handler takes the whole payload, and {shown(args)} have no names")
    return kwargs


# --- django-celery-beat


def _celery_beat() -> Iterator[Found]:
    for row in _rows("django_celery_beat", "PeriodicTask").order_by("name"):
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
    payload = _payload(registry.get(row.task), args, kwargs)
    create_schedule(row.name, row.task, payload=payload, queue=row.queue or None, **timing)
    row.enabled = False
    row.save()  # tells its scheduler, too


# --- django-tasks-db


def _tasks_db() -> Iterator[Found]:
    for row in _rows("django_tasks_db", "DBTaskResult").filter(status="READY").order_by("enqueued_at"):
        yield Found("job", str(row.pk), row.task_path, take=partial(_take_task, row))


def _take_task(row: Any) -> None:
    from django_jobs.task_backend.results import (
        BACKEND_KEY,
    )  # wants Django's tasks, which only this source is sure to have

    given = row.args_kwargs
    payload = _payload(registry.get(row.task_path), given["args"], given["kwargs"])
    options: dict[str, Any] = {
        "job_id": str(row.pk),
        "queue": row.queue_name,
        "metadata": {BACKEND_KEY: row.backend_name},
    }
    if row.run_after < NO_TIME:
        options["scheduled_at"] = row.run_after
    submit(row.task_path, payload, rank=-row.priority, options=options)
    row.delete()


SOURCES: dict[str, Callable[[], Iterator[Found]]] = {"celery-beat": _celery_beat, "django-tasks-db": _tasks_db}
