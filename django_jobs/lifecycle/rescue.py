"""Rescue: take back the jobs of a dead worker process. Safe to repeat, and for several rescuers at once."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import Any

from django.db.models import Exists, OuterRef, Q

from django_jobs import signals
from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import transactional
from django_jobs.handlers import registry
from django_jobs.models import Ending, Job, JobStatus, WorkerProcess
from django_jobs.models.fields import DbNow

from . import slots
from .claim import ClaimedJob
from .farewell import how_it_fell_silent, say_farewell
from .outcome import Outcome
from .settle import settle_ended

logger = logging.getLogger("django_jobs")
STEP = 500


def rescue_process(process_id: str, beat: int | None = None) -> int:
    """Declare a process dead, end its database sessions and take its jobs back; return how many there were.

    Args:
        beat: the beat it stood still at; nothing is done when it has moved since. None for a child that was reaped.
    """
    if not _declare_dead(process_id, beat):
        return 0
    logger.warning("worker process %s is dead: taking its jobs back", process_id)
    dialect().end_sessions(process_id)
    ending = Ending.KILLED if beat is None else how_it_fell_silent(process_id)
    rescued = 0
    while step := _take_back(Q(worker_id=process_id)):
        rescued += step
    say_farewell(process_id, ending, held=rescued, only_dead=True)
    return rescued


@transactional
def _declare_dead(process_id: str, beat: int | None) -> bool:
    """Take the lease for good, so that the process can claim nothing more; return False when it is not dead."""
    row = WorkerProcess.objects.filter(pk=process_id)
    if beat is not None:
        row = row.filter(beat=beat)
    return bool(row.update(lease_expires_at=None))


def rescue_nameless() -> int:
    """Take back running jobs whose process has no row; return how many."""
    return _take_back(Q(~Exists(WorkerProcess.objects.filter(pk=OuterRef("worker_id")))))


@transactional
def _take_back(which: Q) -> int:
    jobs = (
        Job.objects.filter(which, status=JobStatus.RUNNING)
        .annotate(read_at=DbNow())
        .order_by("pk")[:STEP]
        .select_for_update(skip_locked=True, of=())
    )
    by_worker = sorted(jobs, key=_worker)
    rescued = sum(settle_crashes(list(held), worker_id) for worker_id, held in groupby(by_worker, key=_worker))
    slots.give_on([job.pk for job in by_worker])
    return rescued


def _worker(job: Job) -> str:
    return job.worker_id or ""


def settle_crashes(jobs: list[Any], worker_id: str) -> int:
    """Record that the process of these running jobs died; they are suspects now and run alone next time. Return how many.

    Call it in a transaction that has locked them, and read the database's clock with them (`read_at`).
    """
    release = WorkerProcess.objects.filter(pk=worker_id).values_list("release", flat=True).first() or ""
    lost = settle_ended([_crashed(job) for job in jobs], worker_id, release)
    for job in jobs:
        if job.pk not in lost:
            signals.announce(signals.job_rescued, job.pk, worker_id=job.worker_id)
    return len(jobs) - len(lost)


def _crashed(job: Any) -> Outcome:
    """Return what comes of a job whose process died.

    The first crash counts for every job that the process held. A job that was a suspect already ran alone in a subprocess,
    whose own death is counted where it is seen, so the death of the process around it is not its fault; a subprocess
    cannot run what only a script has registered, though.
    """
    handler = registry.find(job.job_type)
    return Outcome.crashed(
        ClaimedJob.of(job),
        "the worker process died while it held this job",
        registry.job_options(handler, job.queue),
        counts=job.crash_count == 0 or handler is None,
        cancel_requested=job.cancel_requested_at is not None,
        seconds=(job.read_at - job.started_at).total_seconds(),
    )
