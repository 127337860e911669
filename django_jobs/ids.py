"""Ids of jobs: time-ordered UUIDs (version 7), and places in an order; both strictly increasing within a process."""

from __future__ import annotations

import os
import threading
import time

_COUNTER_BITS = 74
_COUNTER = (1 << _COUNTER_BITS) - 1
_LOW = (1 << 62) - 1
_VERSION = 7 << 76
_VARIANT = 2 << 62

_lock = threading.Lock()
_last = 0  # milliseconds since 1970, then the counter
_last_place = 0  # microseconds since 1970


def new_id() -> str:
    """Return a new id of 36 characters, greater than every id this process made before.

    48 bits of Unix milliseconds, then 74 bits that start at random in each millisecond and count up within it
    (RFC 9562, section 6.2, method 2). While the clock is behind the last id's millisecond, the counter goes on.
    """
    global _last
    milliseconds = time.time_ns() // 1_000_000
    with _lock:
        if milliseconds > _last >> _COUNTER_BITS:
            # The top bit starts at zero, which leaves room to count within the millisecond.
            _last = milliseconds << _COUNTER_BITS | int.from_bytes(os.urandom(10), "big") >> 7
        else:
            _last += 1
        last = _last
    counter = last & _COUNTER
    value = last >> _COUNTER_BITS << 80 | _VERSION | counter >> 62 << 64 | _VARIANT | counter & _LOW
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_places(number: int) -> range:
    """Return so many integers below 2⁶³, greater than all that this process has returned before.

    They begin with the host's clock (microseconds), so that those of several processes are in order as far as clocks are.
    """
    global _last_place
    now = time.time_ns() // 1000
    with _lock:
        first = max(now, _last_place + 1)
        _last_place = first + number - 1
    return range(first, first + number)


def _reset_in_child() -> None:
    """Reset the counters in a forked child, which would otherwise make the same ids as its parent."""
    global _last, _last_place, _lock
    _lock = threading.Lock()
    _last = _last_place = 0


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_in_child)
