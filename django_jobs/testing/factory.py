"""Make a job in any status by the moves that lead there, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django_jobs.db.connections import database_of_submit
from django_jobs.encryption import encrypted
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import encrypts_type
from django_jobs.lifecycle import leases, submit
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim_job
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus
from django_jobs.payloads import encode_result
from django_jobs.text import shown

from .assertions import name_of


def make_job(
    job_type: Any, payload: Mapping[str, Any] | None = None, *, status: str = "pending", result: Any = None,
    error: str = "ValueError: made for a test", using: str | None = None, **options: Any,
) -> Job:  # fmt: skip
    """Make a job in any status by the moves that lead there, without running it; a dead one has its open dead letter.

    Args:
        job_type: any name; it needs no handler.
        result: of a completed job; error: of a failed or dead one.
        using: the alias of the database that is to hold it, chosen as by `submit`.
        options: those of `submit`; a scheduled job is due in an hour unless they give another time.

    Raises InvalidJob for a status or an option that does not exist.
    """
    if status not in JobStatus.values:
        raise InvalidJob(f"status {shown(status)}: give one of {', '.join(JobStatus.values)}")
    if status == JobStatus.SCHEDULED and not {"delay", "scheduled_at"} & set(options):
        options["delay"] = timedelta(hours=1)
    with database_of_submit(using):
        return _made(job_type, payload, JobStatus(status), result, error, options)


def _made(
    job_type: Any,
    payload: Mapping[str, Any] | None,
    status: JobStatus,
    result: Any,
    error: str,
    options: dict[str, Any],
) -> Job:
    job = submit.submit(name_of(job_type), payload, any_type=True, options=options)
    if status == JobStatus.CANCELLED:
        cancel([job.id]).raise_if_left()
    elif status not in (JobStatus.PENDING, JobStatus.SCHEDULED):
        with worker_process() as process_id:
            claimed = claim_job(job.id, process_id)
            if status == JobStatus.COMPLETED:
                text = encode_result(result)
                settle(
                    [Outcome.completed(claimed, encrypted(text) if encrypts_type(job.job_type) else text)], process_id
                )
            elif status != JobStatus.RUNNING:
                settle([_given_up(claimed, status, error)], process_id)
    job.refresh_from_db(using=job._state.db)
    return job


def _given_up(job: ClaimedJob, status: JobStatus, error: str) -> Outcome:
    reason = DeadLetterReason.RETRIES_EXHAUSTED if status == JobStatus.DEAD else None
    return Outcome(job, status, AttemptOutcome.FAILED, reason=reason, error=error, fingerprint=error[:64])


@contextmanager
def worker_process() -> Iterator[str]:
    """Register a worker process, inside the test's transaction if there is one; its row stays when it still holds a job."""
    process_id = leases.new_process_id()
    leases.register(process_id, queues=[], threads=1)
    try:
        yield process_id
    finally:
        leases.leave(process_id)
