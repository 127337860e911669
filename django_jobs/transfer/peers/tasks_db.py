"""The waiting tasks of django-tasks-db."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from .found import Found, rows, take_task

NO_TIME = datetime(9000, 1, 1, tzinfo=UTC)  # django-tasks-db writes the year 9999 where no time is asked for


def waiting_tasks() -> Iterator[Found]:
    """Find what waits."""
    for row in rows("django_tasks_db", "DBTaskResult").filter(status="READY").order_by("enqueued_at"):
        yield Found("job", str(row.pk), row.task_path, take=partial(_take_task, row))


def _take_task(row: Any) -> None:
    if row.run_after >= NO_TIME:
        row.run_after = None
    take_task(row, row.args_kwargs["args"], row.args_kwargs["kwargs"])
