"""Whether the site is ready to run jobs, and whether any is left to run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from django.db import connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from django_jobs.models import Job, JobStatus, Queue, Schedule

from .transactions import DbNow, jobs_alias


def missing_migrations(alias: str | None = None) -> list[str]:
    """Return the migrations of this app that the database lacks, by their names alone: no app's migrations are imported."""
    where, _ = MigrationLoader.migrations_module("django_jobs")
    if where is None:  # the site has switched them off
        return []
    names = {found.name for found in iter_modules(import_module(where).__path__) if found.name[0] not in "_~"}
    applied = MigrationRecorder(connections[alias or jobs_alias()]).applied_migrations()
    return [f"django_jobs.{name}" for name in sorted(names) if ("django_jobs", name) not in applied]


def has_due_work(queues: Sequence[str] | None = None, alias: str | None = None) -> bool:
    """Say whether a job of the queues (None: any queue that is not paused) is ready, or it or a schedule is due."""
    using = alias or jobs_alias()
    if Schedule.objects.using(using).due().exists():
        return True
    jobs = Job.objects.using(using)
    if queues is not None:
        jobs = jobs.in_queues(queues)
    paused = list(Queue.objects.using(using).filter(paused_at__isnull=False).values_list("name", flat=True))
    jobs = jobs.exclude(queue__in=paused)
    if jobs.filter(status=JobStatus.PENDING, pending_dependencies=0).exists():
        return True
    return jobs.filter(status=JobStatus.SCHEDULED, available_at__lte=DbNow()).exists()
