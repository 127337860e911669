"""Cron expressions: when they are due next, in any time zone, and what they mean in English. Pure.

When the clocks change, an expression whose hour field begins with `*` follows elapsed time: it is due at every moment
whose local time matches, so twice in an hour that is repeated and never in one that is left out. Any other names fixed
hours: a time that is repeated counts once, the first time, and one that is left out is moved to the end of the gap.
(Debian's cron lets a `*` in the minute field do the same; here `*/10 2 * * *` is six ticks a day at most.)
"""

from __future__ import annotations

import copy
import datetime as dt
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field
from cronsim.explain import explain
from django.conf import settings

from django_jobs.exceptions import InvalidJob
from django_jobs.names import did_you_mean
from django_jobs.text import shown

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MAX_LENGTH = 100
MAX_PREVIEW = 1_000
_SECOND = dt.timedelta(seconds=1)
_LONGEST_FOLD = dt.timedelta(hours=26)  # clocks have been set back by whole days
_FIELDS = (
    (Field.MINUTE, "minute", "0 to 59"),
    (Field.HOUR, "hour", "0 to 23"),
    (Field.DAY, "day of month", "1 to 31, L or LW"),
    (Field.MONTH, "month", "1 to 12 or JAN to DEC"),
    (Field.DOW, "day of week", "0 to 7 or SUN to SAT, with #1 to #5 or L behind"),
)


class _Cron(NamedTuple):
    """A parsed expression; the simulator is copied for each use, for it keeps its place."""

    expression: str
    simulator: CronSim
    follows_elapsed_time: bool

    def matches(self, wall: dt.datetime) -> Iterator[dt.datetime]:
        """Give the wall-clock times after `wall` that match, knowing nothing of time zones."""
        simulator = copy.copy(self.simulator)
        simulator.dt = wall
        return simulator


def next_after(expression: str, after: dt.datetime, timezone: str | dt.tzinfo | None = None) -> dt.datetime:
    """Return the first moment after `after` (aware) at which the expression is due in a time zone, in UTC.

    The zone is the site's TIME_ZONE by default. Raises InvalidJob for a bad expression, an unknown time zone, or when
    it is not due within fifty years.
    """
    cron, zone = _parsed(expression), zone_of(timezone)
    if not isinstance(after, dt.datetime) or after.utcoffset() is None:
        raise InvalidJob(f"after: give a datetime with a time zone, not {shown(after)}")
    find = _by_elapsed_time if cron.follows_elapsed_time else _by_wall_clock
    try:
        start = after.astimezone(dt.UTC).replace(tzinfo=None, microsecond=0)
        return find(cron, start, zone).replace(tzinfo=dt.UTC)
    except (StopIteration, OverflowError):
        raise InvalidJob(f"cron {expression!r}: it never ticks in the fifty years after {after}") from None


def validate(expression: str, timezone: str | dt.tzinfo | None = None) -> None:
    """Raise InvalidJob with all that is wrong with an expression and a zone; one that never ticks is wrong."""
    problems: list[str] = []
    checks: tuple[Callable[[], object], ...] = (lambda: _parsed(expression), lambda: zone_of(timezone))
    for check in checks:
        try:
            check()
        except InvalidJob as error:
            problems += error.problems
    if problems:
        raise InvalidJob(*problems)


def describe(expression: str) -> str:
    """Return the meaning in English, such as `At 03:00 every day`; raise InvalidJob for a bad expression."""
    text = explain(_parsed(expression).expression)
    return re.sub(r"(?<!1)([123])th\b", lambda match: match[1] + {"1": "st", "2": "nd", "3": "rd"}[match[1]], text)


def preview(
    expression: str, count: int, after: dt.datetime | None = None, timezone: str | dt.tzinfo | None = None
) -> list[dt.datetime]:
    """Return the next `count` moments after `after` (default: now), in UTC; at most 1,000.

    Raises InvalidJob as `next_after` does.
    """
    moments: list[dt.datetime] = []
    if after is None:
        after = dt.datetime.now(dt.UTC)
    for _ in range(min(count, MAX_PREVIEW)):
        after = next_after(expression, after, timezone)
        moments.append(after)
    return moments


def zone_of(timezone: str | dt.tzinfo | None) -> dt.tzinfo:
    """Return the time zone of a name such as `Europe/Berlin`, by default the site's; raise InvalidJob for another."""
    if timezone is None:
        timezone = settings.TIME_ZONE
    if isinstance(timezone, dt.tzinfo):
        return timezone
    if not isinstance(timezone, str):
        raise InvalidJob(f"timezone {shown(timezone)}: there is no such time zone; give a name such as 'Europe/Berlin'")
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        hint = did_you_mean(timezone, available_timezones()) or " Give a name such as 'Europe/Berlin'."
        raise InvalidJob(f"timezone {shown(timezone)}: there is no such time zone.{hint}") from None


