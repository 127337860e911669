"""The rules for numbers: what counts as an integer, and what as seconds. True is no number, and "5" is not 5."""

from __future__ import annotations

import math
from datetime import timedelta

LONGEST_SECONDS = 315_360_000  # ten years: longer waits are mistakes, and some no database can store
MAX_RETRIES_ALLOWED = 10**6


def is_integer(value: object, low: int, high: int) -> bool:
    """Say whether a value is an int, and no bool, within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Say whether a value is a finite int or float, and no bool, within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_seconds(value: object) -> bool:
    """Say whether a value is a positive number of seconds, at most ten years."""
    return is_number(value, 0, LONGEST_SECONDS) and value != 0


def seconds_of(value: object) -> float | None:
    """Return a number or a timedelta as finite seconds; None when it is neither."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            return None
        return seconds if math.isfinite(seconds) else None
    return None
