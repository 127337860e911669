"""The setting DJANGO_JOBS: a dict, checked and read once into a frozen dataclass."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import MappingProxyType
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from django_jobs.limit import Limit
from django_jobs.names import did_you_mean, queue_problem
from django_jobs.rules import (
    RULES,
    Refused,
    Rule,
    duration,
    flag,
    integer,
    limit_or_dict,
    number,
    optional,
    seconds,
    short_text,
    web_address,
)
from django_jobs.text import scrub, shown

NAME = "DJANGO_JOBS"
_MANY = 1_000_000
_LARGEST = 2**31 - 1
MAX_SITE = MAX_RELEASE = 64
# What deploys set, the most explicit ones first.
RELEASE_VARIABLES = (
    "RELEASE", "RELEASE_VERSION", "APP_VERSION", "SENTRY_RELEASE", "HEROKU_RELEASE_VERSION", "HEROKU_SLUG_COMMIT", "K_REVISION",
    "RENDER_GIT_COMMIT", "RAILWAY_GIT_COMMIT_SHA", "SOURCE_VERSION", "GIT_COMMIT", "GIT_SHA", "CI_COMMIT_SHA", "GITHUB_SHA",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem of the setting; `kind` is "shape", "key" or "value"."""

    kind: str
    message: str
    hint: str


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(word, str) for word in value):
        raise Refused("a list or tuple of strings")
    return tuple(value)


def _aliases(value: Any) -> tuple[str, ...]:
    known = {**settings.DATABASES, "default": {}}  # there is always one of that name
    given = value if isinstance(value, list | tuple) else ()
    if not given or not all(isinstance(alias, str) and alias in known for alias in given) or len({*given}) < len(given):
        raise Refused(f"a list of aliases of DATABASES, each once ({', '.join(sorted(known))})")
    return tuple(given)


def _release(value: Any) -> Any:
    if not isinstance(value, str) and not callable(value):
        raise Refused("a string, or a callable that returns one")
    return value


_mapping_default = MappingProxyType[str, Any]({})
_days = optional(number(0, 36_500, "days"))
RETENTION_DEFAULT: Mapping[str, float | None] = MappingProxyType(
    {"completed": 7, "cancelled": 7, "failed": 30, "dead": 30, "events": 7}
)


def _key(default: Any, rule: Rule | None) -> Any:
    return field(default_factory=lambda: default, metadata={"rule": rule})


def _addresses(value: Any) -> tuple[str, ...]:
    addresses = _words(value)
    if not all("@" in address and address.isprintable() for address in addresses):
        raise Refused("a list of e-mail addresses")
    return addresses


@dataclass(frozen=True, kw_only=True)
class AlertSettings:
    """DJANGO_JOBS["ALERTS"]: whom to tell by e-mail and at which address on the web, and what to tell.

    queue_wait: how long the oldest ready job of a queue may wait (seconds, kept of "10m"; None: for ever).
    """

    email: tuple[str, ...] = _key((), _addresses)
    webhook: str | None = _key(None, optional(web_address))
    queue_wait: float | None = _key(600.0, optional(duration))


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """DJANGO_JOBS["QUEUES"][name]: the settings of one queue, None where the site's hold. Times in seconds."""

    default_priority: int | None = _key(None, optional(RULES["priority"]))
    max_workers: int | None = _key(None, optional(integer(1, _MANY)))
    max_retries: int | None = _key(None, optional(RULES["max_retries"]))
    base_delay: float | None = _key(None, optional(RULES["base_delay"]))
    max_delay: float | None = _key(None, optional(RULES["max_delay"]))
    timeout_seconds: float | None = _key(None, optional(RULES["timeout_seconds"]))
    dead_letter: bool | None = _key(None, optional(RULES["dead_letter"]))
    limit: Limit | None = _key(None, optional(limit_or_dict))  # noqa: RUF009  a field, as above
    ageing: float | None = _key(None, optional(duration))


