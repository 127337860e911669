"""Rescue: take back the jobs of a dead worker process. Safe to repeat, and for several rescuers at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connections
from django.db.models import BooleanField, Case, Exists, F, OuterRef, Q, When
from django.db.models.expressions import Value

from django_jobs import signals
from django_jobs.handlers import Registry, registry
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus, WorkerProcess

from .claim import as_claimed
from .ended import settle_ended
from .events import announce
from .outcome import Outcome
from .sql import dialect
from .transactions import DbNow, jobs_alias, run_transaction

logger = logging.getLogger("django_jobs")
STEP = 500


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at a process's row showed."""

    id: str
    beat: int
    expired: bool
    asked_to_stop: bool = False


def look(alias: str | None = None) -> list[Seen]:
    """Return every process with its beat, and whether its lease has run out by the database's clock."""
    expired = Case(
        When(Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=DbNow()), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
    rows = WorkerProcess.objects.using(alias or jobs_alias()).annotate(expired=expired)
    columns = rows.values_list("id", "beat", "expired", "stopping_at")
    return [
        Seen(process_id, beat, expired, stopping_at is not None) for process_id, beat, expired, stopping_at in columns
    ]


def rescue_process(process_id: str, beat: int | None = None, alias: str | None = None) -> int:
    """Declare a process dead, end its database sessions and take its jobs back; return how many there were.

    Args:
        beat: the beat it stood still at; nothing is done when it has moved since. None for a child that was reaped.
    """
    using = alias or jobs_alias()
    if not _declare_dead(process_id, beat, using):
        return 0
    rescued = 0
    while step := run_transaction(lambda: _take_back(Q(worker_id=process_id), using), using):
        rescued += step
    left = Job.objects.using(using).filter(worker_id=process_id, status=JobStatus.RUNNING)
    dead = WorkerProcess.objects.using(using).filter(pk=process_id, lease_expires_at__isnull=True)
    run_transaction(lambda: dead.filter(~Exists(left)).delete(), using)
    return rescued


def _declare_dead(process_id: str, beat: int | None, using: str) -> bool:
    """Take the lease for good, so that the process can claim nothing more, and end its sessions."""

    def move() -> list[int] | None:
        row = WorkerProcess.objects.using(using).filter(pk=process_id).select_for_update().first()
        if row is None or (beat is not None and row.beat != beat):
            return None
        WorkerProcess.objects.using(using).filter(pk=process_id).update(lease_expires_at=None)
        return list(row.sessions)

    sessions = run_transaction(move, using)
    if sessions is None:
        return False
    logger.warning("worker process %s is dead: taking its jobs back", process_id)
    connection = connections[using]
    dialect(connection).end_sessions(connection, process_id, sessions)
    return True


def rescue_nameless(alias: str | None = None) -> int:
    """Take back running jobs whose process has no row; return how many."""
    using = alias or jobs_alias()
    nameless = ~Exists(WorkerProcess.objects.using(using).filter(pk=OuterRef("worker_id")))
    return run_transaction(lambda: _take_back(Q(nameless), using), using)


def _take_back(which: Q, using: str) -> int:
    jobs = list(
        Job.objects.using(using)
        .filter(which, status=JobStatus.RUNNING)
        .order_by("pk")[:STEP]
        .select_for_update(skip_locked=connections[using].features.has_select_for_update_skip_locked, of=())
    )
    return sum(settle_crash(job, using) for job in jobs)


def settle_crash(job: Job, using: str, handlers: Registry = registry) -> bool:
    """Record that a job's process died; the job is a suspect now and runs alone next time.

    The first crash counts for every job that the process held. A job that was a suspect already ran alone in a subprocess,
    whose own death is counted where it is seen, so the death of the process around it is not its fault; a subprocess
    cannot run what only a script has registered, though.
    """
    handler = handlers.find(job.job_type)
    first = job.crash_count == 0 or handler is None
    max_crashes = handlers.rules(handler, job.queue).max_crashes
    crashes = job.crash_count + first
    cancelled = job.cancel_requested_at is not None
    dead = crashes >= max_crashes and not cancelled
    status = JobStatus.DEAD if dead else JobStatus.CANCELLED if cancelled else JobStatus.SCHEDULED
    outcome = Outcome(
        job=as_claimed(job),
        status=status,
        attempt=AttemptOutcome.CRASHED,
        counts_crash=first,
        letter=DeadLetterReason.CRASH_LOOP if dead else None,
        error="the worker process died while it held this job",
        fingerprint=f"crash {job.job_type}"[:64] if dead else "",
    )
    if settle_ended([outcome], job.worker_id or "", using):
        return False
    announce(signals.job_rescued, job.id, using, worker_id=job.worker_id)
    return True


def release_unheld(jobs: Sequence[tuple[str, int]], process_id: str, alias: str | None = None) -> int:
    """Hand back jobs that name this process though it does not hold them: claims whose reply was lost."""
    using = alias or jobs_alias()

    def move() -> int:
        return sum(
            Job.objects.using(using)
            .filter(pk=job_id, fence=fence, worker_id=process_id, status=JobStatus.RUNNING)
            .update(status=JobStatus.PENDING, fence=F("fence") + 1, updated_at=DbNow(), started_at=None)
            for job_id, fence in sorted(jobs)
        )

    return run_transaction(move, using)
