"""Times of an export's jobs: Unix seconds there, text in UTC without its zone on the way to and from the database.

Both ways look the minute up: making a datetime and formatting it, or parsing it, takes three to eight times as long.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django_jobs.rules import Refused

YEAR_9999 = 253_370_764_800


def text_of_unix(seconds: Any) -> str:
    """Return Unix seconds as a time in UTC, rounded as `datetime.fromtimestamp` does, without its zone."""
    if type(seconds) is not float or not 0 <= seconds < YEAR_9999:
        raise Refused("Unix seconds")
    whole = int(seconds)
    micros = round((seconds - whole) * 1e6)
    if micros == 1_000_000:
        whole, micros = whole + 1, 0
    minute, second = divmod(whole, 60)
    return f"{_minute(minute)}{second:02}.{micros:06}" if micros else f"{_minute(minute)}{second:02}"


@lru_cache(maxsize=1000)
def _minute(minutes: int) -> str:
    """Return a minute since 1970 as text, up to where its seconds follow."""
    return datetime.fromtimestamp(minutes * 60, UTC).strftime("%Y-%m-%d %H:%M:")


def unix_of_text(text: str) -> float:
    """Return a time such as `2026-01-02 03:04:05.678901`, with up to six digits or none behind the point, as Unix seconds."""
    whole = _unix_minute(text[:16]) + int(text[17:19])
    return (whole * 1_000_000 + int(text[20:].ljust(6, "0"))) / 1_000_000 if len(text) > 19 else float(whole)


@lru_cache(maxsize=1000)
def _unix_minute(minute: str) -> int:
    return int(datetime.fromisoformat(minute + "+00:00").timestamp())