@dataclass(frozen=True, kw_only=True)
class JobsSettings:
    """The settings of the library, every default filled in.

    LEASE_SECONDS: a worker process silent for this long counts as dead (seconds; its heartbeat comes every quarter).
    SHUTDOWN_GRACE_SECONDS: how long a stopping worker lets its jobs finish (seconds).
    POLL_INTERVAL: how often an idle worker asks for ready jobs on a server that notifies nobody (seconds): ten times in it at
        first, after a minute once in five. It looks every five of them besides, after that minute every five seconds.
    THREADS: worker threads of a process. ASYNC_CONCURRENCY: coroutine jobs of a process at once.
    PAYLOAD_MAX_BYTES, RESULT_MAX_BYTES: of the encoded JSON (bytes).
    MAX_RETRIES, BASE_DELAY, MAX_DELAY: automatic retries, and the backoff between them (seconds).
    TIMEOUT_SECONDS: longest run of a handler (seconds; None: no limit). TIMEOUT_GRACE_SECONDS: what a handler gets to
    stop in after that (seconds). MAX_CRASHES: starts of a job that kills its process. PRIORITY: 1 to 10, higher first.
    SHELL_JOBS: allow jobs that run a shell command. QUEUES: `QueueSettings` by queue name.
    RETENTION: days that finished jobs are kept, by final status (None: for ever); one with an open dead letter stays.
        `events`: days that an event is kept for jobs that will wait for it.
    REDACT: payload keys whose values the admin masks. NOTIFY: wake workers by LISTEN/NOTIFY on PostgreSQL.
    MAX_RSS_MB, MAX_JOBS: a worker process past this much memory (MiB) or this many jobs is replaced (None: never).
    PROCESS_MEMORY_MB: memory limit of a job with isolation="process" (MiB; None: no limit).
    RELEASE: the release of the site's code, recorded with worker processes, attempts and dead letters: a string, a callable that
        returns one, or None for what a common environment variable says (see `this_release`).
    SITE: whose schedules and workers these are, where several sites share a database (None: see `this_site`).
    ENCRYPT: store payloads and results encrypted, where `@job(encrypt=…)` does not say otherwise.
    LOG_LEVEL: keep what handlers log from this level of `logging` up (a name or a number; None: nothing is kept).
    ALERTS: whom to tell that jobs die, wait or have no worker, see `AlertSettings` (None: nobody).
    DATABASES: the aliases that may hold jobs, each with tables of its own (None: what the routers name).
    UNKNOWN_TYPE_GRACE_SECONDS: how long a job whose type a worker does not know is left to another site or deploy before it is
    FAILED (seconds; None: an hour where another site is known, else 0).
    """

    LEASE_SECONDS: float = _key(60.0, seconds(1))
    SHUTDOWN_GRACE_SECONDS: float = _key(25.0, seconds())
    POLL_INTERVAL: float = _key(0.1, seconds(0.001))
    THREADS: int = _key(4, integer(1, 1_000))
    ASYNC_CONCURRENCY: int = _key(1000, integer(1, _MANY))
    PAYLOAD_MAX_BYTES: int = _key(262_144, integer(2, _LARGEST))
    RESULT_MAX_BYTES: int = _key(262_144, integer(2, _LARGEST))
    MAX_RETRIES: int = _key(3, RULES["max_retries"])
    BASE_DELAY: float = _key(1.0, RULES["base_delay"])
    MAX_DELAY: float = _key(3600.0, RULES["max_delay"])
    TIMEOUT_SECONDS: float | None = _key(None, optional(RULES["timeout_seconds"]))
    TIMEOUT_GRACE_SECONDS: float = _key(5.0, seconds())
    MAX_CRASHES: int = _key(3, RULES["max_crashes"])
    PRIORITY: int = _key(5, RULES["priority"])
    SHELL_JOBS: bool = _key(False, flag)
    QUEUES: Mapping[str, QueueSettings] = _key(_mapping_default, None)
    RETENTION: Mapping[str, float | None] = _key(RETENTION_DEFAULT, None)
    REDACT: tuple[str, ...] = _key(("password", "token", "secret", "authorization", "api_key"), _words)
    NOTIFY: bool = _key(True, flag)
    MAX_RSS_MB: int | None = _key(None, optional(integer(1, _MANY)))
    MAX_JOBS: int | None = _key(None, optional(integer(1, _LARGEST)))
    PROCESS_MEMORY_MB: int | None = _key(None, optional(integer(1, _MANY)))
    SITE: str | None = _key(None, optional(short_text(MAX_SITE)))
    DATABASES: tuple[str, ...] | None = _key(None, optional(_aliases))
    RELEASE: str | Callable[[], str] | None = _key(None, optional(_release))  # noqa: RUF009  as the others
    UNKNOWN_TYPE_GRACE_SECONDS: float | None = _key(None, optional(seconds()))
    ENCRYPT: bool = _key(False, flag)
    LOG_LEVEL: int | None = _key(None, optional(RULES["log_level"]))
    ALERTS: AlertSettings | None = _key(None, None)  # noqa: RUF009  as the others


def parse(raw: Any) -> tuple[JobsSettings, list[Problem]]:
    """Return the settings and the problems of the setting's value; a key that has a problem keeps its default."""
    problems: list[Problem] = []
    values = _parse_keys(NAME, raw, _rules(JobsSettings), problems)
    if "QUEUES" in values:
        values["QUEUES"] = _parse_queues(values["QUEUES"], problems)
    if "RETENTION" in values:
        rules = dict.fromkeys(RETENTION_DEFAULT, _days)
        given = _parse_keys(f"{NAME}['RETENTION']", values["RETENTION"], rules, problems)
        values["RETENTION"] = MappingProxyType({**RETENTION_DEFAULT, **given})
    if values.get("ALERTS") is not None:
        values["ALERTS"] = _parse_alerts(values["ALERTS"], problems)
    return JobsSettings(**values), problems


