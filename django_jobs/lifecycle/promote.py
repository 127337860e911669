"""Promote: scheduled jobs become ready when they are due, or when an operator runs them now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import retried, transactional
from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING

from .moved import Moved, chunks, lock_jobs

PROMOTE_BATCH = 500


@retried
def promote(limit: int = PROMOTE_BATCH) -> list[str]:
    """Make up to `limit` due jobs ready and return the queue of each."""
    return dialect().promote(limit)


def run_now(ids: Iterable[str]) -> Moved:
    """Make scheduled jobs ready at once; pending ones are so already; running and finished ones are left."""
    return sum((_run_now(chunk) for chunk in chunks(ids)), Moved([], {}))


@transactional
def _run_now(ids: Sequence[str]) -> Moved:
    jobs = lock_jobs(ids)
    waiting = [job for job in jobs.values() if job.status in WAITING]
    Job.objects.filter(pk__in=[job.pk for job in waiting if job.status == JobStatus.SCHEDULED]).update(
        status=JobStatus.PENDING, fence=F("fence") + 1, available_at=DbNow(), updated_at=DbNow()
    )
    for queue in {job.queue for job in waiting}:
        notify_work(queue)
    done = [job.pk for job in waiting]
    return Moved(done, {job_id: _why_not(job_id, jobs.get(job_id)) for job_id in ids if job_id not in done})


def _why_not(job_id: str, job: Job | None) -> JobsError:
    if job is None:
        return JobNotFound(job_id)
    return InvalidJob(f"job {job_id!r} is {job.status}; only a waiting job can be run now")
