"""The rules for options: what a value must be, wherever it is given: to `submit()`, `@job`, a schedule, an import or a setting.

A new option has its rule here, and is then named by those who take it: a field of `Handler` (`@job`) or of `SubmitOptions`,
a key of `JobsSettings` or `QueueSettings`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django_jobs.exceptions import InvalidJob
from django_jobs.limit import Limit, key_problem, limit_of
from django_jobs.names import (
    did_you_mean,
    fair_key_problem,
    id_problem,
    limit_key_problem,
    queue_problem,
    unique_key_problem,
)
from django_jobs.numbers import LONGEST_SECONDS, MAX_RETRIES_ALLOWED, is_integer, is_number, seconds_of
from django_jobs.other_queues import called_here
from django_jobs.text import shown

# Returns the value as it is kept. Raises Refused, or InvalidJob with sentences that name the option themselves.
Rule = Callable[[Any], Any]
MAX_DELAY = timedelta(days=3660)
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MOST_AT_ONCE = 10_000  # jobs of one call of a bulk handler


class Refused(Exception):
    """What a value must be, such as "an integer from 1 to 10"; `hint` is empty, or a sentence after a blank."""

    def __init__(self, words: str, hint: str = "") -> None:
        self.words = words
        self.hint = hint
        super().__init__(words, hint)


def check(name: str, value: Any, rule: Rule) -> Any:
    """Return a value as it is kept; raise InvalidJob, which names the option."""
    try:
        return rule(value)
    except Refused as refused:
        raise InvalidJob(_sentence(name, value, refused)) from None


def check_all(*checks: Callable[[], object]) -> None:
    """Call each of them; raise one InvalidJob with the problems of all."""
    problems: list[str] = []
    for one in checks:
        try:
            one()
        except InvalidJob as error:
            problems += error.problems
    if problems:
        raise InvalidJob(*problems)


def check_options(
    options: Mapping[str, Any], rules: Mapping[str, Rule], problems: list[str], hint: str = ""
) -> dict[str, Any]:
    """Return the given options as they are kept and add what is wrong with the others to `problems`; None is not given.

    `hint` is what to say of an option that is unknown and like no other; `{0}` in it is its name.
    """
    kept = {}
    for name, value in options.items():
        rule = rules.get(name)
        if rule is None:
            better = called_here(name, rules) or did_you_mean(name, rules) or hint.replace("{0}", name)
            problems.append(f"unknown option {name!r}.{better}")
        elif value is not None:
            try:
                kept[name] = rule(value)
            except Refused as refused:
                problems.append(_sentence(name, value, refused))
            except InvalidJob as error:
                problems.extend(error.problems)
    return kept


def _sentence(name: str, value: Any, refused: Refused) -> str:
    return f"{name}={shown(value)}: give {refused.words}{'.' if refused.hint else ''}{refused.hint}"


# --- kinds of rules


def integer(low: int, high: int) -> Rule:
    """Allow an int, and no bool, within bounds."""

    def rule(value: Any) -> int:
        if not is_integer(value, low, high):
            raise Refused(f"an integer from {low} to {high}")
        return int(value)

    return rule


def number(low: float, high: float, unit: str = "") -> Rule:
    """Allow a finite int or float, and no bool, within bounds."""

    def rule(value: Any) -> float:
        if not is_number(value, low, high):
            raise Refused(f"a number{f' of {unit}' if unit else ''} from {low:g} to {high}")
        return float(value)

    return rule


def seconds(low: float = 0) -> Rule:
    """Allow a number of seconds, at most ten years."""
    return number(low, LONGEST_SECONDS, "seconds")


def positive_seconds(value: Any) -> float:
    """Allow a number of seconds above zero, at most ten years."""
    if not is_number(value, 0, LONGEST_SECONDS) or value == 0:
        raise Refused(f"a positive number of seconds, at most {LONGEST_SECONDS}")
    return float(value)


def web_address(value: Any) -> str:
    """Allow an address of http or https, without a user and a password, which nobody would send."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() else None
        valid = (
            parts is not None
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and (parts.path + parts.query).isascii()
        )
    except ValueError:
        valid = False
    if not valid or " " in value:
        raise Refused("an address that begins with https:// or http://, in ASCII behind the host, and without a user")
    return str(value)


def duration(value: Any) -> float:
    """Allow a positive number of seconds, or a text of an integer and a unit: "10m"; at most ten years. Kept as seconds."""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        value = int(found[1]) * _UNITS[found[2]]
    if not is_number(value, 0, LONGEST_SECONDS) or value == 0:
        raise Refused('a positive number of seconds, or a text such as "30s", "10m", "2h" or "1d", at most ten years')
    return float(value)


