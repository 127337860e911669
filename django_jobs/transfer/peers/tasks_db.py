"""The waiting tasks of django-tasks-db."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django_jobs.handlers import registry
from django_jobs.lifecycle.submit import submit

from .found import Found, payload_for, rows

NO_TIME = datetime(9000, 1, 1, tzinfo=UTC)  # django-tasks-db writes the year 9999 where no time is asked for


def waiting_tasks() -> Iterator[Found]:
    """Find what waits."""
    for row in rows("django_tasks_db", "DBTaskResult").filter(status="READY").order_by("enqueued_at"):
        yield Found("job", str(row.pk), row.task_path, take=partial(_take_task, row))


def _take_task(row: Any) -> None:
    from django_jobs.task_backend.results import (
        BACKEND_KEY,
    )  # wants Django's tasks, which only this source is sure to have

    given = row.args_kwargs
    payload = payload_for(registry.get(row.task_path), given["args"], given["kwargs"])
    options: dict[str, Any] = {
        "job_id": str(row.pk),
        "queue": row.queue_name,
        "metadata": {BACKEND_KEY: row.backend_name},
    }
    if row.run_after < NO_TIME:
        options["scheduled_at"] = row.run_after
    submit(row.task_path, payload, rank=-row.priority, options=options)
    row.delete()
