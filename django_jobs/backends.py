"""The backends for Django's tasks: `JobsBackend` enqueues jobs; its siblings take the same options in tests.

No model is imported and no query made when a backend is constructed: that happens while the site's tasks are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.utils import timezone

from django_jobs import compat
from django_jobs.compat import BaseTaskBackend, task_enqueued
from django_jobs.names import queue_problem
from django_jobs.rules import MAX_DELAY
from django_jobs.task_backend import receivers
from django_jobs.task_backend.checks import check_backend
from django_jobs.task_backend.options import TaskRefused
from django_jobs.task_backend.run import register
from django_jobs.task_backend.task import JobsTask, task

if TYPE_CHECKING:
    from django_jobs.compat import Task, TaskResult

    AnyTask = Task[..., Any]
    AnyResult = TaskResult[..., Any]

Abilities = tuple[bool, bool, bool]  # async tasks, priorities, run_after

__all__ = ["DummyBackend", "ImmediateBackend", "JobsBackend", "JobsTask", "TaskRefused", "task"]


class TakesOurOptions(BaseTaskBackend):
    """Base of the three backends: tasks with our options, `run_after` as a timedelta too, and checks."""

    task_class = JobsTask

    def validate_task(self, task: AnyTask) -> None:
        """Raise InvalidTask for a task that cannot be enqueued here."""
        run_after: Any = task.run_after
        if not isinstance(run_after, timedelta):
            return super().validate_task(task)
        if not timedelta(0) <= run_after <= MAX_DELAY:
            raise TaskRefused(
                f"run_after={run_after!r}: give a timedelta from 0 to {MAX_DELAY.days} days, or an aware datetime"
            )
        seen: Any = SimpleNamespace(
            func=task.func,
            priority=task.priority,
            takes_context=task.takes_context,
            queue_name=task.queue_name,
            run_after=timezone.now() + run_after,
        )
        return super().validate_task(seen)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Name what is wrong with this backend in the TASKS setting."""
        return [*super().check(**kwargs), *check_backend(self)]


class JobsBackend(TakesOurOptions):
    """Enqueues tasks as jobs, in the caller's transaction; `runworkers` runs them.

    OPTIONS are defaults for its tasks: max_retries, timeout_seconds, base_delay, max_delay, retry_on, fail_on, atomic,
    isolation, dead_letter, max_crashes, on_dependency_failure; and `using`, the alias of the database of their jobs.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, dict(params))
        # A task that is valid, and for which abilities of this backend; by the id of its function, which the task keeps alive.
        self._valid: dict[int, tuple[AnyTask, Abilities]] = {}
        receivers.connect()

    def validate_task(self, task: AnyTask) -> None:
        """Raise InvalidTask for a task that cannot be enqueued here; this process knows a valid one from then on."""
        abilities = (self.supports_async_task, self.supports_priority, self.supports_defer)
        known = self._valid.get(id(task.func))
        if known is not None and known[0] is task and known[1] == abilities:
            return
        super().validate_task(task)
        if "<" in task.func.__qualname__:  # every lambda of a module has the same name
            raise TaskRefused("Task function must be defined at a module level, with a name of its own.")
        problem = queue_problem(task.queue_name)
        if problem:
            raise TaskRefused(problem)
        register(task, self.alias, self.options)
        self._valid[id(task.func)] = (task, abilities)

    def enqueue(self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AnyResult:  # type: ignore[override]
        """Write the task's job and return its result.

        Raises InvalidTask for a task, and TypeError or ValueError for arguments, that cannot be stored; nothing is
        written then. With a `unique_key` that a live job holds, the result of that job is returned.
        """
        from django_jobs.db.connections import database_of_submit
        from django_jobs.task_backend.enqueue import enqueue

        self.validate_task(task)
        with database_of_submit(self.options.get("using")):
            result, is_new = enqueue(task, args, kwargs, self.alias, self.options)
        if is_new:
            task_enqueued.send_robust(sender=type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> AnyResult:
        """Return the result of a task by id; raise TaskResultDoesNotExist when there is none."""
        from django_jobs.task_backend.results import find_result

        return find_result(result_id, self.alias, self.options)


class ImmediateBackend(TakesOurOptions, compat.ImmediateBackend):
    """Runs a task at its enqueue, as Django's does; our options are accepted and not acted upon."""


class DummyBackend(TakesOurOptions, compat.DummyBackend):
    """Keeps results in memory and runs nothing, as Django's does; our options are accepted and not acted upon."""
