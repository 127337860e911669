"""Schedules before they are rows: what they may hold, when they tick, and which the code declares. No database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from django_jobs.exceptions import InvalidJob, NoTimeZoneData
from django_jobs.handlers import Registry, handler_problem, payload_problems
from django_jobs.names import schedule_name_problem
from django_jobs.numbers import LONGEST_SECONDS, seconds_of
from django_jobs.payloads import decode
from django_jobs.rules import RULES, check, check_options
from django_jobs.submission import EMPTY, OPTION_RULES, check_submission
from django_jobs.text import shown

from .cron import UTC_NAMES, has_zone_data, next_after, validate, zone_of

ONCE, INTERVAL, CRON = "once", "interval", "cron"
LEAST_INTERVAL = 0.01
SUBMIT_OPTIONS = ("queue", "priority", "max_retries", "timeout_seconds", "metadata", "limit_key", "fair_key")
OWN_OPTIONS = ("catch_up", "grace_seconds", "overlap", "jitter_seconds")
_RULES = {name: OPTION_RULES[name] for name in SUBMIT_OPTIONS} | {name: RULES[name] for name in OWN_OPTIONS}
_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a schedule ticks. Moments are aware, in UTC."""

    kind: str
    run_at: datetime | None = None
    interval_seconds: float | None = None
    cron: str = ""
    timezone: str = "UTC"

    @property
    def is_known_here(self) -> bool:
        """Whether this host can say when it ticks: a cron expression needs time zone data, unless it is in UTC."""
        return self.kind != CRON or self.timezone in UTC_NAMES or has_zone_data()

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
            return next_after(self.cron, max(due, now), self.timezone)
        if self.kind == INTERVAL:
            return self.latest(due, now) + self._step
        return None

    def upcoming(self, first: datetime, most: int) -> list[datetime]:
        """Return a tick and those that follow it, at most so many."""
        ticks: list[datetime] = []
        tick: datetime | None = first
        while tick is not None and len(ticks) < most:
            ticks.append(tick)
            tick = self.following(tick, tick)
        return ticks

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
        for count, tick in enumerate(self.ticks(due, now)):
            if count == most:  # so many ticks took so long, and the newest took about as long
                begin = self._next_cron(now - (tick - due))
                return begin if begin <= now else self.latest(due, now)
        return due

    @property
    def _step(self) -> timedelta:
        return timedelta(seconds=self.interval_seconds or 0)

    def _next_cron(self, after: datetime) -> datetime:
        return next_after(self.cron, after, self.timezone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """A checked schedule; its fields are the row's columns that do not change as it ticks."""

    name: str
    job_type: str
    timing: Timing
    payload: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    queue: str = ""
    priority: int | None = None
    max_retries: int | None = None
    timeout_seconds: float | None = None
    limit_key: str | None = None
    fair_key: str | None = None
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
    """Return the checked schedule; raise InvalidJob with every problem.

    On a host without time zone data the zone is not looked at: only the ticks of a cron expression need it, and other hosts
    can make them. `Timing.first` raises NoTimeZoneData there.

    Args:
        cron, every, at: exactly one of them: an expression, a timedelta or seconds, an aware datetime.
        timezone: the zone of a cron expression; the site's by default.
        handlers: those among which the job type must be, with a handler that the payload fits; None: its handler may be in
            another process.
        options: SUBMIT_OPTIONS for the jobs, and OWN_OPTIONS; None is as good as left out.
    """
    problems: list[str] = []
    if problem := schedule_name_problem(name):
        problems.append(problem)
    kept = check_options(options, _RULES, problems)
    submission = _noting(problems, lambda: check_submission(job_type, payload, {}))
    if handlers is not None and (unknown := handler_problem(job_type, handlers)):
        problems.append(unknown)
    if handlers is not None and submission is not None:
        problems += payload_problems(handlers.find(job_type), payload or {})
    timing = _check_timing(cron, every, at, timezone, problems)
    if submission is None or timing is None or problems:
        raise InvalidJob(*problems)
    # As the database gives them back, so that a declaration can be compared with its row.
    kept["payload"] = decode(submission.payload)
    kept["metadata"] = decode(kept.get("metadata", EMPTY))
    return Spec(name=name, job_type=job_type, timing=timing, **kept)


def _check_timing(expression: Any, every: Any, at: Any, timezone: Any, problems: list[str]) -> Timing | None:
    """Return the timing, or None with its problems added to `problems`."""
    before = len(problems)
    zone = settings.TIME_ZONE if timezone is None else getattr(timezone, "key", timezone)
    given = [key for key, value in (("cron", expression), ("every", every), ("at", at)) if value is not None]
    if len(given) != 1:
        problems.append(f"give exactly one of cron, every and at, not {' and '.join(given) or 'none'}")
    _noting(problems, lambda: _known_zone(zone))
    if expression is not None:
        _noting(problems, lambda: validate(expression))
    seconds = seconds_of(every)
    if every is not None and (seconds is None or not LEAST_INTERVAL <= seconds <= LONGEST_SECONDS):
        rule = f"an interval is a timedelta or seconds, from {LEAST_INTERVAL} to {LONGEST_SECONDS} (ten years)"
        problems.append(f"every={shown(every)}: {rule}")
    run_at = None if at is None else _noting(problems, lambda: check("at", at, RULES["scheduled_at"]))
    if len(problems) > before:
        return None
    if expression is not None:
        return Timing(kind=CRON, cron=expression, timezone=zone)
    if every is not None:
        return Timing(kind=INTERVAL, interval_seconds=seconds, timezone=zone)
    return Timing(kind=ONCE, run_at=run_at, timezone=zone)


def _known_zone(zone: Any) -> None:
    with suppress(NoTimeZoneData):
        zone_of(zone)


def _noting(problems: list[str], check: Callable[[], Any]) -> Any:
    """Return what a check returns, or None with its problems added to `problems`."""
    try:
        return check()
    except InvalidJob as error:
        problems.extend(error.problems)
        return None


# --- the schedules that the code declares

_declared: dict[str, Spec] = {}
_declared_for: dict[tuple[str, str], Spec] = {}  # by the alias of the database that was named, and the name


def declare(name: str, job_type: str, *, database: str | None = None, **options: Any) -> Spec:
    """Remember a schedule until `scheduling.store.sync_declared` writes it; arguments as of `check_schedule`.

    Args:
        database: the alias of the database that is to hold it; None: that of the routers.

    Raises InvalidJob with every problem, and when another schedule has the name. Whether the job type has a handler is
    checked when the schedule is written: the handler may be in a module that is not imported yet.
    """
    spec = check_schedule(name, job_type, **options)
    before = _declared.setdefault(name, spec) if database is None else _declared_for.setdefault((database, name), spec)
    if before != spec:
        raise InvalidJob(f"schedule {name!r} is declared already, with other values; give one of the two another name")
    return spec


def declared() -> list[Spec]:
    """Return the schedules that the code declares."""
    return [*_declared.values(), *_declared_for.values()]


def declared_for(database: str, *, is_usual: bool) -> list[Spec]:
    """Return those of one database, which is that of the routers or not."""
    own = [spec for (alias, _), spec in _declared_for.items() if alias == database]
    return [*_declared.values(), *own] if is_usual else own
