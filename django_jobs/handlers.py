"""The registry of handlers: which function runs which job type, with which options. Touches no database."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from django_jobs.arguments import Arguments, arguments_of, check_takes_list, check_takes_whole
from django_jobs.conf import JobsSettings, QueueSettings, get_settings
from django_jobs.exceptions import HandlerNotFound, InvalidJob
from django_jobs.limit import KeyOf, Limit
from django_jobs.names import did_you_mean, job_type_problem
from django_jobs.retry import RetryPolicy
from django_jobs.rules import RULES, check_options, fair_key_of_type

HandlerFunction = Callable[..., Any]
NO_QUEUE_SETTINGS = QueueSettings()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)  # by identity: a key of JobOptions
class Handler:
    """A function registered for a job type, with the options of `@job`; None where the queue's or the site's hold.

    `arguments` are those that it takes from the payload, None when it takes the whole.
    """

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
    limit: Limit | None = None
    fair_key: KeyOf | None = None
    log_level: int | None = None
    encrypt: bool | None = None
    bulk: int | None = None
    bulk_wait: float = 0.0
    is_async: bool = False
    arguments: Arguments | None = None


_OWN_FIELDS = ("job_type", "function", "is_async", "arguments")
_OPTION_RULES = {field.name: RULES[field.name] for field in fields(Handler) if field.name not in _OWN_FIELDS} | {
    "fair_key": fair_key_of_type,  # of a job it is the key's value
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
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
    queue_limit: Limit | None = None
    ageing: float | None = None

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
        self._options: dict[tuple[Handler | None, str], JobOptions] = {}
        self._options_settings: JobsSettings | None = None
        self.version = 0  # counts the changes

    def __iter__(self) -> Iterator[Handler]:
        return iter(list(self._handlers.values()))

    def register(self, handler: Handler) -> Handler:
        """Add a handler; raise InvalidJob when another function holds its job type."""
        held = self._handlers.get(handler.job_type)
        if held is not None and not _same_place(held.function, handler.function):
            raise InvalidJob(
                f"job type {handler.job_type!r} is registered already, by "
                f"{_place(held.function)}; give one of the two another name"
            )
        return self.replace(handler)

    def replace(self, handler: Handler) -> Handler:
        """Add a handler in the place of any other one of its job type."""
        self._handlers[handler.job_type] = handler
        self.version += 1
        return handler

    def forget(self, job_type: str) -> None:
        """Remove the handler of a job type, if there is one."""
        if self._handlers.pop(job_type, None) is not None:
            self.version += 1

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

    def job_options(self, handler: Handler | None, queue: str) -> JobOptions:
        """Return the options that hold for a handler's jobs in a queue: the handler's, else the queue's, else the site's."""
        settings = get_settings()
        if settings is not self._options_settings:
            self._options.clear()
            self._options_settings = settings
        options = self._options.get((handler, queue))
        if options is None:
            options = _job_options(handler, self.queue_settings(queue), settings)
            self._options[handler, queue] = options
        return options

    def queue_settings(self, queue: str) -> QueueSettings:
        """Return the site's settings of a queue."""
        return get_settings().QUEUES.get(queue, NO_QUEUE_SETTINGS)


def _job_options(handler: Handler | None, queue_settings: QueueSettings, settings: JobsSettings) -> JobOptions:
    def first(name: str, default: Any, queue_key: str | None = None) -> Any:
        for source, key in ((handler, name), (queue_settings, queue_key or name)):
            value = getattr(source, key, None)
            if value is not None:
                return value
        return default

    return JobOptions(
        priority=first("priority", settings.PRIORITY, "default_priority"),
        max_retries=first("max_retries", settings.MAX_RETRIES),
        timeout_seconds=first("timeout_seconds", settings.TIMEOUT_SECONDS),
        base_delay=first("base_delay", settings.BASE_DELAY),
        max_delay=first("max_delay", settings.MAX_DELAY),
        dead_letter=first("dead_letter", True),
        max_crashes=first("max_crashes", settings.MAX_CRASHES),
        retry_on=handler.retry_on if handler else None,
        fail_on=handler.fail_on if handler else (),
        queue_limit=queue_settings.limit,
        ageing=queue_settings.ageing,
    )


