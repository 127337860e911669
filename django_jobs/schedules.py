"""Schedules before they are rows: what one may say, when it ticks, and which ones the code declares. No database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from . import cron as cron_words
from .exceptions import InvalidJob, JobNotFound
from .handlers import Registry, handler_problem
from .names import did_you_mean, schedule_name_problem
from .payloads import decode
from .text import shown
from .validation import check_submission
from .values import LONGEST_SECONDS, is_number, seconds_of

ONCE, INTERVAL, CRON = "once", "interval", "cron"
CATCH_UPS = ("latest", "skip", "all")
OVERLAPS = ("allow", "skip")
LEAST_INTERVAL = 0.01
SUBMIT_OPTIONS = ("queue", "priority", "max_retries", "timeout_seconds", "metadata")
OWN_OPTIONS = ("catch_up", "grace_seconds", "overlap", "jitter_seconds")
_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)


class ScheduleNotFound(JobNotFound):
    """There is no schedule of this name."""

    def __str__(self) -> str:
        return f"there is no schedule {self.job_id!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a schedule ticks. Moments are aware, in UTC."""

    kind: str
    run_at: datetime | None = None
    interval_seconds: float | None = None
    cron: str = ""
    timezone: str = "UTC"

    def first(self, now: datetime) -> datetime:
        """Return the first tick of a schedule that begins now; a one-off in the past ticks at once."""
        if self.kind == ONCE:
            assert self.run_at is not None
            return self.run_at
        following = self.following(now, now)
        assert following is not None
        return following

    def following(self, due: datetime, now: datetime) -> datetime | None:
        """Return the first tick after `now`, in step with the tick at `due`; None when a one-off has had its tick."""
        if self.kind == CRON:
            return cron_words.next_after(self.cron, max(due, now), self.timezone)
        if self.kind == INTERVAL:
            return self.latest(due, now) + self._step
        return None

    def latest(self, due: datetime, now: datetime) -> datetime:
        """Return the last tick until `now`; `due`, which is past, is one."""
        if self.kind == INTERVAL:
            return due + (now - due) // self._step * self._step
        if self.kind == ONCE or self._next_cron(due) > now:
            return due
        # How many ticks were missed does not matter: halve the time in which the last one lies.
        low, high = due, now
        while high - low > _SECOND:
            middle = low + (high - low) / 2
            low, high = (middle, high) if self._next_cron(middle) <= now else (low, middle)
        return self._next_cron(low)

    def ticks(self, due: datetime, now: datetime) -> Iterator[datetime]:
        """Yield every tick from `due` until `now`."""
        tick: datetime | None = due
        while tick is not None and tick <= now:
            yield tick
            tick = self.following(tick, tick)

    def bounded(self, due: datetime, now: datetime, most: int) -> datetime:
        """Return the tick to begin with, so that about `most` are left until `now`."""
        if self.kind == INTERVAL:
            return max(due, self.latest(due, now) - (most - 1) * self._step)
        earliest = now - most * _MINUTE  # cron has at most one tick a minute
        if self.kind == ONCE or due >= earliest:
            return due
        for count, _ in enumerate(self.ticks(due, now)):
            if count == most:
                return self._next_cron(earliest)
        return due

    @property
    def _step(self) -> timedelta:
        return timedelta(seconds=self.interval_seconds or 0)

    def _next_cron(self, after: datetime) -> datetime:
        return cron_words.next_after(self.cron, after, self.timezone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """A checked schedule; its fields are columns of the row, without those that change as it runs."""

    name: str
    job_type: str
    timing: Timing
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    queue: str = ""
    priority: int | None = None
    max_retries: int | None = None
    timeout_seconds: float | None = None
    catch_up: str = "latest"
    grace_seconds: float | None = None
    overlap: str = "allow"
    jitter_seconds: float = 0.0

    def columns(self) -> dict[str, Any]:
        """Return the values by column."""
        columns = asdict(self)
        timing: dict[str, Any] = columns.pop("timing")
        return columns | timing


def check_schedule(
    name: Any,
    job_type: Any,
    *,
    cron: Any = None,
    every: Any = None,
    at: Any = None,
    timezone: Any = None,
    payload: Any = None,
    handlers: Registry | None = None,
    **options: Any,
) -> Spec:
    """Return the checked schedule; raise InvalidJob with all its problems.

    Args:
        cron, every, at: exactly one of them: an expression, a timedelta or seconds, an aware datetime.
        timezone: the zone of a cron expression; the site's by default.
        handlers: who must know the job type; None: it may be anybody's.
        options: SUBMIT_OPTIONS for the jobs, and OWN_OPTIONS; a value of None means "not said".
    """
    problems: list[str] = []
    problem = schedule_name_problem(name)
    if problem:
        problems.append(problem)
    given = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in SUBMIT_OPTIONS + OWN_OPTIONS:
            problems.append(f"unknown option {key!r}.{did_you_mean(key, SUBMIT_OPTIONS + OWN_OPTIONS)}")
    for_jobs = {key: given[key] for key in SUBMIT_OPTIONS if key in given}
    submission = None
    try:
        submission = check_submission(job_type, payload, for_jobs)
    except InvalidJob as error:
        problems.extend(error.problems)
    if handlers is not None and (unknown := handler_problem(job_type, handlers)):
        problems.append(unknown)
    own = {key: given[key] for key in OWN_OPTIONS if key in given}
    problems.extend(_own_problems(own))
    timing = _check_timing(cron, every, at, timezone, problems)
    if problems:
        raise InvalidJob(*problems)
    assert timing is not None
    assert submission is not None
    # As the database gives them back, so that a declaration can be compared with its row.
    as_stored = {"payload": decode(submission.payload), "metadata": decode(submission.metadata)}
    return Spec(name=name, job_type=job_type, timing=timing, **{**for_jobs, **own, **as_stored})


def _own_problems(own: Mapping[str, Any]) -> Iterator[str]:
    for key, choices in (("catch_up", CATCH_UPS), ("overlap", OVERLAPS)):
        if key in own and own[key] not in choices:
            meant = did_you_mean(own[key], choices)
            yield f"{key}={shown(own[key])}: give one of {', '.join(map(repr, choices))}.{meant}"
    for key in ("grace_seconds", "jitter_seconds"):
        if key in own and not is_number(own[key], 0, LONGEST_SECONDS):
            yield f"{key}={shown(own[key])}: give seconds, a number from 0 to {LONGEST_SECONDS}"


def _check_timing(cron: Any, every: Any, at: Any, timezone: Any, problems: list[str]) -> Timing | None:
    """Return the timing, or None with the reasons added to `problems`."""
    before = len(problems)
    zone = settings.TIME_ZONE if timezone is None else getattr(timezone, "key", timezone)
    said = [key for key, value in (("cron", cron), ("every", every), ("at", at)) if value is not None]
    if len(said) != 1:
        problems.append(f"give exactly one of cron, every and at, not {' and '.join(said) or 'none'}")
    try:
        cron_words.zone_of(zone)
    except InvalidJob as error:
        problems.extend(error.problems)
    try:
        if cron is not None:
            cron_words.validate(cron)
    except InvalidJob as error:
        problems.extend(error.problems)
    seconds = seconds_of(every)
    if every is not None and (seconds is None or not LEAST_INTERVAL <= seconds <= LONGEST_SECONDS):
        rule = f"an interval is a timedelta or seconds, from {LEAST_INTERVAL} to {LONGEST_SECONDS} (ten years)"
        problems.append(f"every={shown(every)}: {rule}")
    run_at = None if at is None else _check_moment(at, problems)
    if len(problems) > before:
        return None
    if cron is not None:
        return Timing(kind=CRON, cron=cron, timezone=zone)
    if every is not None:
        return Timing(kind=INTERVAL, interval_seconds=seconds, timezone=zone)
    return Timing(kind=ONCE, run_at=run_at, timezone=zone)


def _check_moment(at: Any, problems: list[str]) -> datetime | None:
    """Return the moment in UTC, by the rules of a job's `scheduled_at`."""
    try:
        return check_submission("any", None, {"scheduled_at": at}).scheduled_at
    except InvalidJob as error:
        problems.extend(problem.replace("scheduled_at", "at", 1) for problem in error.problems)
        return None


# --- the schedules that the code declares

_declared: dict[str, Spec] = {}


def declare(name: str, job_type: str, **said: Any) -> Spec:
    """Remember a schedule until it is written by `lifecycle.schedule.sync_declared`; arguments as `check_schedule`.

    Raises InvalidJob with all that is wrong with it, and when another one has the name. Whether the job type has a
    handler is asked when it is written: the handler may be in a module that is not imported yet.
    """
    spec = check_schedule(name, job_type, **said)
    if _declared.setdefault(name, spec) != spec:
        raise InvalidJob(f"schedule {name!r} is declared already, with other values; give one of the two another name")
    return spec


def declared() -> list[Spec]:
    """Return the schedules that the code declares."""
    return list(_declared.values())
