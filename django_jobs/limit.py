"""Limits: how many jobs may run at once, and how many may start in a time, as the code says it; no database here.

A scope is one limit for one value of its key: "type:mail.send", "queue:imports 7", "name:bank acme".
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from django_jobs.exceptions import InvalidJob
from django_jobs.names import did_you_mean, fair_key_problem, limit_key_problem, limit_name_problem
from django_jobs.numbers import is_integer
from django_jobs.text import describe_exception, shown

MOST_AT_ONCE = 1_000_000
MOST_STARTS = 1_000_000_000
_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}
_RATE = re.compile(rf"([0-9]{{1,10}})/({'|'.join(_UNITS)})")
_LATE_SHARE, _LATE_SECONDS = 0.15, 1.0  # see `Rate.late`
KeyOf = str | Callable[[dict[str, Any]], object]


class Rate(NamedTuple):
    """At most `number` starts in any `seconds` (a sliding window)."""

    number: int
    seconds: int

    @property
    def late(self) -> float:
        """By how many seconds a handler may begin later than its start was recorded, as far as rates allow for it.

        A handler that looks at the clock sees a later time than the one at which its start was recorded, right before it was
        called: by a few milliseconds, or by a tenth of a second on a busy host. Were the recorded time to count, a late start and
        one in time could lie nearer to each other than a rate lets them.
        """
        return min(self.seconds * _LATE_SHARE, _LATE_SECONDS)

    @property
    def kept(self) -> int:
        """For how many seconds a start stays on record: the next longer unit, which an operator may change to."""
        return min((unit for unit in _UNITS.values() if unit > self.seconds), default=2 * self.seconds)


def parse_rate(text: object) -> Rate:
    """Return the rate that a text such as "100/m" says; raise InvalidJob for any other value."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 1 <= int(found[1]) <= MOST_STARTS:
        words = f'give a number from 1 to {MOST_STARTS} and a unit, s, m, h or d, such as "100/m"'
        raise InvalidJob(f"rate={shown(text)}: {words}")
    return Rate(int(found[1]), _UNITS[found[2]])


@dataclass(frozen=True, kw_only=True)
class Limit:
    """At most so many jobs at once, and at most so many starts in a time, over all processes and hosts.

    Args:
        concurrency: how many jobs may run at once, at least 1.
        rate: how many may start in any second, minute, hour or day: "10/s", "100/m", "1000/h", "5000/d".
        key: count them apart for each value of this key of the payload, or of what this function makes of the payload when
            the job is submitted. A job whose value is None is not limited.
        name: limits of one name are one limit, whatever types have them; by default each type and queue has its own.

    Raises InvalidJob, a ValueError, with every problem.
    """

    concurrency: int | None = None
    rate: str | None = None
    key: KeyOf | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.concurrency is None and self.rate is None:
            problems.append("Limit: it needs concurrency or rate: how many jobs may run at once, or start in a time")
        if self.concurrency is not None and not is_integer(self.concurrency, 1, MOST_AT_ONCE):
            hint = "; to stop a queue, pause it" if self.concurrency == 0 else ""
            problems.append(
                f"Limit: concurrency={shown(self.concurrency)}: give an integer from 1 to {MOST_AT_ONCE}{hint}"
            )
        if self.rate is not None:
            try:
                parse_rate(self.rate)
            except InvalidJob as error:
                problems += [f"Limit: {problem}" for problem in error.problems]
        if self.key is not None and (problem := key_problem(self.key)):
            problems.append(f"Limit: key={shown(self.key)}: {problem}")
        if self.name is not None and (problem := limit_name_problem(self.name)):
            problems.append(f"Limit: {problem}")
        if problems:
            raise InvalidJob(*problems)

    @property
    def parsed_rate(self) -> Rate | None:
        """The rate as numbers; None without one."""
        return None if self.rate is None else parse_rate(self.rate)

    @property
    def key_text(self) -> str:
        """The key as an operator reads it: a payload's key, a function's name, or nothing."""
        return key_text(self.key)

    @property
    def told(self) -> dict[str, Any]:
        """The arguments of a limit that counts as this one does, as JSON takes them, for a process without its function."""
        key = "key" if callable(self.key) else self.key  # its value is in the job's row
        return {"concurrency": self.concurrency, "rate": self.rate, "key": key, "name": self.name}

    def full_name(self, owner: str) -> str:
        """Return the name under which it is kept: its own, or its owner's, such as "type:mail.send" or "queue:mail"."""
        return f"name:{self.name}" if self.name else owner

    def value_of(self, payload: Mapping[str, Any], option: str = "limit") -> str | None:
        """Return the value of the key in a payload, as text; None for a limit without key, and for a job that is not limited.

        Raises InvalidJob when the payload has no such key, or a value that cannot be one, or when the function fails.
        """
        return (
            None
            if self.key is None
            else _value_of(self.key, payload, option, "by which jobs are counted", "is not limited", limit_key_problem)
        )


