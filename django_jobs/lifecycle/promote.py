"""Promote: scheduled jobs become ready when they are due, or when an operator runs them now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.marks import Marks
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import retried, transactional
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING

from .moved import Moved, key_chunks, lock_jobs
from .steps import end_sleeps

PROMOTE_BATCH = 500


@retried
def promote(limit: int = PROMOTE_BATCH, marks: Marks | None = None) -> list[str]:
    """Make up to `limit` due jobs ready and return the queue of each.

    With the process's `marks` it passes over what an old snapshot keeps of jobs that were promoted before.
    """
    speaker = dialect()
    if marks is None or not speaker.counts_reads:
        return speaker.promote(limit)
    return marks.promotion.promote(speaker, limit)


def run_now(ids: Iterable[str]) -> Moved:
    """Make scheduled jobs ready at once; pending ones are so already; running and finished ones are left."""
    return sum((_run_now(chunk) for chunk in key_chunks(ids)), Moved([], {}))


@transactional
def _run_now(ids: Sequence[str]) -> Moved:
    jobs = lock_jobs(ids)
    waiting = [job for job in jobs.values() if job.status in WAITING]
    scheduled = [job for job in waiting if job.status == JobStatus.SCHEDULED]
    if started := [job.pk for job in scheduled if job.worker_id]:  # one that never ran sleeps nowhere
        end_sleeps(started)
    Job.objects.filter(pk__in=[job.pk for job in scheduled]).update(
        status=JobStatus.PENDING, fence=F("fence") + 1, available_at=DbNow(), updated_at=DbNow()
    )
    for queue in {job.queue for job in waiting}:
        notify_work(queue)
    return Moved.of(ids, jobs, [job.pk for job in waiting], "; only a waiting job can be run now")
