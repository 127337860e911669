"""The registry of handlers: which function runs which job type, with which options. Touches no database."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from django_jobs.conf import JobsSettings, get_settings
from django_jobs.exceptions import HandlerNotFound, InvalidJob
from django_jobs.names import did_you_mean, job_type_problem
from django_jobs.retry import RetryPolicy
from django_jobs.rules import RULES, check_options

HandlerFunction = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Handler:
    """A function registered for a job type, with the options of `@job`; None where the queue's or the site's hold."""

    job_type: str
    function: HandlerFunction
    queue: str | None = None
    priority: int | None = None
    max_retries: int | None = None
    timeout_seconds: float | None = None
    base_delay: float | None = None
    max_delay: float | None = None
    retry_on: tuple[type[BaseException], ...] | None = None
    fail_on: tuple[type[BaseException], ...] = ()
    atomic: bool = False
    isolation: str = "thread"
    takes_context: bool = False
    dead_letter: bool | None = None
    max_crashes: int | None = None
    is_async: bool = False


_OPTION_RULES = {
    field.name: RULES[field.name] for field in fields(Handler) if field.name not in ("job_type", "function", "is_async")
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The options that hold for the jobs of a handler in a queue, with every default filled in."""

    priority: int
    max_retries: int
    timeout_seconds: float | None
    base_delay: float
    max_delay: float
    dead_letter: bool
    max_crashes: int
    retry_on: tuple[type[BaseException], ...] | None
    fail_on: tuple[type[BaseException], ...]

    def policy(self, max_retries: int) -> RetryPolicy:
        """Return the retry policy of a job that was submitted with `max_retries`."""
        return RetryPolicy(
            max_retries=max_retries,
            base_delay=self.base_delay,
            max_delay=self.max_delay,
            retry_on=self.retry_on,
            fail_on=self.fail_on,
        )


class Registry:
    """Handlers by job type. A registry with a `parent` also has the parent's handlers, behind its own."""

    def __init__(self, parent: Registry | None = None) -> None:
        self._handlers: dict[str, Handler] = {}
        self._parent = parent
        self._rules: dict[tuple[str, str], Rules] = {}
        self._rules_settings: JobsSettings | None = None

    def __iter__(self) -> Iterator[Handler]:
        return iter(list(self._handlers.values()))

    def register(self, handler: Handler) -> Handler:
        """Add a handler; raise InvalidJob when another function holds its job type."""
        held = self._handlers.get(handler.job_type)
        if held is not None and not _same_place(held.function, handler.function):
            raise InvalidJob(
                f"job type {handler.job_type!r} is registered already, by "
                f"{held.function.__module__}.{held.function.__qualname__}; give one of the two another name"
            )
        return self.replace(handler)

    def replace(self, handler: Handler) -> Handler:
        """Add a handler in the place of any other one of its job type."""
        self._handlers[handler.job_type] = handler
        self._rules.clear()
        return handler

    def forget(self, job_type: str) -> None:
        """Remove the handler of a job type, if there is one."""
        if self._handlers.pop(job_type, None) is not None:
            self._rules.clear()

    def find(self, job_type: str) -> Handler | None:
        """Return the handler of a job type, or None."""
        handler = self._handlers.get(job_type)
        if handler is None and self._parent is not None:
            return self._parent.find(job_type)
        return handler

    def get(self, job_type: str) -> Handler:
        """Return the handler of a job type; raise HandlerNotFound with a suggestion."""
        handler = self.find(job_type)
        if handler is None:
            raise HandlerNotFound(unknown_job_type(job_type, self.job_types()))
        return handler

    def job_types(self) -> list[str]:
        """Return the known job types, sorted."""
        inherited = self._parent.job_types() if self._parent is not None else []
        return sorted({*inherited, *self._handlers})

    def queues(self) -> set[str]:
        """Return the queues that handlers name."""
        inherited = self._parent.queues() if self._parent is not None else set()
        return inherited | {handler.queue for handler in self._handlers.values() if handler.queue}

    def rules(self, handler: Handler | None, queue: str) -> Rules:
        """Return the options that hold for a handler's jobs in a queue: the handler's, else the queue's, else the site's."""
        settings = get_settings()
        if settings is not self._rules_settings:
            self._rules.clear()
            self._rules_settings = settings
        key = (handler.job_type if handler else "", queue)
        rules = self._rules.get(key)
        if rules is None:
            rules = self._rules[key] = make_rules(handler, queue, settings)
        return rules


def make_rules(handler: Handler | None, queue: str, settings: JobsSettings) -> Rules:
    """Return the options that hold for the jobs of a handler (None: a job type without one) in a queue."""
    queue_settings = settings.QUEUES.get(queue)

    def first(name: str, default: Any, queue_key: str | None = None) -> Any:
        for source, key in ((handler, name), (queue_settings, queue_key or name)):
            value = getattr(source, key, None)
            if value is not None:
                return value
        return default

    return Rules(
        priority=first("priority", settings.PRIORITY, "default_priority"),
        max_retries=first("max_retries", settings.MAX_RETRIES),
        timeout_seconds=first("timeout_seconds", settings.TIMEOUT_SECONDS),
        base_delay=first("base_delay", settings.BASE_DELAY),
        max_delay=first("max_delay", settings.MAX_DELAY),
        dead_letter=first("dead_letter", True),
        max_crashes=first("max_crashes", settings.MAX_CRASHES),
        retry_on=handler.retry_on if handler else None,
        fail_on=handler.fail_on if handler else (),
    )


def unknown_job_type(job_type: str, known: list[str]) -> str:
    """Return the message for a job type without a handler, with the known one that may have been meant."""
    return (
        f"job type {job_type!r} has no handler in this process."
        f"{did_you_mean(job_type, known)} Handlers are found in each installed app's jobs.py."
    )


def handler_problem(job_type: Any, handlers: Registry) -> str | None:
    """Return the message for a valid job type that has no handler; None for one that has, and for an invalid name."""
    if job_type_problem(job_type) or handlers.find(job_type) is not None:
        return None
    return unknown_job_type(job_type, handlers.job_types())


def make_handler(function: HandlerFunction, job_type: str | None, options: dict[str, Any]) -> Handler:
    """Return a handler made of a function and the options of `@job`; raise InvalidJob with every problem."""
    problems: list[str] = []
    if not callable(function):
        problems.append(f"a handler is a function, not {type(function).__name__}")
    name = job_type if job_type is not None else f"{function.__module__}.{function.__qualname__}"
    if problem := job_type_problem(name):
        problems.append(problem)
    kept = check_options(options, _OPTION_RULES, problems)
    if problems:
        raise InvalidJob(*problems)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  an object with an async __call__ is a coroutine handler too
    )
    if is_async and kept.get("atomic"):
        raise InvalidJob("an async def handler cannot be atomic: Django's transactions belong to one thread")
    return Handler(job_type=name, function=function, is_async=is_async, **kept)


def _same_place(function: HandlerFunction, other: HandlerFunction) -> bool:
    """Return whether two functions are the same function, imported twice as autoreload and tests do."""
    return (function.__module__, function.__qualname__) == (other.__module__, other.__qualname__)


registry = Registry()
