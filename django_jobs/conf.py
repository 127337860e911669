"""The settings: one dict, `DJANGO_JOBS`, read once into a frozen value. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from .names import did_you_mean, queue_problem, shown

NAME = "DJANGO_JOBS"
DEFAULT_RETENTION = {"completed": 7, "cancelled": 7, "failed": 30, "dead": 30}
DEFAULT_REDACT = ("password", "token", "secret", "authorization", "api_key")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSettings:
    """What the site says about one queue; None is "not said". Delays and timeouts in seconds."""

    default_priority: int | None = None
    max_workers: int | None = None
    max_retries: int | None = None
    base_delay: float | None = None
    max_delay: float | None = None
    timeout_seconds: float | None = None
    dead_letter: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobsSettings:
    """Every setting with its default.

    Seconds: LEASE_SECONDS, SHUTDOWN_GRACE_SECONDS, POLL_INTERVAL, BASE_DELAY, MAX_DELAY, TIMEOUT_SECONDS,
    TIMEOUT_GRACE_SECONDS. Bytes: PAYLOAD_MAX_BYTES, RESULT_MAX_BYTES. Megabytes: MAX_RSS_MB, PROCESS_MEMORY_MB.
    RETENTION: days per final status, None for never; dead jobs count from the day their letter is closed.
    """

    LEASE_SECONDS: float = 60.0
    SHUTDOWN_GRACE_SECONDS: float = 25.0
    POLL_INTERVAL: float = 0.1
    THREADS: int = 4
    PAYLOAD_MAX_BYTES: int = 262_144
    RESULT_MAX_BYTES: int = 262_144
    MAX_RETRIES: int = 3
    BASE_DELAY: float = 1.0
    MAX_DELAY: float = 3600.0
    TIMEOUT_SECONDS: float | None = None
    TIMEOUT_GRACE_SECONDS: float = 5.0
    MAX_CRASHES: int = 3
    PRIORITY: int = 5
    SHELL_JOBS: bool = False
    QUEUES: Mapping[str, QueueSettings] = field(default_factory=dict)
    RETENTION: Mapping[str, float | None] = field(default_factory=lambda: dict(DEFAULT_RETENTION))
    REDACT: tuple[str, ...] = DEFAULT_REDACT
    NOTIFY: bool = True
    ASYNC_CONCURRENCY: int = 1000
    MAX_RSS_MB: int | None = None
    MAX_JOBS: int | None = None
    PROCESS_MEMORY_MB: int | None = None


def parse(raw: Any) -> tuple[JobsSettings, list[str]]:
    """Return the settings, with defaults for what is wrong, and the problems that were found."""
    if not isinstance(raw, Mapping):
        return JobsSettings(), [f"{NAME} must be a dict, not {type(raw).__name__}"]
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = [one.name for one in dataclasses.fields(JobsSettings)]
    for key, value in raw.items():
        if key not in known:
            problems.append(f"{NAME}[{key!r}] is not a setting.{did_you_mean(key, known)}")
            continue
        problem, parsed = _parse_one(key, value)
        if problem:
            problems.append(f"{NAME}[{key!r}] = {shown(value)}: {problem}")
        else:
            values[key] = parsed
    return JobsSettings(**values), problems


def _parse_one(key: str, value: Any) -> tuple[str, Any]:
    if key == "QUEUES":
        return _parse_queues(value)
    if key == "RETENTION":
        return _parse_retention(value)
    if key == "REDACT":
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            return "give a list of key names", None
        return "", tuple(value)
    check, rule = _RULES[key]
    return ("" if check(value) else rule), value


def _parse_queues(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Mapping):
        return "give a dict of queue names to dicts", None
    queues: dict[str, QueueSettings] = {}
    known = [one.name for one in dataclasses.fields(QueueSettings)]
    for name, options in value.items():
        problem = queue_problem(name)
        if problem:
            return problem, None
        if not isinstance(options, Mapping):
            return f"the settings of queue {name!r} must be a dict", None
        for key, one in options.items():
            if key not in known:
                return f"queue {name!r} has no option {key!r}.{did_you_mean(key, known)}", None
            check, rule = _QUEUE_RULES[key]
            if one is not None and not check(one):
                return f"{key}={shown(one)} of queue {name!r}: {rule}", None
        queues[name] = QueueSettings(**options)
    return "", MappingProxyType(queues)


def _parse_retention(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Mapping):
        return "give a dict of final statuses to days", None
    for key, days in value.items():
        if key not in DEFAULT_RETENTION:
            return f"{key!r} is no final status.{did_you_mean(key, DEFAULT_RETENTION)}", None
        if days is not None and not _number(0, 36_500)(days):
            return f"days for {key!r} are a number from 0 to 36500, or None for never", None
    return "", MappingProxyType({**DEFAULT_RETENTION, **value})


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _or_none(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    check, text = rule
    return (lambda value: value is None or check(value)), f"{text}, or None"


Rule = tuple[Callable[[Any], bool], str]
_SECONDS: Rule = (_number(0.001, 10**9), "give a positive number of seconds")
_RETRIES: Rule = (_integer(0, 10**6), "give an integer from 0 to 1000000")
_PRIORITY: Rule = (_integer(1, 10), "give an integer from 1 to 10")
_BOOLEAN: Rule = (lambda value: isinstance(value, bool), "give True or False")
_COUNT: Rule = (_integer(1, 10**6), "give a positive integer")
_BYTES: Rule = (_integer(1024, 2**30), "give bytes, from 1024 to 1073741824")

_RULES: dict[str, Rule] = {
    "LEASE_SECONDS": (_number(1, 86_400), "give seconds from 1 to 86400"),
    "SHUTDOWN_GRACE_SECONDS": (_number(0, 86_400), "give seconds from 0 to 86400"),
    "POLL_INTERVAL": (_number(0.001, 3600), "give seconds from 0.001 to 3600"),
    "THREADS": (_integer(1, 1000), "give an integer from 1 to 1000"),
    "PAYLOAD_MAX_BYTES": _BYTES,
    "RESULT_MAX_BYTES": _BYTES,
    "MAX_RETRIES": _RETRIES,
    "BASE_DELAY": _SECONDS,
    "MAX_DELAY": _SECONDS,
    "TIMEOUT_SECONDS": _or_none(_SECONDS),
    "TIMEOUT_GRACE_SECONDS": (_number(0, 3600), "give seconds from 0 to 3600"),
    "MAX_CRASHES": (_integer(1, 100), "give an integer from 1 to 100"),
    "PRIORITY": _PRIORITY,
    "SHELL_JOBS": _BOOLEAN,
    "NOTIFY": _BOOLEAN,
    "ASYNC_CONCURRENCY": _COUNT,
    "MAX_RSS_MB": _or_none(_COUNT),
    "MAX_JOBS": _or_none(_COUNT),
    "PROCESS_MEMORY_MB": _or_none(_COUNT),
}
_QUEUE_RULES: dict[str, Rule] = {
    "default_priority": _PRIORITY,
    "max_workers": (_integer(1, 1000), "give an integer from 1 to 1000"),
    "max_retries": _RETRIES,
    "base_delay": _SECONDS,
    "max_delay": _SECONDS,
    "timeout_seconds": _SECONDS,
    "dead_letter": _BOOLEAN,
}


@lru_cache(maxsize=1)
def get_settings() -> JobsSettings:
    """Return the site's settings; raise ImproperlyConfigured with every problem."""
    parsed, problems = parse(getattr(django_settings, NAME, {}))
    if problems:
        raise ImproperlyConfigured("; ".join(problems))
    return parsed


def parse_queue(name: str, options: Mapping[str, Any]) -> QueueSettings:
    """Return the settings of one queue given in code; raise ImproperlyConfigured when they are wrong."""
    problem, queues = _parse_queues({name: options})
    if problem:
        raise ImproperlyConfigured(problem)
    return queues[name]  # type: ignore[no-any-return]


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == NAME:
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_jobs.conf")
