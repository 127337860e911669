"""Results of tasks: a job's row, and the attempts that did not complete it, as Django's TaskResult."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from django.utils import timezone

from django_jobs.compat import Task, TaskError, TaskResult, TaskResultDoesNotExist, TaskResultStatus, task_backends
from django_jobs.db.connections import databases_to_read, on_database
from django_jobs.models import Attempt, AttemptOutcome, Job, JobStatus
from django_jobs.names import id_problem
from django_jobs.payloads import readable

from .options import TaskRefused
from .task import JobsTask, known_task

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
    BaseResult = TaskResult[..., Any]
else:
    BaseResult = TaskResult

BACKEND_KEY = "task_backend"  # in a job's metadata: the alias of the backend that it was enqueued through
STATUSES = {
    JobStatus.PENDING: TaskResultStatus.READY,
    JobStatus.SCHEDULED: TaskResultStatus.READY,
    JobStatus.RUNNING: TaskResultStatus.RUNNING,
    JobStatus.COMPLETED: TaskResultStatus.SUCCESSFUL,
    # All three are final, so that whoever polls for the end sees one.
    JobStatus.FAILED: TaskResultStatus.FAILED,
    JobStatus.DEAD: TaskResultStatus.FAILED,
    JobStatus.CANCELLED: TaskResultStatus.FAILED,
}
# The exception of an attempt that ended without one of the task's own.
EXCEPTIONS = {
    AttemptOutcome.TIMED_OUT: "django_jobs.exceptions.TimedOut",
    AttemptOutcome.LEASE_LOST: "django_jobs.exceptions.LeaseLost",
    AttemptOutcome.CANCELLED: "django_jobs.exceptions.Cancelled",
}
NO_ERRORS = frozenset({AttemptOutcome.RELEASED, AttemptOutcome.SNOOZED, AttemptOutcome.WAITING})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsTaskResult(BaseResult):  # type: ignore[misc]  # the stubs forget that it is frozen
    """A task's result with its job, which has the rest: retries, progress, dead letters."""

    @property
    def job_id(self) -> str:
        """The job's id, which is the result's."""
        return self.id

    @property
    def job(self) -> Job:
        """The job as it is now; raises Job.DoesNotExist when it was pruned."""
        job = _find(self.id, task_backends[self.backend].options)
        if job is None:
            raise Job.DoesNotExist(f"no job {self.id!r}")
        return job


def find_result(result_id: Any, alias: str, options: Mapping[str, Any]) -> JobsTaskResult:
    """Return the result of a task by id; raise TaskResultDoesNotExist for every other id, malformed ones included."""
    job = _find(result_id, options) if id_problem(result_id) is None else None
    if job is None or not is_task(job):
        raise TaskResultDoesNotExist(result_id)
    return result_of(job, alias)


def _find(job_id: str, options: Mapping[str, Any]) -> Job | None:
    """Return a job of the database that a backend's options name, or else of any that may hold jobs."""
    for database in (options["using"],) if options.get("using") else databases_to_read():
        with on_database(database):
            if (job := Job.objects.filter(pk=job_id).first()) is not None:
                return job
    return None


def is_task(job: Job) -> bool:
    """Return whether a job was enqueued as a task, or is of a type that this process knows as one."""
    return BACKEND_KEY in job.metadata or known_task(job.job_type) is not None