@cache
def _read() -> tuple[JobsSettings, list[Problem]]:
    return parse(getattr(settings, NAME, {}))


@cache
def get_settings() -> JobsSettings:
    """Return the settings, which are read once; raise ImproperlyConfigured with every problem."""
    parsed, problems = _read()
    if problems:
        raise ImproperlyConfigured(" ".join(f"{problem.message} {problem.hint}" for problem in problems))
    return parsed


def valid_settings() -> JobsSettings:
    """Return the settings, which are read once, with the defaults for those that are wrong.

    For what runs while the site's modules are imported: there a mistake in the setting is for the system checks to report.
    """
    return _read()[0]


def this_site() -> str:
    """Return the name of this site among those that share its database: SITE, else the package of the settings module."""
    module = os.environ.get(ENVIRONMENT_VARIABLE, "")  # while settings are overridden, their SETTINGS_MODULE is None
    return get_settings().SITE or module.partition(".")[0][:MAX_SITE]


@cache
def this_release() -> str:
    """Return the release of the site's code, at most MAX_RELEASE characters: RELEASE, else one of RELEASE_VARIABLES, else ""."""
    given = get_settings().RELEASE
    found = given() if callable(given) else given
    if found is None:
        found = next((os.environ[name] for name in RELEASE_VARIABLES if os.environ.get(name)), "")
    return scrub(found).strip()[:MAX_RELEASE]


def _rules(kind: type[JobsSettings] | type[QueueSettings] | type[AlertSettings]) -> dict[str, Rule | None]:
    return {key.name: key.metadata["rule"] for key in fields(kind)}


def _parse_keys(where: str, raw: Any, rules: Mapping[str, Rule | None], problems: list[Problem]) -> dict[str, Any]:
    """Return the valid items of a dict, each as its rule keeps it (a rule of None: the caller checks the value)."""
    if not isinstance(raw, Mapping):
        hint = f"Its keys may be: {', '.join(rules)}."
        problems.append(Problem(kind="shape", message=f"{where} must be a dict, not {shown(raw)}.", hint=hint))
        return {}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if not isinstance(key, str) or key not in rules:
            hint = did_you_mean(_like(key, rules), rules).strip() or f"The keys are: {', '.join(rules)}."
            problems.append(Problem(kind="key", message=f"{where} has an unknown key {shown(key)}.", hint=hint))
            continue
        rule = rules[key]
        try:
            values[key] = rule(value) if rule else value
        except Refused as refused:
            message = f"{where}[{key!r}] must be {refused.words}, not {shown(value)}.{refused.hint}"
            problems.append(Problem(kind="value", message=message, hint="Correct it, or leave it out for the default."))
    return values


def _like(key: Any, rules: Mapping[str, Rule | None]) -> Any:
    """Return a key in the case of the known keys, so that `threads` is like `THREADS`."""
    if not isinstance(key, str):
        return key
    return key.upper() if next(iter(rules)).isupper() else key.lower()


def _parse_queues(raw: Any, problems: list[Problem]) -> Mapping[str, QueueSettings]:
    where = f"{NAME}['QUEUES']"
    if not isinstance(raw, Mapping):
        hint = "Give a dict by queue name, such as {'mail': {'max_workers': 4}}."
        problems.append(Problem(kind="shape", message=f"{where} must be a dict, not {shown(raw)}.", hint=hint))
        return _mapping_default
    queues = {}
    for name, options in raw.items():
        problem = queue_problem(name)
        if problem:
            problems.append(Problem(kind="value", message=f"{where}: {problem}.", hint="Give the queue another name."))
        queues[name] = QueueSettings(**_parse_keys(f"{where}[{shown(name)}]", options, _rules(QueueSettings), problems))
    return MappingProxyType(queues)


def _parse_alerts(raw: Any, problems: list[Problem]) -> AlertSettings | None:
    where, known = f"{NAME}['ALERTS']", len(problems)
    alerts = AlertSettings(**_parse_keys(where, raw, _rules(AlertSettings), problems))
    if len(problems) == known and not alerts.email and alerts.webhook is None:
        hint = "Give 'email', a list of addresses, or 'webhook', or leave ALERTS out."
        problems.append(Problem(kind="value", message=f"{where} names nobody to tell.", hint=hint))
    return alerts


def _clear_cache(*, setting: str, **kwargs: Any) -> None:
    if setting in (NAME, "DATABASES"):
        _read.cache_clear()
        get_settings.cache_clear()
        this_release.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="django_jobs.conf")
