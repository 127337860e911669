"""Arrows: move a job to a status by hand, by the moves that lead there; everything else is refused."""

from __future__ import annotations

from django.db import connections
from django.db.models import F

from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.handlers import Rules
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus
from django_jobs.retry import backoff_delay

from .cancel import cancel
from .claim import as_claimed
from .outcome import ClaimedJob, Completed, Outcome
from .release import release_unstarted
from .replay import replay, run_now
from .settle import settle
from .transactions import DbNow, jobs_alias, run_transaction

BY_HAND = "set by hand"


def take(job_id: str, process_id: str, alias: str | None = None) -> ClaimedJob:
    """Claim one particular job; raise InvalidJob when it is not ready."""
    using = alias or jobs_alias()

    def move() -> ClaimedJob:
        ready = Job.objects.using(using).filter(pk=job_id, status=JobStatus.PENDING, pending_dependencies=0)
        taken = ready.update(
            status=JobStatus.RUNNING,
            fence=F("fence") + 1,
            worker_id=process_id,
            started_at=DbNow(),
            updated_at=DbNow(),
        )
        job = Job.objects.using(using).filter(pk=job_id).first()
        if job is None:
            raise JobNotFound(job_id)
        if not taken:
            waits = f" and waits for {job.pending_dependencies} jobs" if job.pending_dependencies else ""
            raise InvalidJob(f"job {job_id!r} is {job.status}{waits}; only a ready job can be claimed")
        return as_claimed(job)

    return run_transaction(move, using)


def move_to(job_id: str, status: str, *, process_id: str, rules: Rules, alias: str | None = None) -> ClaimedJob | None:
    """Move a job to a status by a legal arrow; return its claim when that was it.

    A running job is moved by the process that holds it, and by nobody else. Raises JobNotFound, and InvalidJob when there
    is no such arrow.
    """
    using = alias or jobs_alias()
    job = Job.objects.using(using).filter(pk=job_id).first()
    if job is None:
        raise JobNotFound(job_id)
    if status not in JobStatus.values:
        raise InvalidJob(f"status {status!r}: give one of {', '.join(JobStatus.values)}")
    if status == JobStatus.RUNNING:
        return take(job_id, process_id, using)
    if job.status == JobStatus.RUNNING:
        _end_run(job, JobStatus(status), process_id, rules, using)
    elif status == JobStatus.PENDING and job.status == JobStatus.SCHEDULED:
        run_now(job_id, using)
    elif status == JobStatus.PENDING and job.is_finished:
        replay(job_id, alias=using)
    elif status == JobStatus.CANCELLED:
        cancel(job_id, using)
    else:
        raise InvalidJob(f"job {job_id!r} is {job.status}; no arrow leads from there to {status}")
    return None


def _end_run(job: Job, status: JobStatus, process_id: str, rules: Rules, using: str) -> None:
    if job.worker_id != process_id:
        raise InvalidJob(f"job {job.id!r} is run by {job.worker_id}; only that process can settle it (or cancel it)")
    claimed = as_claimed(job)
    if status == JobStatus.PENDING:
        lost = not release_unstarted([claimed], using)
    elif status == JobStatus.COMPLETED:
        lost = bool(settle([Completed(job.id, job.fence, None)], [], process_id, using))
    else:
        lost = bool(settle([], [_outcome(claimed, status, rules)], process_id, using))
    if lost:
        raise InvalidJob(f"job {job.id!r} has changed hands meanwhile; nothing was changed")


def _outcome(job: ClaimedJob, status: JobStatus, rules: Rules) -> Outcome:
    retry_count = job.retry_count + 1
    delay = backoff_delay(retry_count, rules.base_delay, rules.max_delay) if status == JobStatus.SCHEDULED else 0.0
    return Outcome(
        job=job,
        status=status,
        attempt=AttemptOutcome.CANCELLED if status == JobStatus.CANCELLED else AttemptOutcome.FAILED,
        delay=delay,
        spends_retry=status == JobStatus.SCHEDULED,
        letter=DeadLetterReason.FAILED_BY_HANDLER if status == JobStatus.DEAD else None,
        error=BY_HAND,
        fingerprint=BY_HAND if status == JobStatus.DEAD else "",
    )


def in_transaction(alias: str | None = None) -> bool:
    """Say whether the caller has a transaction open on the jobs' database."""
    return connections[alias or jobs_alias()].in_atomic_block
