"""Adopting: schedules and waiting jobs of another queue in the same database become ours, each told, none of them twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from django.db import transaction

from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.models import Schedule

from .peers import celery_beat, ox, q2, tasks_db
from .peers.found import Found

SOURCES: dict[str, Callable[[], Iterator[Found]]] = {
    "celery-beat": celery_beat.periodic_tasks,
    "django-ox": ox.schedules_and_tasks,
    "django-q2": q2.schedules_and_tasks,
    "django-tasks-db": tasks_db.waiting_tasks,
}


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
        if why and found.kind == "schedule" and Schedule.objects.filter(name=found.name).exists():
            why += "; one of this name is here"
        told.append(Told(found.kind, found.name, found.job_type, not why, why))
    if dry_run:
        transaction.set_rollback(True, using=jobs_alias())
    return Report(told, list(missing))
