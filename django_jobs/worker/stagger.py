"""Many processes do not look all at once for what one of them finds: all together they look a hundred times a second.

A notification reaches every idle process, and one of them finds the job. Whoever found work last looks at once; whoever was too
late puts the next look off, by chance and each time further, so that many notifications meanwhile cost it one look, and rests
for a whole round after it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FEW = 4  # processes that look whenever they want
SECONDS_PER_PROCESS = 0.01
FIRST_SECONDS = 0.005
MOST_DOUBLINGS = 16
COUNT_SECONDS = 10.0


def seconds_of_a_round(processes: int) -> float:
    """Return in how many seconds each of so many processes looks once, where all hear what is submitted."""
    return 0.0 if processes <= FEW else processes * SECONDS_PER_PROCESS


def longest_delay(processes: int, wakes_in_vain: int) -> float:
    """Return for how many seconds at the most a process puts off a look after so many that came too late."""
    if not wakes_in_vain:
        return 0.0
    return min(seconds_of_a_round(processes), FIRST_SECONDS * 2.0 ** min(wakes_in_vain, MOST_DOUBLINGS))


class ProcessCount:
    """How many worker processes live, for all threads of this one: counted again after some seconds, by who asks then."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self._counted_at = float("-inf")

    def refresh(self, count: Callable[[], int]) -> None:
        """Count them if it is time to."""
        now = time.monotonic()
        if now - self._counted_at > COUNT_SECONDS:
            self._counted_at = now
            self.number = max(1, count())


class Stagger:
    """The queues that this process was notified of, and when to look at them.

    Args:
        wake: called with each queue when it is time.
    """

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._queues: set[str] = set()
        self._due = float("inf")

    def put_off(self, queue: str, longest: float) -> None:
        """Look at a queue within so many seconds, and with what was put off before."""
        self._queues.add(queue)
        self._due = min(self._due, time.monotonic() + random.uniform(0, longest))  # noqa: S311  no secret

    def seconds_left(self, most: float) -> float:
        """Return the seconds until the next look, at most so many."""
        return max(0.0, min(most, self._due - time.monotonic()))

    def look_if_due(self) -> None:
        """Have the queues looked at, if it is time."""
        if time.monotonic() < self._due:
            return
        queues, self._queues = self._queues, set()
        self._due = float("inf")
        for queue in queues:
            self._wake(queue)
