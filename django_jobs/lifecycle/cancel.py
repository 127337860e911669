"""Cancel: a waiting job at once, a running one by asking its worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import F

from django_jobs import signals
from django_jobs.db.notify import notify_finished, notify_process
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING

from .dependents import CASCADE_SECONDS, cascade_for, settle_dependents
from .moved import Moved, chunks, lock_jobs


def cancel(ids: Iterable[str]) -> Moved:
    """Cancel jobs that wait, and ask the workers of those that run; finished ones are left."""
    moved = Moved([], {})
    for chunk in chunks(ids):
        cancelled, workers = _cancel(chunk)
        for worker_id in workers:
            notify_process(worker_id)
        moved += cancelled
    if moved.done:
        notify_finished()
        cascade_for(CASCADE_SECONDS)
    return moved


@transactional
def _cancel(ids: Sequence[str]) -> tuple[Moved, set[str]]:
    """Cancel a chunk; return what came of it, and the workers of the jobs that run."""
    jobs = lock_jobs(ids)
    running = [job for job in jobs.values() if job.status == JobStatus.RUNNING]
    Job.objects.filter(pk__in=[job.pk for job in running], cancel_requested_at=None).update(cancel_requested_at=DbNow())
    waiting = [job.pk for job in jobs.values() if job.status in WAITING]
    _cancel_waiting(waiting)
    done = [*waiting, *(job.pk for job in running)]
    left = {job_id: _why_not(job_id, jobs.get(job_id)) for job_id in ids if job_id not in done}
    return Moved(done, left), {job.worker_id or "" for job in running}


def _cancel_waiting(ids: Sequence[str]) -> None:
    """Cancel jobs whose rows the caller has locked while they wait."""
    if not ids:
        return
    Job.objects.filter(pk__in=ids).update(
        status=JobStatus.CANCELLED, fence=F("fence") + 1, finished_at=DbNow(), updated_at=DbNow(), unique_lock=None
    )
    settle_dependents(ids)
    for job_id in ids:
        signals.announce(signals.job_cancelled, job_id)


def cancel_as_requested(ids: Iterable[str]) -> None:
    """Cancel those of the jobs, which wait again after a run, that somebody asked to cancel while they ran.

    Call it in the transaction that made them wait, so that none of them is claimed in between.
    """
    requested = Job.objects.filter(pk__in=ids, status__in=WAITING, cancel_requested_at__isnull=False)
    _cancel_waiting(sorted(requested.values_list("pk", flat=True)))


def _why_not(job_id: str, job: Job | None) -> JobsError:
    if job is None:
        return JobNotFound(job_id)
    return InvalidJob(f"job {job_id!r} is {job.status} already; only a job that is not finished can be cancelled")
