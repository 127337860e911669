"""What the rows of another queue have in common: how they are read, and what each is found to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from django.apps import apps
from django.db import router

from django_jobs.db.connections import jobs_alias
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, registry
from django_jobs.lifecycle.submit import submit
from django_jobs.text import shown


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule or a waiting job of another queue. `why` says why it stays there; else `take` makes it ours."""

    kind: Literal["schedule", "job"]
    name: str
    job_type: str
    take: Callable[[], None] | None = None
    why: str = ""


def rows(app: str, model: str) -> Any:
    """Return the rows of a model of another queue, locked; raise InvalidJob where it is not installed or in another database."""
    config = next((config for config in apps.get_app_configs() if config.name == app), None)
    if config is None:
        raise InvalidJob(f"{app} is not in INSTALLED_APPS: leave it there until its rows are adopted")
    found: Any = config.get_model(model)
    if (alias := router.db_for_write(found)) != jobs_alias():
        raise InvalidJob(
            f"{app} is in the database {alias!r}, and jobs are in {jobs_alias()!r}: one transaction covers one"
        )
    return found.objects.using(alias).select_for_update()


def payload_for(handler: Handler, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the payload with which our handler gets what the other queue would have given its function."""
    if hasattr(handler.function, "task"):  # one of Django's
        return {"args": args, "kwargs": kwargs}
    if handler.arguments is not None:
        return handler.arguments.payload(*args, **kwargs)
    if args:
        raise InvalidJob(f"its handler takes the whole payload, and {shown(args)} have no names")
    return kwargs


def take_task(row: Any, args: list[Any], kwargs: dict[str, Any], **options: Any) -> None:
    """Make the row of a waiting task of Django's ours, under its own id, and delete it; `run_after` is None for at once."""
    # Here, for it wants Django's tasks, which only the sources of such rows are sure to have.
    from django_jobs.task_backend.results import BACKEND_KEY

    payload = payload_for(registry.get(row.task_path), args, kwargs)
    options |= {"job_id": str(row.pk), "queue": row.queue_name, "metadata": {BACKEND_KEY: row.backend_name}}
    if row.run_after is not None:
        options["scheduled_at"] = row.run_after
    submit(row.task_path, payload, rank=-row.priority, options=options)
    row.delete()
