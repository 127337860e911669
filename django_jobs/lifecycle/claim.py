"""Claim: take ready jobs for running."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.marks import Marks
from django_jobs.db.transactions import retried, transactional
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.payloads import decode, encode_result


class ClaimedJob(NamedTuple):
    """A claimed row, in the order of the dialects' CLAIMED_COLUMNS; JSON stays text until somebody asks for it.

    6 µs a job, where a Job takes 45: that one is built only for receivers of signals.
    """

    id: str
    job_type: str
    queue: str
    payload_text: str
    fence: int
    retry_count: int
    max_retries: int
    timeout_seconds: float | None
    crash_count: int
    metadata_text: str
    rank: int
    available_at: Any
    created_at: Any = None
    batch_id: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew at each call, so that no handler sees another one's changes."""
        return decode(self.payload_text)  # type: ignore[no-any-return]

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.retry_count + 1

    @classmethod
    def of(cls, job: Job) -> ClaimedJob:
        """Return a running job's row as a claim."""
        return cls(
            job.id,
            job.job_type,
            job.queue,
            encode_result(job.payload),
            job.fence,
            job.retry_count,
            job.max_retries,
            job.timeout_seconds,
            job.crash_count,
            encode_result(job.metadata),
            job.rank,
            job.available_at,
            job.created_at,
            job.batch_id,
        )


@retried
def claim(queue: str, limit: int, process_id: str, marks: Marks | None = None) -> list[ClaimedJob]:
    """Take up to `limit` ready jobs of a queue for a worker process, in claim order.

    The claim is committed when this returns. Nothing is claimed from a paused queue, or by a process without a live lease.
    With the process's `marks` it passes over what an old snapshot keeps of jobs that are done.
    """
    speaker = dialect()
    if marks is None or not speaker.counts_reads:
        rows = speaker.claim(queue, limit, process_id)
    else:
        rows = marks.of(queue).claim(speaker, queue, limit, process_id)
    return [ClaimedJob._make(row) for row in rows]


@transactional
def claim_job(job_id: str, process_id: str) -> ClaimedJob:
    """Take one particular job; raise JobNotFound, and InvalidJob when it is not ready."""
    ready = Job.objects.filter(pk=job_id, status=JobStatus.PENDING, pending_dependencies=0)
    claimed = ready.update(
        status=JobStatus.RUNNING, fence=F("fence") + 1, worker_id=process_id, started_at=DbNow(), updated_at=DbNow()
    )
    job = Job.objects.filter(pk=job_id).first()
    if job is None:
        raise JobNotFound(job_id)
    if not claimed:
        waits = f" and waits for {job.pending_dependencies} jobs" if job.pending_dependencies else ""
        raise InvalidJob(f"job {job_id!r} is {job.status}{waits}; only a ready job can be claimed")
    return ClaimedJob.of(job)


def held_claim(job_id: str, fence: int, process_id: str) -> ClaimedJob | None:
    """Return the claim of a job that a process holds under `fence`, or None when it was taken away."""
    job = Job.objects.held_under(job_id, fence).filter(worker_id=process_id).first()
    return None if job is None else ClaimedJob.of(job)
