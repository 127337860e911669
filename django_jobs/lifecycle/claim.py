"""Claim and promote: take ready jobs for running, and make scheduled ones ready when they are due."""

from __future__ import annotations

from django.db import connections

from django_jobs.models import Job, JobStatus

from .outcome import ClaimedJob
from .sql import dialect
from .transactions import DbNow, jobs_alias, retry_transient

PROMOTE_BATCH = 500


def claim(queue: str, limit: int, process_id: str, alias: str | None = None) -> list[ClaimedJob]:
    """Take up to `limit` ready jobs of a queue for a worker process, in claim order.

    The claim is committed when this returns. Nothing is claimed from a paused queue, or by a process without a live lease.
    """
    connection = connections[alias or jobs_alias()]
    rows = retry_transient(lambda: dialect(connection).claim(connection, queue, limit, process_id))
    return [ClaimedJob._make(row) for row in rows]


def claim_one(job_id: str, fence: int, process_id: str, alias: str | None = None) -> ClaimedJob | None:
    """Return the claim of a job that this process holds already under `fence`, or None when it was taken away."""
    row = (
        Job.objects.using(alias or jobs_alias())
        .filter(pk=job_id, fence=fence, status=JobStatus.RUNNING, worker_id=process_id)
        .first()
    )
    return None if row is None else as_claimed(row)


def as_claimed(job: Job) -> ClaimedJob:
    """Return a running job's row as a claim."""
    from django_jobs.payloads import encode_result

    return ClaimedJob(
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
    )


def promote(alias: str | None = None, limit: int = PROMOTE_BATCH) -> list[str]:
    """Make up to `limit` due jobs ready and return the queue of each."""
    connection = connections[alias or jobs_alias()]
    return retry_transient(lambda: dialect(connection).promote(connection, limit))


def seconds_until_due(alias: str | None = None) -> float | None:
    """Return the seconds until the next scheduled job is due by the database's clock; None when there is none."""
    row = (
        Job.objects.using(alias or jobs_alias())
        .filter(status=JobStatus.SCHEDULED)
        .order_by("available_at")
        .values_list("available_at", DbNow())
        .first()
    )
    return None if row is None else float((row[0] - row[1]).total_seconds())