def fair_key_of(key: KeyOf | None, payload: Mapping[str, Any]) -> str | None:
    """Return the fair key of a job with this payload; None for a job without one.

    Raises InvalidJob as `Limit.value_of` does.
    """
    return (
        None
        if key is None
        else _value_of(key, payload, "fair_key", "by which jobs take turns", "has no key", fair_key_problem)
    )


def _value_of(
    key: KeyOf,
    payload: Mapping[str, Any],
    option: str,
    purpose: str,
    without: str,
    problem_of: Callable[[object], str | None],
) -> str | None:
    name = key_text(key)
    if isinstance(key, str):
        if key not in payload:
            hint = did_you_mean(key, payload) or f" Give null for a job that {without}."
            raise InvalidJob(f"{option}: the payload has no key {key!r}, {purpose}.{hint}")
        value: object = payload[key]
    else:
        try:
            value = key(dict(payload))
        except InvalidJob:
            raise
        except Exception as error:
            raise InvalidJob(f"{option}: {name} failed: {describe_exception(error)}") from error
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        words = f"give a string or an integer, or None for a job that {without}"
        raise InvalidJob(f"{option}: {name} is {shown(value)}: {words}")
    if problem := problem_of(str(value)):
        raise InvalidJob(f"{option}: {name}: {problem}")
    return str(value)


def key_text(key: KeyOf | None) -> str:
    """Return a key as an operator reads it: a payload's key, a function's name, or nothing."""
    if key is None or isinstance(key, str):
        return key or ""
    return f"{getattr(key, '__qualname__', type(key).__name__)}()"


def key_problem(key: object) -> str | None:
    """Return what is wrong with a key: the name of a key of the payload, or a plain function of it."""
    if isinstance(key, str):
        return None if key else "give the name of a key of the payload; this one is empty"
    if not callable(key):
        return "give the name of a key of the payload, or a function of the payload"
    if inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(getattr(key, "__call__", None)):  # noqa: B004
        return "give a plain function: it is called at submit, and nobody would await an async def"
    return None


def limit_of(value: Any) -> Limit:
    """Return a limit given as one, or as a dict of its keywords; raise InvalidJob for anything else."""
    if isinstance(value, Limit):
        return value
    known = [field.name for field in fields(Limit)]
    if not isinstance(value, Mapping):
        raise InvalidJob(f"give Limit(…), or a dict with {', '.join(known)}, not {shown(value)}")
    if unknown := [name for name in value if name not in known]:
        raise InvalidJob(*(f"Limit has no {shown(name)}.{did_you_mean(name, known)}" for name in unknown))
    return Limit(**value)


def type_owner(job_type: str) -> str:
    """Return the name of a type's own limit."""
    return f"type:{job_type}"


def queue_owner(queue: str) -> str:
    """Return the name of a queue's own limit."""
    return f"queue:{queue}"


def scope_of(name: str, value: str | None, *, keyed: bool) -> str | None:
    """Return a scope by the name of its limit and the value of the key; None for a job that the limit does not hold."""
    if value is None:
        return None if keyed else name
    return f"{name} {value}"


def name_of_scope(scope: str) -> str:
    """Return the name of a scope's limit."""
    return scope.partition(" ")[0]


def value_of_scope(scope: str) -> str | None:
    """Return the value of a scope's key, or None."""
    return scope.partition(" ")[2] or None
