"""Our options of a task: their names, and their values from the task or from the OPTIONS of its backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import Any

from django_jobs.compat import InvalidTask, TaskResult
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import check_handler_options
from django_jobs.limit import KeyOf, Limit, fair_key_of
from django_jobs.names import did_you_mean
from django_jobs.submission import check_submission

# What belongs to one enqueue, so that `using()` may change it.
SUBMIT_OPTIONS = (
    "max_retries",
    "timeout_seconds",
    "unique_key",
    "depends_on",
    "on_dependency_failure",
    "metadata",
    "limit_key",
)
# What belongs to the handler, and so to every run of the task.
RUN_OPTIONS = (
    "base_delay",
    "max_delay",
    "retry_on",
    "fail_on",
    "atomic",
    "isolation",
    "dead_letter",
    "max_crashes",
    "encrypt",
    "limit",
    "fair_key",
)
TASK_OPTIONS = (*SUBMIT_OPTIONS, *RUN_OPTIONS)
# What a backend's OPTIONS may give as defaults; a unique key, dependencies, a limit or a fair key for all would make no sense.
BACKEND_OPTIONS = (
    "max_retries",
    "timeout_seconds",
    "on_dependency_failure",
    *(name for name in RUN_OPTIONS if name not in ("limit", "fair_key")),
)


class TaskRefused(InvalidTask, InvalidJob):
    """A task that was refused: both Django's InvalidTask and our InvalidJob; nothing was written."""


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise TypeError for keywords that nobody knows, as a call with a wrong keyword does."""
    known = list(known)
    for name in given:
        if name == "run_after" and where == "@task":
            raise TypeError("run_after cannot be given to @task; use .using(run_after=…) for each enqueue")
        if name not in known:
            raise TypeError(f"{where} has no option {name!r}.{did_you_mean(name, known)}")


def option(task: Any, name: str, defaults: Mapping[str, Any]) -> Any:
    """Return an option of the task, else its backend's default, else None."""
    value = getattr(task, name, None)
    if value is None and name in BACKEND_OPTIONS:
        value = defaults.get(name)
        if name == "atomic" and iscoroutinefunction(task.func):
            return None  # a default for all tasks cannot hold for those that have no transaction to run in
    return value


def run_options(task: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task's handler, as `@job` takes them."""
    names = ("max_retries", "timeout_seconds", *RUN_OPTIONS)
    return {name: value for name in names if (value := option(task, name, defaults)) is not None}


def limit_of_task(limit: Limit) -> Limit:
    """Return the limit of a task's jobs: a key by name is looked up among the keyword arguments of the task."""
    if not isinstance(limit.key, str):
        return limit

    def value(payload: dict[str, Any]) -> str | None:
        return limit.value_of(payload["kwargs"])

    value.__qualname__ = limit.key
    return replace(limit, key=value)


def fair_key_of_task(key: KeyOf) -> KeyOf:
    """Return the fair key of a task's jobs: one by name is looked up among the keyword arguments of the task."""
    if not isinstance(key, str):
        return key

    def value(payload: dict[str, Any]) -> str | None:
        return fair_key_of(key, payload["kwargs"])

    value.__qualname__ = key
    return value


def submit_options(
    task: Any, args: Iterable[Any], kwargs: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of one submit of a task."""
    options = {name: value for name in SUBMIT_OPTIONS if (value := option(task, name, defaults)) is not None}
    unique_key = options.get("unique_key")
    if callable(unique_key):
        options["unique_key"] = unique_key(*args, **kwargs)
    return options


def check_options(task: Any) -> None:
    """Raise TaskRefused for wrong values of a task's own options; what a function returns is checked at the enqueue."""
    given = {name: value for name in SUBMIT_OPTIONS if (value := getattr(task, name)) is not None}
    fixed = {name: value for name, value in given.items() if value != () and not callable(value)}
    rules = run_options(task, {})
    with task_refused():
        if fixed:
            check_submission(task.module_path, None, fixed)
        if rules:
            check_handler_options(task.func, task.module_path, rules)


def as_ids(depends_on: Any) -> Any:
    """Return results among dependencies as their ids; everything else as it is, for the validator to judge."""
    if isinstance(depends_on, TaskResult):
        return (depends_on.id,)
    if isinstance(depends_on, str | bytes) or not isinstance(depends_on, Iterable):
        return depends_on
    return tuple(item.id if isinstance(item, TaskResult) else item for item in depends_on)


@contextmanager
def task_refused() -> Iterator[None]:
    """Raise an InvalidJob of the block as TaskRefused."""
    try:
        yield
    except TaskRefused:
        raise
    except InvalidJob as error:
        raise TaskRefused(*error.problems) from None
