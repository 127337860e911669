"""Cancel: a waiting job at once, a running one by asking its worker."""

from __future__ import annotations

from collections.abc import Collection

from django.db.models import F

from django_jobs import signals
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import Job, JobStatus

from .events import announce
from .notify import announce_finished, tell_process
from .transactions import DbNow, jobs_alias, run_transaction
from .wake import CASCADE_SECONDS, cascade_for, settle_dependents


def cancel(job_id: str, alias: str | None = None) -> str:
    """Cancel a job and return its status now: `cancelled`, or `running` when its worker was asked to stop it.

    Raises JobNotFound, and InvalidJob when the job is finished.
    """
    using = alias or jobs_alias()
    status, worker_id = run_transaction(lambda: _cancel(job_id, using), using)
    if status == JobStatus.RUNNING:
        tell_process(worker_id, using)
    else:
        announce_finished(using)
        cascade_for(CASCADE_SECONDS, using)
    return status


def _cancel(job_id: str, using: str) -> tuple[str, str]:
    job = Job.objects.using(using).filter(pk=job_id).select_for_update().only("status", "worker_id").first()
    if job is None:
        raise JobNotFound(job_id)
    one = Job.objects.using(using).filter(pk=job_id)
    if job.status == JobStatus.RUNNING:
        one.filter(cancel_requested_at__isnull=True).update(cancel_requested_at=DbNow())
        return job.status, job.worker_id or ""
    if job.is_finished:
        raise InvalidJob(f"job {job_id!r} is {job.status} already; only a job that is not finished can be cancelled")
    one.update(
        status=JobStatus.CANCELLED, fence=F("fence") + 1, finished_at=DbNow(), updated_at=DbNow(), unique_lock=None
    )
    settle_dependents([job_id], using)
    announce(signals.job_cancelled, job_id, using)
    return JobStatus.CANCELLED, ""


def cancel_as_asked(ids: Collection[str], using: str) -> None:
    """Cancel those of the jobs, which wait again after a run, that somebody asked to cancel while they ran.

    Call it in the transaction that made them wait, so that none of them is claimed in between.
    """
    asked = Job.objects.using(using).filter(
        pk__in=ids, status__in=(JobStatus.PENDING, JobStatus.SCHEDULED), cancel_requested_at__isnull=False
    )
    for job_id in sorted(asked.values_list("pk", flat=True)):
        _cancel(job_id, using)