def encrypts(handler: Handler | None) -> bool:
    """Whether payloads and results of a handler's jobs are stored encrypted: as it says, else as the site says."""
    said = None if handler is None else handler.encrypt
    return get_settings().ENCRYPT if said is None else said


def encrypts_type(job_type: str) -> bool:
    """Whether payloads and results of a type's jobs are stored encrypted."""
    return encrypts(registry.find(job_type))


def encrypts_any() -> bool:
    """Whether anything is stored encrypted."""
    return get_settings().ENCRYPT or any(handler.encrypt for handler in registry)


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
    """Return a handler that gets the whole payload, made of a function and the options of `@job`.

    Raises InvalidJob with every problem.
    """
    return _make(function, job_type, options, check_takes_whole)


def make_handler_with_arguments(function: HandlerFunction, job_type: str | None, options: dict[str, Any]) -> Handler:
    """Return a handler that gets what its signature asks for: the payload's keys, or the whole as `payload`.

    Raises InvalidJob with every problem.
    """
    return _make(function, job_type, options, arguments_of)


def payload_problems(handler: Handler | None, payload: Mapping[str, Any]) -> list[str]:
    """Return why a handler, if there is one, cannot be called with a payload; nothing when it can."""
    return [] if handler is None or handler.arguments is None else handler.arguments.problems(payload)


def check_handler_options(function: HandlerFunction, job_type: str, options: dict[str, Any]) -> None:
    """Raise InvalidJob with every problem of the options of `@job`, for a function that will be called by another one."""
    _make(function, job_type, options, lambda function, takes_context: None)


def _make(
    function: HandlerFunction,
    job_type: str | None,
    options: dict[str, Any],
    arguments_of: Callable[[HandlerFunction, bool], Arguments | None],
) -> Handler:
    problems: list[str] = []
    arguments = None
    if not callable(function):
        problems.append(f"a handler is a function, not {type(function).__name__}")
    name = job_type if job_type is not None else _place(function)
    if problem := job_type_problem(name):
        problems.append(problem)
    kept = check_options(options, _OPTION_RULES, problems)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  an object with an async __call__ is a coroutine handler too
    )
    if is_async and kept.get("atomic"):
        problems.append("an async def handler cannot be atomic: Django's transactions belong to one thread")
    problems += _bulk_problems(options, kept)
    if callable(function):
        takes: Callable[[HandlerFunction, bool], Arguments | None] = (
            check_takes_list if options.get("bulk") is not None else arguments_of
        )
        try:
            arguments = takes(function, options.get("takes_context") is True)
        except InvalidJob as error:
            problems.extend(error.problems)
    if problems:
        raise InvalidJob(*problems)
    return Handler(job_type=name, function=function, is_async=is_async, arguments=arguments, **kept)


def _bulk_problems(options: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the options of a bulk handler beside each other."""
    if options.get("bulk") is None:
        wait = kept.get("bulk_wait")
        return (
            []
            if wait is None
            else [f"bulk_wait={wait:g}: it is for a bulk handler; give bulk, the most jobs of a call"]
        )
    if kept.get("isolation") == "process":
        return ["a bulk handler cannot have isolation='process', where each job has a process for itself"]
    return []


def _same_place(function: HandlerFunction, other: HandlerFunction) -> bool:
    """Return whether two functions are the same function, imported twice as autoreload and tests do."""
    return function is other or (_place(function) == _place(other) and hasattr(function, "__qualname__"))


def _place(function: Any) -> str:
    """Return where a function stands, as a dotted path; of another callable where its type does."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


registry = Registry()
