"""The values in an export's lines: how they are written, and the checks with which they are read. Saves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.names import did_you_mean
from django_jobs.numbers import to_unix
from django_jobs.payloads import decode, encode_payload
from django_jobs.rules import Refused, Rule, check
from django_jobs.text import scrub, shown

LONGEST_TEXT = 100_000

# A check gets the path and the value, and returns the value as it is stored; it raises InvalidJob that names the path.
Check = Callable[[str, Any], Any]


def plain(value: Any) -> Any:
    """Return a column's value as it is written: times as Unix seconds."""
    if isinstance(value, datetime):
        return to_unix(value)
    return str(value) if isinstance(value, str) else value  # a TextChoices member is a str, and more


def nullable(inner: Check) -> Check:
    """Allow null besides."""
    return lambda path, value: None if value is None else inner(path, value)


def by(rule: Rule) -> Check:
    """Check a value by a rule for options."""
    return lambda path, value: check(path, value, rule)


def named(problem_of: Callable[[object], str | None]) -> Check:
    """Check a value by the rules for names."""

    def checked(path: str, value: Any) -> Any:
        if problem := problem_of(value):
            raise InvalidJob(f"{path}: {problem}")
        return value

    return checked


def text(longest: int = LONGEST_TEXT) -> Check:
    """Check that a value is a string of at most so many characters that every database can store."""
    return by(text_rule(longest))


def text_rule(longest: int = LONGEST_TEXT) -> Rule:
    """Allow a string of at most so many characters that every database can store."""

    def rule(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused("a string")
        if len(value) > longest:
            raise Refused(f"a string of at most {longest} characters, not {len(value)}")
        if scrub(value, longest) != value:
            raise Refused("a string without characters that cannot be stored")
        return value

    return rule


def json_object(path: str, value: Any) -> Any:
    """Allow what a payload may be."""
    return decode(encode_payload(value, where=path))


def read_row(path: str, row: Any, checks: Mapping[str, Check], problems: list[str]) -> dict[str, Any]:
    """Return the checked values of an object that has all the keys of `checks`; add to `problems` what is wrong.

    A value that has a problem is None. `path` names the object, without a dot at its end.
    """
    if not isinstance(row, Mapping):
        problems.append(f"{path}: give an object, not {shown(row)}")
        return dict.fromkeys(checks)
    refuse_unknown(f"{path}.", row, checks, problems)
    missing = [name for name in checks if name not in row]
    if missing:
        problems.append(f"{path}: {', '.join(missing)} is missing")
    return {name: take(f"{path}.", row, name, check, None, problems) for name, check in checks.items()}


def take(path: str, data: Mapping[str, Any], name: str, check: Check, default: Any, problems: list[str]) -> Any:
    """Return a checked value; the default when it is absent or has a problem."""
    if name not in data:
        return default
    try:
        return check(f"{path}{name}", data[name])
    except InvalidJob as error:
        problems += error.problems
        return default


def refuse_unknown(path: str, data: Mapping[str, Any], known: Iterable[str], problems: list[str]) -> None:
    """Add a problem for each key that is none of the known ones."""
    for name in data:
        if name not in known:
            problems.append(f"{path}{shown(name)}: this key is unknown.{did_you_mean(name, known)}")
