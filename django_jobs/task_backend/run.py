"""The handlers of tasks: what the worker calls, and how a process knows a task. Nothing is imported from a row."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.utils import timezone

from django_jobs.compat import (
    Task,
    TaskContext,
    TaskResult,
    TaskResultStatus,
    normalize_json,
    task_backends,
    task_finished,
    task_started,
)
from django_jobs.exceptions import Fail
from django_jobs.handlers import make_handler, registry

from .options import RUN_OPTIONS, TaskRefused, fair_key_of_task, limit_of_task, run_options, task_refused
from .task import TaskHandler

if TYPE_CHECKING:
    AnyTask = Task[..., Any]
    AnyResult = TaskResult[..., Any]
    BaseContext = TaskContext[..., Any]
else:
    BaseContext = TaskContext


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsTaskContext(BaseContext):  # type: ignore[misc]  # the stubs forget that it is frozen
    """Django's context of a running task; `job` is ours: `report_progress()`, `check_cancelled()`, `dependencies()`."""

    job: Any = None


class Runner(TaskHandler):
    """The handler of one task: calls its function with the arguments of the row and sends Django's signals."""

    def __init__(self, task: AnyTask, alias: str, defaults: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, task.func)
        self.task = task
        self.alias = alias
        self.defaults = defaults

    def __call__(self, context: Any, payload: dict[str, Any]) -> Any:
        result = _start(self.task, context, payload)
        returned = self.task.func(*_arguments(self.task, result, context), **result.kwargs)
        return _finish(result, context, returned)


class AsyncRunner(Runner):
    """The handler of a coroutine task; the signals' receivers may use the database, so they run in a thread."""

    async def __call__(self, context: Any, payload: dict[str, Any]) -> Any:
        result = await sync_to_async(_start)(self.task, context, payload)
        returned = await self.task.func(*_arguments(self.task, result, context), **result.kwargs)
        return _finish(result, context, returned)


def register(task: AnyTask, alias: str, defaults: Mapping[str, Any]) -> None:
    """Make this process know how to run a task; raise TaskRefused for wrong options or a name that is taken.

    All variants that `using()` makes of a task share the handler of the first one.
    """
    held = registry.find(task.module_path)
    if held is not None and isinstance(held.function, Runner):
        runner = held.function
        if runner.task.func is task.func:
            if runner.task is not task:
                _refuse_other_rules(runner.task, task)
            if alias != runner.alias or defaults == runner.defaults:
                return
    elif held is not None and held.function is task.func:
        raise TaskRefused(f"{task.module_path!r} is a job already; a function is either a job or a task")
    kind = AsyncRunner if iscoroutinefunction(task.func) else Runner
    options: dict[str, Any] = {"takes_context": True, "queue": task.queue_name, **run_options(task, defaults)}
    if "limit" in options:
        options["limit"] = limit_of_task(options["limit"])
    if "fair_key" in options:
        options["fair_key"] = fair_key_of_task(options["fair_key"])
    runner = kind(task, alias, defaults)
    with task_refused():
        registry.register(make_handler(runner, task.module_path, options))


def _refuse_other_rules(known: AnyTask, task: AnyTask) -> None:
    for name in RUN_OPTIONS:
        wanted = getattr(task, name, None)
        if wanted is not None and wanted != getattr(known, name, None):
            raise TaskRefused(
                f"{name}={wanted!r}: {task.module_path!r} is a task already, with other rules for its runs"
            )


def backend_class(alias: str) -> type:
    """Return the class of a backend: the sender of Django's signals."""
    return type(task_backends[alias])


def _start(task: AnyTask, context: Any, payload: Mapping[str, Any]) -> AnyResult:
    from .results import running_result

    unknown = sorted(set(payload) - {"args", "kwargs"})
    if unknown:
        raise Fail(f"the payload of a task is {{'args': […], 'kwargs': {{…}}}}, and this one has {', '.join(unknown)}")
    result = running_result(task, context, payload)
    task_started.send_robust(sender=backend_class(result.backend), task_result=result)
    return result


def _arguments(task: AnyTask, result: AnyResult, context: Any) -> list[Any]:
    return [JobsTaskContext(task_result=result, job=context), *result.args] if task.takes_context else result.args


def _finish(result: AnyResult, context: Any, returned: Any) -> Any:
    """Return the value as JSON, and have `task_finished` sent when the database has recorded it."""
    from django_jobs.lifecycle.settle import on_completion
    from django_jobs.worker.executor import BadResult

    try:
        value = normalize_json(returned)
    except (TypeError, ValueError) as error:
        # A retry would repeat the task's effects and end the same.
        raise BadResult(f"the task returned what is not JSON: {error}") from error

    def completed() -> None:
        for name, now in (
            ("status", TaskResultStatus.SUCCESSFUL),
            ("finished_at", timezone.now()),
            ("_return_value", value),
        ):
            object.__setattr__(result, name, now)
        task_finished.send_robust(sender=backend_class(result.backend), task_result=result)

    on_completion(context.job_id, context.fence, completed)
    return value
