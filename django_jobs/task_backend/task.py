"""A task with our options: Django's `Task`, with the options of `@job` and `submit()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, overload

from django_jobs.compat import Task, task_backends
from django_jobs.handlers import registry
from django_jobs.limit import Limit

from .options import RUN_OPTIONS, SUBMIT_OPTIONS, TASK_OPTIONS, TaskRefused, as_ids, check_options, refuse_unknown

if TYPE_CHECKING:
    BaseTask = Task[..., Any]
    Exceptions = type[BaseException] | tuple[type[BaseException], ...]
else:
    BaseTask = Task


class TaskHandler:
    """Base of the handlers that run tasks, by which `known_task` recognizes them."""

    task: BaseTask


def known_task(job_type: str) -> BaseTask | None:
    """Return the task of a job type if this process knows it."""
    handler = registry.find(job_type)
    return handler.function.task if handler is not None and isinstance(handler.function, TaskHandler) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsTask(BaseTask):
    """A task whose enqueue writes a job. None means that the option was not given.

    unique_key: a string, or a function of the task's arguments that returns one.
    depends_on: task results, jobs or ids.
    limit: its `key` is the name of a keyword argument; fair_key: the name of one.
    The other options are those of `@job` and `submit()`.
    """

    max_retries: int | None = None
    timeout_seconds: float | None = None
    unique_key: str | Callable[..., str] | None = None
    depends_on: Any = ()
    on_dependency_failure: str | None = None
    metadata: dict[str, Any] | None = field(default=None, hash=False)
    limit_key: str | None = None
    base_delay: float | None = None
    max_delay: float | None = None
    retry_on: Exceptions | None = None
    fail_on: Exceptions | None = None
    atomic: bool | None = None
    isolation: str | None = None
    dead_letter: bool | None = None
    max_crashes: int | None = None
    limit: Limit | None = None
    fair_key: str | Callable[[dict[str, Any]], object] | None = None
    encrypt: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depends_on", as_ids(self.depends_on))
        # By name: a dataclass with slots is a second class, and super() would look for the first one.
        Task.__post_init__(self)
        check_options(self)

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | timedelta | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> JobsTask:
        """Return the task with other options; None leaves one as it is.

        `run_after` as a timedelta counts from the enqueue, by the database's clock. Raises TypeError for options that
        belong to every run of the task, such as `atomic`, and InvalidTask for wrong values.
        """
        for name in options:
            if name in RUN_OPTIONS:
                raise TypeError(f"{name!r} holds for every run of a task: give it to @task, not to using()")
        refuse_unknown(options, SUBMIT_OPTIONS, "using()")
        options |= {"priority": priority, "queue_name": queue_name, "run_after": run_after, "backend": backend}
        return replace(self, **{name: value for name, value in options.items() if value is not None})


@overload
def task(function: Callable[..., Any], /) -> JobsTask: ...


@overload
def task(
    function: None = None,
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
    takes_context: bool = False,
    **options: Any,
) -> Callable[[Callable[..., Any]], JobsTask]: ...


def task(
    function: Callable[..., Any] | None = None,
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
    takes_context: bool = False,
    **options: Any,
) -> Any:
    """Make a function a task, as Django's `@task` does, with our options on every version of Django.

    Raises TypeError for unknown options, and InvalidTask for wrong values or a backend that is none of ours.
    """
    refuse_unknown(options, TASK_OPTIONS, "@task")

    def decorate(decorated: Callable[..., Any]) -> Any:
        task_class = task_backends[backend].task_class
        if options and not issubclass(task_class, JobsTask):
            raise TaskRefused(
                f"{', '.join(options)}: the backend {backend!r} does not know them; use one of django_jobs.backends"
            )
        return task_class(
            func=decorated,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            takes_context=takes_context,
            run_after=None,
            **options,
        )

    return decorate if function is None else decorate(function)
