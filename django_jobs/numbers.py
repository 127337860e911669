"""Numbers: integers, seconds, Unix times, priorities and ranks. True is no number, and "5" is not 5."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

LONGEST_SECONDS = 315_360_000  # ten years: longer waits are mistakes, and some no database can store
MAX_RETRIES_ALLOWED = 10**6
RANKS_PER_PRIORITY = 20
MIDDLE_PRIORITY = 5


def is_integer(value: object, low: int, high: int) -> bool:
    """Return whether a value is an int, and no bool, within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Return whether a value is a finite int or float, and no bool, within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_seconds(value: object) -> bool:
    """Return whether a value is a positive number of seconds, at most ten years."""
    return is_number(value, 0, LONGEST_SECONDS) and value != 0


def seconds_of(value: object) -> float | None:
    """Return a number or a timedelta as finite seconds; None for another value."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            return None
        return seconds if math.isfinite(seconds) else None
    return None


def to_unix(moment: datetime | None) -> float | None:
    """Return a moment as Unix seconds."""
    return None if moment is None else moment.timestamp()


def from_unix(value: object) -> datetime | None:
    """Return Unix seconds as an aware datetime in UTC; None for another value, or a year before 1970 or after 9998."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        moment = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if 1970 <= moment.year <= 9998 else None


def rank_of(priority: int) -> int:
    """Return the stored rank, -100 to 80, of a priority from 1 to 10: lower ranks run first."""
    return (MIDDLE_PRIORITY - priority) * RANKS_PER_PRIORITY


def priority_of(rank: int) -> int:
    """Return the priority, 1 to 10, nearest to a rank."""
    return max(1, min(10, round(MIDDLE_PRIORITY - rank / RANKS_PER_PRIORITY)))