def result_of(job: Job, alias: str, task: AnyTask | None = None) -> JobsTaskResult:
    """Return a job as the result of a task.

    Args:
        alias: the backend of the result when the job names none, or one that is no longer configured.
        task: the task if the caller has it; else it is restored.
    """
    alias = _configured(job.metadata.get(BACKEND_KEY), alias)
    # The fence shows whether there can have been an earlier start, so that a first run costs no further query.
    first_run = job.fence <= (2 if job.status == JobStatus.COMPLETED else 1)
    attempts = [] if first_run else list(Attempt.objects.using(job._state.db).filter(job_id=job.pk).order_by("pk"))
    worker_ids = [attempt.worker_id for attempt in attempts]
    if job.status in (JobStatus.RUNNING, JobStatus.COMPLETED):
        worker_ids.append(job.worker_id or "")
    starts = [moment for moment in (*(attempt.started_at for attempt in attempts), job.started_at) if moment]
    errors = _errors(attempts)
    if STATUSES[JobStatus(job.status)] == TaskResultStatus.FAILED and not errors:
        errors.append(_end_without_attempt(job))
    result = JobsTaskResult(
        task=task or restored_task(job, alias),
        id=job.pk,
        status=STATUSES[JobStatus(job.status)],
        enqueued_at=job.created_at,
        started_at=min(starts, default=None),
        finished_at=job.finished_at,
        last_attempted_at=max(starts, default=None),
        args=job.payload.get("args", []),
        kwargs=job.payload.get("kwargs", {}),
        backend=alias,
        errors=errors,
        worker_ids=worker_ids,
    )
    if job.status == JobStatus.COMPLETED:
        object.__setattr__(result, "_return_value", readable(job.result))
    return result


def running_result(task: AnyTask, context: Any, payload: Mapping[str, Any]) -> JobsTaskResult:
    """Return the result of a task whose run is about to start; without a query when it is the first one."""
    attempts = []
    if context.fence > 1:
        attempts = list(Attempt.objects.filter(job_id=context.job_id).order_by("pk"))
    now = timezone.now()
    return JobsTaskResult(
        task=task,
        id=context.job_id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=context.created_at,
        started_at=next((attempt.started_at for attempt in attempts if attempt.started_at), now),
        finished_at=None,
        last_attempted_at=now,
        args=payload.get("args", []),
        kwargs=payload.get("kwargs", {}),
        backend=_configured(context.metadata.get(BACKEND_KEY), task.backend),
        errors=_errors(attempts),
        worker_ids=[*(attempt.worker_id for attempt in attempts), context.worker_id],
    )


def _configured(alias: Any, otherwise: str) -> str:
    return alias if isinstance(alias, str) and alias in task_backends.settings else otherwise


def _errors(attempts: list[Attempt]) -> list[TaskError]:
    return [
        TaskError(
            exception_class_path=attempt.exception_class
            or EXCEPTIONS.get(AttemptOutcome(attempt.outcome), "django_jobs.exceptions.JobsError"),
            # With the end of its last line, as `traceback.format_exception` and Django's own backends have it.
            traceback=f"{attempt.traceback}\n" if attempt.traceback else attempt.error,
        )
        for attempt in attempts
        if attempt.outcome not in NO_ERRORS
    ]


def _end_without_attempt(job: Job) -> TaskError:
    if job.status == JobStatus.CANCELLED:
        return TaskError(exception_class_path=EXCEPTIONS[AttemptOutcome.CANCELLED], traceback="cancelled before it ran")
    return TaskError(exception_class_path="django_jobs.exceptions.JobsError", traceback=job.error or "")


def restored_task(job: Job, alias: str) -> AnyTask:
    """Return the task of a row. No check is made, so that a row outlives its task's function, queue and options."""
    known = known_task(job.job_type)
    kind = JobsTask if known is None else type(known)
    stored = {
        "func": _unknown_function(job.job_type) if known is None else known.func,
        "priority": -job.rank,
        "backend": alias,
        "queue_name": job.queue,
        "run_after": job.scheduled_at,
    }
    task = object.__new__(kind)
    for field in fields(kind):
        value = stored[field.name] if field.name in stored else getattr(known, field.name, field.default)
        object.__setattr__(task, field.name, value)
    return task


def _unknown_function(job_type: str) -> Any:
    """Return a function that has the name of a task which this process does not know, and cannot be called."""

    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise TaskRefused(f"this process does not know the task {job_type!r}")

    unknown.__module__, _, unknown.__qualname__ = job_type.rpartition(".")
    unknown.__name__ = unknown.__qualname__
    return unknown