def _parsed(expression: str) -> _Cron:
    if not isinstance(expression, str):
        raise InvalidJob(f"cron: give a string such as '0 3 * * *', not {shown(expression)}")
    return _parsed_string(expression)


@lru_cache(maxsize=1024)
def _parsed_string(expression: str) -> _Cron:
    if len(expression) > MAX_LENGTH:
        raise InvalidJob(f"cron {shown(expression)}: at most {MAX_LENGTH} characters are allowed")
    full = expression.strip()
    if full.startswith("@"):
        if full.lower() not in ALIASES:
            hint = did_you_mean(full.lower(), ALIASES) or f" Use one of {', '.join(ALIASES)}."
            raise InvalidJob(f"cron {shown(expression)}: unknown nickname.{hint}")
        full = ALIASES[full.lower()]
    parts = full.upper().split()
    if len(parts) != len(_FIELDS):
        names = ", ".join(name for _, name, _ in _FIELDS)
        raise InvalidJob(f"cron {shown(expression)}: it has {len(parts)} fields; give five: {names}")
    problems = [
        f"cron {shown(expression)}: bad {name} {shown(part)}; it is {values}"
        for part, (field, name, values) in zip(parts, _FIELDS, strict=True)
        if not _parses(field, part)
    ]
    if problems:
        raise InvalidJob(*problems)
    cron = _simulated(parts)
    if cron is None:
        raise InvalidJob(f"cron {shown(expression)}: it never ticks, for no date matches")
    return cron


def _parses(field: Field, part: str) -> bool:
    try:
        field.parse(part)
    except (CronSimError, ValueError):
        return False
    return True


def _simulated(parts: list[str]) -> _Cron | None:
    """Return the parsed expression, or None when it never ticks."""
    expression = " ".join(parts)
    try:
        # A wall-clock time: the simulator's own handling of time zones goes wrong where midnight is left out
        # (America/Santiago) and where clocks move by half an hour (Australia/Lord_Howe).
        simulator = CronSim(expression, dt.datetime(2000, 1, 1))
        next(copy.copy(simulator))
    except (CronSimError, StopIteration):
        return None
    return _Cron(expression, simulator, parts[1].startswith("*"))


# From here on moments are naive datetimes in UTC, and wall-clock times naive datetimes in the zone.


def _by_wall_clock(cron: _Cron, after: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    for wall in cron.matches(after + _offset(after, zone)):
        moment, _ = _moment(wall, zone)
        if moment > after:  # not so the second time an hour passes
            return moment
    raise StopIteration


def _by_elapsed_time(cron: _Cron, after: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    since, offset = after, _offset(after, zone)
    wall = after + offset
    while True:
        match = next(cron.matches(wall))
        moment = match - offset
        # A change of the clocks matters when it comes before the match, and a distant one only if it hits the match:
        # set back, they return to a time that was passed by less than the longest fold.
        soon = min(moment, since + _LONGEST_FOLD)
        if _offset(soon, zone) == offset:
            break
        since = _change(since, soon, zone)
        offset = _offset(since, zone)
        wall = since + offset - _SECOND
    if moment <= soon:
        return moment
    while True:
        moment, exists = _moment(match, zone)
        if exists:
            return moment
        match = next(cron.matches(moment + _offset(moment, zone) - _SECOND))


def _offset(moment: dt.datetime, zone: dt.tzinfo) -> dt.timedelta:
    offset = moment.replace(tzinfo=dt.UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _moment(wall: dt.datetime, zone: dt.tzinfo) -> tuple[dt.datetime, bool]:
    """Return the first moment with a wall-clock time, and True; or the end of the gap it falls in, and False."""
    moment = _utc(wall.replace(tzinfo=zone, fold=0))
    if moment + _offset(moment, zone) == wall:
        return moment, True
    # In a gap, fold 0 counts with the offset before it and lands after it; fold 1 the other way round.
    return _change(_utc(wall.replace(tzinfo=zone, fold=1)), moment, zone), False


def _utc(aware: dt.datetime) -> dt.datetime:
    return aware.astimezone(dt.UTC).replace(tzinfo=None)


def _change(low: dt.datetime, high: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return the first second after `low` at which the clocks differ from `low`'s; they do at `high`."""
    before = _offset(low, zone)
    while high - low > _SECOND:
        middle = low + dt.timedelta(seconds=(high - low) // _SECOND // 2)
        if _offset(middle, zone) == before:
            low = middle
        else:
            high = middle
    return high