def flag(value: Any) -> bool:
    """Allow True and False."""
    if not isinstance(value, bool):
        raise Refused("True or False")
    return value


def one_of(*words: str) -> Rule:
    """Allow some words."""
    quoted = [repr(word) for word in words]
    choice = " or ".join(quoted) if len(words) == 2 else f"one of {', '.join(quoted)}"

    def rule(value: Any) -> str:
        if value not in words:
            raise Refused(choice, did_you_mean(value, words))
        return str(value)

    return rule


def short_text(longest: int) -> Rule:
    """Allow a string that is neither empty nor long and has no control characters."""

    def rule(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= longest or not value.isprintable():
            raise Refused(f"a printable string of 1 to {longest} characters")
        return value

    return rule


def optional(inner: Rule) -> Rule:
    """Allow None besides."""

    def rule(value: Any) -> Any:
        try:
            return None if value is None else inner(value)
        except Refused as refused:
            raise Refused(f"{refused.words}, or None", refused.hint) from None

    return rule


def _name(problem_of: Callable[[object], str | None]) -> Rule:
    def rule(value: Any) -> str:
        if problem := problem_of(value):
            raise InvalidJob(problem)
        return str(value)

    return rule


def _exceptions(value: Any) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in types):
        raise Refused("an exception class or a tuple of them")
    return types


def fair_key_of_type(value: Any) -> Any:
    """Allow the name of a key of the payload, or a function of the payload."""
    if problem := key_problem(value):
        raise InvalidJob(f"fair_key={shown(value)}: {problem}")
    return value


def _limit(value: Any) -> Limit:
    if not isinstance(value, Limit):
        raise Refused("one Limit(…), such as Limit(concurrency=2)")
    return value


def limit_or_dict(value: Any) -> Limit:
    """Allow a Limit, or a dict of its keywords, for settings that are kept as JSON."""
    try:
        return limit_of(value)
    except InvalidJob as error:
        raise Refused("a Limit, or a dict of its keywords", f" {error}.") from None


def log_level(value: Any) -> int:
    """Allow a level of `logging`, by name or number."""
    number: Any = logging.getLevelNamesMapping().get(value.upper()) if isinstance(value, str) else value
    if not is_integer(number, 0, 100):
        raise Refused('a level of logging, such as "INFO", or its number')
    return int(number)


def _moment(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise Refused("a datetime with a time zone, such as django.utils.timezone.now()")
    if value.utcoffset() is None:
        raise Refused("a datetime with a time zone; this one has no time zone, use django.utils.timezone.make_aware()")
    try:
        in_utc = value.astimezone(UTC)
    except (OverflowError, ValueError):
        in_utc = None
    if in_utc is None or not 1970 <= in_utc.year <= 9998:
        raise Refused("a time in a year from 1970 to 9998")
    return in_utc


def _delay(value: Any) -> timedelta:
    delay = seconds_of(value)
    if delay is None or not 0 <= delay <= MAX_DELAY.total_seconds():
        raise Refused(f"a timedelta or seconds, from 0 to {MAX_DELAY.days} days")
    return value if isinstance(value, timedelta) else timedelta(seconds=delay)


RULES: Mapping[str, Rule] = {
    # Of a job, its type, its queue or the site.
    "queue": _name(queue_problem),
    "priority": integer(1, 10),
    "max_retries": integer(0, MAX_RETRIES_ALLOWED),
    "timeout_seconds": positive_seconds,
    "base_delay": seconds(),
    "max_delay": seconds(),
    "max_crashes": integer(1, 100),
    "dead_letter": flag,
    # Of a job's type.
    "retry_on": _exceptions,
    "fail_on": _exceptions,
    "atomic": flag,
    "takes_context": flag,
    "isolation": one_of("thread", "process"),
    "limit": _limit,
    "log_level": log_level,
    "encrypt": flag,
    "bulk": integer(1, MOST_AT_ONCE),
    "bulk_wait": seconds(),
    # Of a job.
    "job_id": _name(id_problem),
    "unique_key": _name(unique_key_problem),
    "limit_key": _name(limit_key_problem),
    "fair_key": _name(fair_key_problem),
    "scheduled_at": _moment,
    "delay": _delay,
    "on_dependency_failure": one_of("fail", "run"),
    # Of a schedule.
    "catch_up": one_of("latest", "skip", "all"),
    "overlap": one_of("allow", "skip"),
    "grace_seconds": seconds(),
    "jitter_seconds": seconds(),
}
