"""Send Django's `task_finished` for tasks that ended badly. Connected only where a JobsBackend is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_jobs import signals
from django_jobs.compat import task_finished

from .run import backend_class
from .task import known_task

if TYPE_CHECKING:
    from django_jobs.models import Job


class TaskEndedBadly(Exception):
    """Carries the recorded traceback of a task into the log; it is never raised to a caller."""


def connect() -> None:
    """Connect to the signals of jobs that end badly; connecting again changes nothing."""
    signals.job_dead.connect(_ended, dispatch_uid="django_jobs.task_backend.dead")
    signals.job_cancelled.connect(_ended, dispatch_uid="django_jobs.task_backend.cancelled")
    signals.job_failed.connect(_failed, dispatch_uid="django_jobs.task_backend.failed")


def _ended(sender: type, job: Job, **kwargs: Any) -> None:
    _finished(job)


def _failed(sender: type, job: Job, **kwargs: Any) -> None:
    from .results import is_task

    # A failed job with a dead letter is announced as dead too, and one that is tried again has not finished.
    if job.status == "failed" and is_task(job) and not job.dead_letters.open().exists():
        _finished(job)


def _finished(job: Job) -> None:
    from .results import is_task, result_of

    if not job.is_finished or not is_task(job):
        return
    task = known_task(job.job_type)
    result = result_of(job, task.backend if task else "default")
    try:
        raise TaskEndedBadly(result.errors[-1].traceback)
    except TaskEndedBadly:
        # Within the handler, because Django's log takes the exception from there.
        task_finished.send_robust(sender=backend_class(result.backend), task_result=result)
