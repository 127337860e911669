"""Make a job in any status by the moves that lead there, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import processes, submit
from django_jobs.lifecycle.arrows import take
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus
from django_jobs.payloads import encode_result
from django_jobs.text import shown

from .submitted import name_of


def make_job(
    job_type: Any, payload: Mapping[str, Any] | None = None, *, status: str = "pending", result: Any = None,
    error: str = "ValueError: made for a test", **options: Any,
) -> Job:  # fmt: skip
    """Make a job in any status by the moves that lead there, without running it; a dead one has its open dead letter.

    Args:
        job_type: any name; it needs no handler.
        result: of a completed job; error: of a failed or dead one.
        options: those of `submit`; a scheduled job is due in an hour unless they say otherwise.

    Raises InvalidJob for a status or an option that does not exist.
    """
    if status not in JobStatus.values:
        raise InvalidJob(f"status {shown(status)}: give one of {', '.join(JobStatus.values)}")
    if status == JobStatus.SCHEDULED and not {"delay", "scheduled_at"} & set(options):
        options["delay"] = timedelta(hours=1)
    job = submit.submit(name_of(job_type), payload, any_type=True, options=options)
    if status == JobStatus.CANCELLED:
        cancel(job.id)
    elif status not in (JobStatus.PENDING, JobStatus.SCHEDULED):
        process_id = processes.new_process_id()
        processes.register(process_id, queues=[], threads=1)
        claimed = take(job.id, process_id)
        if status == JobStatus.COMPLETED:
            settle([Completed(job.id, claimed.fence, encode_result(result))], [], process_id)
        elif status != JobStatus.RUNNING:
            settle([], [_death(claimed, JobStatus(status), error)], process_id)
        processes.leave(process_id)
    job.refresh_from_db()
    return job


def _death(job: ClaimedJob, status: JobStatus, error: str) -> Outcome:
    letter = DeadLetterReason.RETRIES_EXHAUSTED if status == JobStatus.DEAD else None
    return Outcome(
        job=job, status=status, attempt=AttemptOutcome.FAILED, letter=letter, error=error, fingerprint=error[:64]
    )
