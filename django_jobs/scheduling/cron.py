"""Cron expressions: their next ticks in any time zone, and their meaning in English. No database, no clock but in `preview`.

When the clocks change, an expression whose hour field begins with `*` follows elapsed time: it is due at every moment
whose local time matches, so twice in an hour that is repeated and never in one that is left out. Any other names fixed
hours: a time that is repeated counts once, the first time, and one that is left out is moved to the end of the gap.
(Debian's cron lets a `*` in the minute field do the same; here `*/10 2 * * *` is six ticks a day at most.)
"""

from __future__ import annotations

import datetime as dt
import re
from functools import cache, lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field, is_imaginary
from cronsim.explain import explain
from django.conf import settings

from django_jobs.exceptions import InvalidJob, NoTimeZoneData
from django_jobs.names import did_you_mean
from django_jobs.rules import check_all
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
UTC_NAMES = ("UTC", "Etc/UTC")
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


def next_after(expression: str, after: dt.datetime, timezone: str | dt.tzinfo | None = None) -> dt.datetime:
    """Return the first moment after `after` (aware) at which the expression is due in a time zone, in UTC.

    The zone is the site's TIME_ZONE by default. Raises InvalidJob for a bad expression, an unknown time zone, or when
    it is not due within fifty years.
    """
    fields, zone = _parsed(expression), zone_of(timezone)
    if not isinstance(after, dt.datetime) or after.utcoffset() is None:
        raise InvalidJob(f"after: give a datetime with a time zone, not {shown(after)}")
    find = _by_elapsed_time if fields.split()[1].startswith("*") else _by_wall_clock
    try:
        return find(fields, after.astimezone(dt.UTC).replace(microsecond=0), zone)
    except (StopIteration, OverflowError):
        raise InvalidJob(f"cron {expression!r}: it never ticks in the fifty years after {after}") from None


def validate(expression: str, timezone: str | dt.tzinfo | None = None) -> None:
    """Raise InvalidJob with every problem of an expression and a zone; an expression that never ticks is a problem."""
    check_all(lambda: _parsed(expression), lambda: zone_of(timezone))


def describe(expression: str) -> str:
    """Return the meaning in English, such as `At 03:00 every day`; raise InvalidJob for a bad expression."""
    text = explain(_parsed(expression))
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


@cache
def has_zone_data() -> bool:
    """Say whether this host knows any time zone but UTC: from the system, or from the package `tzdata`."""
    return bool(available_timezones() - set(UTC_NAMES))


def no_zone_data(timezone: str) -> str:
    """Return what to do on a host that lacks the data of a time zone."""
    return (
        f"timezone {shown(timezone)}: this host has no time zone data; install tzdata (`pip install tzdata`, or the system's"
        " package), or use UTC, which needs none"
    )


def zone_of(timezone: str | dt.tzinfo | None) -> dt.tzinfo:
    """Return the time zone of a name such as `Europe/Berlin`, by default the site's.

    Raises InvalidJob for another name, and NoTimeZoneData where nobody can say whether there is such a time zone.
    """
    if timezone is None:
        timezone = settings.TIME_ZONE
    if isinstance(timezone, dt.tzinfo):
        return timezone
    if timezone in UTC_NAMES:
        return dt.UTC  # needs no data
    if not isinstance(timezone, str):
        raise InvalidJob(f"timezone {shown(timezone)}: there is no such time zone; give a name such as 'Europe/Berlin'")
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if not has_zone_data():
            raise NoTimeZoneData(no_zone_data(timezone)) from None
        hint = did_you_mean(timezone, available_timezones()) or " Give a name such as 'Europe/Berlin'."
        raise InvalidJob(f"timezone {shown(timezone)}: there is no such time zone.{hint}") from None


def _parsed(expression: str) -> str:
    """Return the five fields of a valid expression, in capitals."""
    if not isinstance(expression, str):
        raise InvalidJob(f"cron: give a string such as '0 3 * * *', not {shown(expression)}")
    return _parsed_string(expression)


@lru_cache(maxsize=1024)
def _parsed_string(expression: str) -> str:
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
    fields = " ".join(parts)
    try:
        next(CronSim(fields, dt.datetime(2000, 1, 1)))
    except (CronSimError, StopIteration):
        raise InvalidJob(f"cron {shown(expression)}: it never ticks, for no date matches") from None
    return fields


def _parses(field: Field, part: str) -> bool:
    try:
        field.parse(part)
    except (CronSimError, ValueError):
        return False
    return True


def _by_wall_clock(fields: str, after: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    # cronsim moves fixed hours out of a gap, but like Debian only when the minute field begins with no star.
    if fields.startswith("*"):
        fields = f"0-59{fields[1:]}"
    for local in CronSim(fields, after.astimezone(zone)):
        moment = local.astimezone(dt.UTC)
        if moment > after:  # not so the second time an hour passes, nor for the other times in a gap
            return moment
    raise StopIteration


def _by_elapsed_time(fields: str, after: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    # Up to the next change of the clocks a zone is a fixed offset, and cronsim is given times without a zone: on aware ones
    # it skips an hour where clocks go back by half of one (Australia/Lord_Howe), and never returns where they change at a
    # minute past midnight (America/St_Johns until 2011).
    since, offset = after, _offset(after, zone)
    wall = _wall(after, zone)
    while True:
        match = next(CronSim(fields, wall))
        moment = (match - offset).replace(tzinfo=dt.UTC)
        # A change of the clocks matters when it comes before the match, and a distant one only if it hits the match:
        # set back, they return to a time that was passed by less than the longest fold.
        soon = min(moment, since + _LONGEST_FOLD)
        if _offset(soon, zone) == offset:
            break
        since = _change(since, soon, zone)
        offset = _offset(since, zone)
        wall = _wall(since, zone) - _SECOND
    if moment <= soon:
        return moment
    for local in CronSim(fields, match - _SECOND):
        aware = local.replace(tzinfo=zone)
        if not is_imaginary(aware):
            return aware.astimezone(dt.UTC)
    raise StopIteration


def _offset(moment: dt.datetime, zone: dt.tzinfo) -> dt.timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _wall(moment: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


def _change(low: dt.datetime, high: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return the first second after `low` at which the clocks differ from `low`'s; they do at `high`."""
    before = _offset(low, zone)
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if _offset(middle, zone) == before:
            low = middle
        else:
            high = middle
    return high
