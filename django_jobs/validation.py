"""What a submission may say: every problem of a call is found at once, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from .exceptions import InvalidJob
from .names import did_you_mean, id_problem, job_type_problem, queue_problem, unique_key_problem
from .payloads import encode_payload
from .text import shown
from .values import MAX_RETRIES_ALLOWED, is_integer, is_seconds

OPTIONS = (
    "priority",
    "scheduled_at",
    "delay",
    "depends_on",
    "max_retries",
    "timeout_seconds",
    "metadata",
    "unique_key",
    "job_id",
    "queue",
    "on_dependency_failure",
)
MAX_DELAY = timedelta(days=3660)
EMPTY = "{}"


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked submission; None stands for what was not said."""

    job_type: str
    payload: str
    metadata: str = EMPTY
    priority: int | None = None
    scheduled_at: datetime | None = None
    delay: timedelta | None = None
    depends_on: tuple[str, ...] = ()
    max_retries: int | None = None
    timeout_seconds: float | None = None
    unique_key: str | None = None
    job_id: str | None = None
    queue: str | None = None
    on_dependency_failure: str = "fail"


def check_submission(job_type: Any, payload: Any, options: Mapping[str, Any]) -> Submission:
    """Return the checked submission; raise InvalidJob with all its problems.

    Args:
        job_type: the registered name; whether a handler exists is asked elsewhere.
        payload: a JSON object as a dict, or None for an empty one.
        options: the keywords of `submit()`; a value of None means "not said".
    """
    problems: list[str] = []
    checked: dict[str, Any] = {}
    problem = job_type_problem(job_type)
    if problem:
        problems.append(problem)
    checked["payload"] = EMPTY
    if payload is not None:
        try:
            checked["payload"] = encode_payload(payload)
        except InvalidJob as error:
            problems.extend(error.problems)
    for name, value in options.items():
        if value is None and name in OPTIONS:
            continue
        try:
            checked[name] = _CHECKS[name](value)
        except KeyError:
            problems.append(f"unknown option {name!r}.{did_you_mean(name, OPTIONS)}")
        except InvalidJob as error:
            problems.extend(error.problems)
    if "delay" in checked and "scheduled_at" in checked:
        problems.append("give delay or scheduled_at, not both")
    if checked.get("job_id") is not None and checked["job_id"] in checked.get("depends_on", ()):
        problems.append(f"depends_on: the job {checked['job_id']!r} cannot depend on itself")
    if problems:
        raise InvalidJob(*problems)
    return Submission(job_type, **checked)


def _refuse(name: str, value: Any, rule: str) -> InvalidJob:
    return InvalidJob(f"{name}={shown(value)}: {rule}")


def _priority(value: Any) -> int:
    if not is_integer(value, 1, 10):
        raise _refuse("priority", value, "a priority is an integer from 1 to 10; higher runs first")
    return int(value)


def _max_retries(value: Any) -> int:
    if not is_integer(value, 0, MAX_RETRIES_ALLOWED):
        raise _refuse("max_retries", value, f"retries are an integer from 0 to {MAX_RETRIES_ALLOWED}")
    return int(value)


def _timeout(value: Any) -> float:
    if not is_seconds(value):
        raise _refuse("timeout_seconds", value, "a timeout is a positive, finite number of seconds")
    return float(value)


def _scheduled_at(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise _refuse("scheduled_at", value, "give a datetime with a time zone, such as django.utils.timezone.now()")
    if timezone.is_naive(value):
        raise _refuse("scheduled_at", value, "the datetime has no time zone; use django.utils.timezone.make_aware()")
    try:
        in_utc = value.astimezone(UTC)
    except (OverflowError, ValueError):
        in_utc = None
    if in_utc is None or not 1970 <= in_utc.year <= 9998:
        raise _refuse("scheduled_at", value, "the year must be from 1970 to 9998")
    return in_utc


def _delay(value: Any) -> timedelta:
    if is_integer(value, 0, 10**9) or (isinstance(value, float) and 0 <= value < 10**9):
        value = timedelta(seconds=value)
    if not isinstance(value, timedelta):
        raise _refuse("delay", value, "give a timedelta, or seconds")
    if not timedelta(0) <= value <= MAX_DELAY:
        raise _refuse("delay", value, f"a delay is from 0 to {MAX_DELAY.days} days")
    return value


def _depends_on(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _refuse("depends_on", value, "give a list of jobs or ids")
    ids: dict[Any, None] = {}  # ordered, and quick to ask among ten thousand
    problems = []
    for one in value:
        job_id = one if isinstance(one, str) else getattr(one, "job_id", None) or getattr(one, "pk", None)
        problem = id_problem(job_id)
        if problem:
            problems.append(f"depends_on: {shown(one)}: {problem}")
        elif job_id in ids:
            problems.append(f"depends_on: {job_id!r} is named twice")
        else:
            ids[job_id] = None
    if problems:
        raise InvalidJob(*problems)
    return tuple(ids)


def _metadata(value: Any) -> str:
    try:
        return encode_payload(value)
    except InvalidJob as error:
        raise InvalidJob(*(problem.replace("payload", "metadata", 1) for problem in error.problems)) from None


def _named(check: Any) -> Any:
    def checked(value: Any) -> str:
        problem = check(value)
        if problem:
            raise InvalidJob(problem)
        return str(value)

    return checked


def _on_dependency_failure(value: Any) -> str:
    if value not in ("fail", "run"):
        raise _refuse("on_dependency_failure", value, "give 'fail' or 'run'")
    return str(value)


_CHECKS = {
    "priority": _priority,
    "scheduled_at": _scheduled_at,
    "delay": _delay,
    "depends_on": _depends_on,
    "max_retries": _max_retries,
    "timeout_seconds": _timeout,
    "metadata": _metadata,
    "unique_key": _named(unique_key_problem),
    "job_id": _named(id_problem),
    "queue": _named(queue_problem),
    "on_dependency_failure": _on_dependency_failure,
}
