"""Farewell: delete the row of a worker process that holds no job, and keep what there is to tell of it."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Exists

from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import retried, transactional
from django_jobs.models import GoneProcess, Job, WorkerProcess
from django_jobs.models.fields import DbNow
from django_jobs.models.gone_process import Ending
from django_jobs.models.worker_process import ProcessFacts

KEPT = timedelta(days=7)


@transactional
def say_farewell(
    process_id: str, ending: Ending, *, held: int = 0, jobs_done: int = 0, only_dead: bool = False
) -> bool:
    """Move the row of a process to those that are gone; return False when it still holds a job.

    Args:
        held: how many jobs were taken back from it; jobs_done: how many it did, where that is more than it last told.
        only_dead: leave a process alone that nobody has declared dead.
    """
    rows = WorkerProcess.objects.filter(~Exists(Job.objects.held_by(process_id)), pk=process_id)
    if only_dead:
        rows = rows.filter(lease_expires_at__isnull=True)
    process = rows.select_for_update().first()
    if process is None:
        return not Job.objects.held_by(process_id).exists()
    facts = {field.name: getattr(process, field.name) for field in ProcessFacts._meta.fields}
    facts["jobs_done"] = max(process.jobs_done, jobs_done)
    gone = GoneProcess(**facts, ended_at=DbNow(), ending=ending, held=held)
    GoneProcess.objects.bulk_create([gone], ignore_conflicts=True)
    WorkerProcess.objects.filter(pk=process_id)._raw_delete(jobs_alias())
    return True


def how_it_fell_silent(process_id: str) -> Ending:
    """Return whether other processes of a dead process's host are alive."""
    host = WorkerProcess.objects.filter(pk=process_id).values("host")
    others = WorkerProcess.objects.alive().filter(host__in=host).exclude(pk=process_id)
    return Ending.SILENT if others.exists() else Ending.HOST_SILENT


@retried
def note_lease_lost(process_id: str) -> None:
    """Correct what the others had to think of a process that was silent and now finds its lease gone."""
    GoneProcess.objects.filter(pk=process_id, ending__in=(Ending.SILENT, Ending.HOST_SILENT)).update(
        ending=Ending.LEASE_LOST
    )


@retried
def forget_gone() -> int:
    """Delete what is told of processes that have been gone for a week; return how many."""
    return GoneProcess.objects.filter(ended_at__lt=DbNow() - KEPT)._raw_delete(jobs_alias())
