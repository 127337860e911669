"""Enqueue: write the job of a task and return its result, without reading the row that was just written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django_jobs.compat import Task, TaskResultStatus
from django_jobs.ids import new_id
from django_jobs.lifecycle.submit import submit, submit_row

from .options import submit_options, task_refused
from .results import BACKEND_KEY, JobsTaskResult, result_of

if TYPE_CHECKING:
    AnyTask = Task[..., Any]

# Options that `submit_row` does not take.
NEED_A_JOB = frozenset({"unique_key", "depends_on", "delay", "scheduled_at"})


def enqueue(
    task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any], alias: str, defaults: Mapping[str, Any]
) -> tuple[JobsTaskResult, bool]:
    """Submit a task's job in the caller's transaction; return its result, and whether the job is a new one.

    Raises TaskRefused, and TypeError or ValueError for arguments that are not JSON.
    """
    result = JobsTaskResult(
        task=task,
        id="",
        status=TaskResultStatus.READY,
        enqueued_at=None,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,  # type: ignore[arg-type]  # it makes JSON of them
        kwargs=kwargs,  # type: ignore[arg-type]
        backend=alias,
        errors=[],
        worker_ids=[],
    )
    payload = {"args": result.args, "kwargs": result.kwargs}
    options = _options(task, result, alias, defaults)
    rank = -int(task.priority)
    with task_refused():
        if not NEED_A_JOB.isdisjoint(options):
            return _submit(task, payload, rank, options, alias)
        job_id, created_at = submit_row(task.module_path, payload, rank=rank, options=options)
    object.__setattr__(result, "id", job_id)
    object.__setattr__(result, "enqueued_at", created_at)
    return result, True


def _options(task: AnyTask, result: JobsTaskResult, alias: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    options = submit_options(task, result.args, result.kwargs, defaults)
    options["queue"] = task.queue_name
    options["metadata"] = {**options["metadata"], BACKEND_KEY: alias} if "metadata" in options else {BACKEND_KEY: alias}
    run_after: Any = task.run_after
    if run_after is not None:
        options["delay" if isinstance(run_after, timedelta) else "scheduled_at"] = run_after
    if not options.get("depends_on", True):
        del options["depends_on"]
    return options


def _submit(
    task: AnyTask, payload: dict[str, Any], rank: int, options: dict[str, Any], alias: str
) -> tuple[JobsTaskResult, bool]:
    # We choose the id: a job with another one is the holder of the unique key.
    job_id = options["job_id"] = new_id()
    job = submit(task.module_path, payload, rank=rank, options=options)
    if job.pk != job_id:
        return result_of(job, alias), False
    # The task's `run_after` was a timedelta, and the stored one is a time; the result has it as later reads will.
    return result_of(job, alias, None if "delay" in options else task), True
