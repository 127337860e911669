"""Jobs as the verbs print them: by keys for machines, in rows for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db.models import Count

from django_jobs.exceptions import JobNotFound
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Attempt, Job, JobStatus
from django_jobs.shell import SHELL
from django_jobs.transfer import all_jobs

PAGE = 500
HEADS = ("ID", "TYPE", "QUEUE", "STATUS", "PRIORITY", "ATTEMPTS", "CREATED", "ERROR")


def find_job(job_id: str) -> Job:
    """Return a job; raise JobNotFound."""
    job = all_jobs().filter(pk=job_id).first()
    if job is None:
        raise JobNotFound(job_id)
    return job


def with_attempts(jobs: Iterable[Job]) -> Iterator[tuple[Job, int]]:
    """Return each job with how often it was started, a query for each page."""
    page: list[Job] = []
    for job in jobs:
        page.append(job)
        if len(page) == PAGE:
            yield from _counted(page)
            page = []
    yield from _counted(page)


def _counted(page: Sequence[Job]) -> Iterator[tuple[Job, int]]:
    rows = Attempt.objects.using(jobs_alias()).filter(job_id__in=[job.pk for job in page]).order_by()
    ended = dict(rows.values_list("job_id").annotate(number=Count("pk")))
    for job in page:
        # A run that goes on, or that completed, has no attempt row.
        yield job, ended.get(job.pk, 0) + (job.status in (JobStatus.RUNNING, JobStatus.COMPLETED))


def job_values(job: Job, attempts: int) -> dict[str, Any]:
    """Return a job for machines."""
    return {
        "id": job.id,
        "job_type": job.job_type,
        "command": job.payload.get("command") if job.job_type == SHELL else None,
        "queue": job.queue,
        "status": str(job.status),
        "state": str(job.status),
        "priority": job.priority,
        "attempts": attempts,
        "max_retries": job.max_retries,
        "retry_count": job.retry_count,
        "timeout_seconds": job.timeout_seconds,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "scheduled_at": job.scheduled_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worker_id": job.worker_id,
        "unique_key": job.unique_key,
        "payload": job.payload,
        "result": job.result,
        "error": job.error,
        "metadata": job.metadata,
        "pending_dependencies": job.pending_dependencies,
        "progress": job.progress,
    }


def job_row(job: Job, attempts: int) -> tuple[Any, ...]:
    """Return a job for a table with HEADS."""
    error = (job.error or "").partition("\n")[0][:60]
    return (job.id, job.job_type, job.queue, job.status, job.priority, attempts, job.created_at, error)
