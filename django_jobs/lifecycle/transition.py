"""Transition: whoever holds a job moves it by hand to a status, by one of the state machine's arrows; all others are refused."""

from __future__ import annotations

from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.handlers import JobOptions
from django_jobs.models import Job, JobStatus
from django_jobs.retry import backoff_delay

from .cancel import cancel
from .claim import ClaimedJob, claim_job
from .outcome import Outcome
from .promote import run_now
from .release import release
from .replay import replay
from .settle import settle


def move_to(job_id: str, status: str, *, process_id: str, options: JobOptions) -> ClaimedJob | None:
    """Move a job to a status by a legal arrow; return its claim when that was it.

    A running job is moved by the process that holds it, and by nobody else. Raises JobNotFound, and InvalidJob when there
    is no such arrow.
    """
    job = Job.objects.filter(pk=job_id).first()
    if job is None:
        raise JobNotFound(job_id)
    if status not in JobStatus.values:
        raise InvalidJob(f"status {status!r}: give one of {', '.join(JobStatus.values)}")
    if status == JobStatus.RUNNING:
        return claim_job(job_id, process_id)
    if job.status == JobStatus.RUNNING:
        _end_run(job, JobStatus(status), process_id, options)
    elif status == JobStatus.PENDING and job.status == JobStatus.SCHEDULED:
        run_now([job_id]).raise_if_left()
    elif status == JobStatus.PENDING and job.is_finished:
        replay([job_id]).raise_if_left()
    elif status == JobStatus.CANCELLED:
        cancel([job_id]).raise_if_left()
    else:
        raise InvalidJob(f"job {job_id!r} is {job.status}; no arrow leads from there to {status}")
    return None


def _end_run(job: Job, status: JobStatus, process_id: str, options: JobOptions) -> None:
    if job.worker_id != process_id:
        raise InvalidJob(f"job {job.id!r} is run by {job.worker_id}; only that process can settle it (or cancel it)")
    claimed = ClaimedJob.of(job)
    if status == JobStatus.PENDING:
        lost = not release([claimed])
    else:
        delay = backoff_delay(job.retry_count + 1, options.base_delay, options.max_delay)
        lost = bool(settle([Outcome.by_hand(claimed, status, delay)], process_id))
    if lost:
        raise InvalidJob(f"job {job.id!r} has changed hands meanwhile; nothing was changed")
