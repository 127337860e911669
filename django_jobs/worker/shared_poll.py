"""One process looks for jobs on behalf of all while they come fast, so that nobody has to notify (PostgreSQL).

PostgreSQL wakes each listening session of a database at each notification: at 50 a second of each submitter, the wake-ups grow
with the product of both. So where notifications would wake more sessions than WAKE_UPS in a second, or come more often than an
idle worker looks anyway, the first process that notices looks every five milliseconds for all, and holds an advisory lock that
submitters ask for before they notify. It wakes a thread of its own, and notifies all when a job waits all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection

from django_jobs.db import notify

from .stagger import ProcessCount

WAKE_UPS = 100  # of sessions in a second that notifications may cost
MOST_NOTIFICATIONS = 25  # in a second: with more of them, a worker that is alone looks as often as this
WINDOW_SECONDS = 1.0
LEAST_SECONDS = 2.0  # that it lasts
LOOK_SECONDS = 0.005
COST = 3  # a look is followed by a pause that is so many times as long
SLOWEST_LOOK = 0.03  # with slower ones, as beside what an old snapshot keeps, notifications are better
UNATTENDED_SECONDS = 0.015  # a job that waits for so long, or for COST looks, is told to all
LONGEST_SILENCE = 1.0
AVOIDED_SECONDS = 10.0  # after looks that were slow
TAKEN_SECONDS = 1.0  # until a process asks again after it was told that another one looks


class Frequency:
    """How many times something happened within the last second."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def count(self) -> None:
        """Note that it happened."""
        self._times.append(time.monotonic())

    def per_second(self) -> int:
        """Return how many times it did."""
        since = time.monotonic() - WINDOW_SECONDS
        while self._times and self._times[0] < since:
            self._times.popleft()
        return len(self._times)


class SharedPoll:
    """Whether to look for all, and the looks. Runs in the thread that listens, on its session.

    Args:
        processes: how many share the work, which is kept up to date by others.
        wake: called with a queue that has work, for the threads of this process.
    """

    def __init__(self, subscription: notify.Subscription, processes: ProcessCount, wake: Callable[[str], None]) -> None:
        self._subscription = subscription
        self._processes = processes
        self._wake = wake
        self._notified = Frequency()
        self._most = float(MOST_NOTIFICATIONS)
        self._avoided_until = float("-inf")

    def is_wanted(self) -> bool:
        """Count a notification, and say whether one process had better look for all."""
        self._notified.count()
        now = time.monotonic()
        if now < self._avoided_until or self._notified.per_second() <= 1:
            return False
        self._most = min(MOST_NOTIFICATIONS, WAKE_UPS / self._processes.number)
        return self._notified.per_second() > self._most

    def run(
        self, queues: Collection[str] | None, listen: Callable[[float], object], is_over: Callable[[], bool]
    ) -> bool:
        """Look for the jobs of these queues (None: of all) for as long as they come fast; return whether it was this one's to do.

        Args:
            listen: handles the notifications of so many seconds.
        """
        self._notified = Frequency()
        if not self._subscription.begin_poll(queues):
            self._avoided_until = time.monotonic() + TAKEN_SECONDS
            return False
        try:
            self._look_while_wanted(queues, listen, is_over)
        finally:
            self._subscription.end_poll()
        for queue, _ in self._found(queues):
            self._tell(queue)
        return True

    def _look_while_wanted(
        self, queues: Collection[str] | None, listen: Callable[[float], object], is_over: Callable[[], bool]
    ) -> None:
        began = time.monotonic()
        # Those who were told look one after the other.
        shortest = max(notify.QUIET_SECONDS, self._processes.number / WAKE_UPS)
        finds, silence, told_at = Frequency(), shortest, began
        slow = 0
        while not is_over() and (time.monotonic() - began < LEAST_SECONDS or finds.per_second() * 2 > self._most):
            looked_at = time.monotonic()
            found = self._found(queues)
            now = time.monotonic()
            slow = slow + 1 if self._is_slow(now - looked_at) else 0
            if slow == 3:
                self._avoided_until = now + AVOIDED_SECONDS
                return
            if found:
                finds.count()
            patience = max(UNATTENDED_SECONDS, COST * (now - looked_at))
            unattended = [queue for queue, seconds in found if seconds > patience]
            for queue, _ in found:
                self._wake(queue)
            if not unattended:
                silence = shortest
            elif now - told_at > silence:  # if they are all busy, they look by themselves when they are free
                for queue in unattended:
                    self._tell(queue)
                told_at, silence = now, max(shortest, min(2 * silence, LONGEST_SILENCE))
            listen(max(LOOK_SECONDS, COST * (now - looked_at)))

    def _is_slow(self, seconds: float) -> bool:
        """Say whether a look took long because of what it read, and not because the machine has no time for anybody."""
        return seconds > SLOWEST_LOOK and seconds - self._subscription.seconds_of_an_answer() > SLOWEST_LOOK

    def _found(self, queues: Collection[str] | None) -> list[tuple[str, float]]:
        return [
            (queue, seconds)
            for queue, seconds in self._subscription.ready_queues()
            if queues is None or queue in queues
        ]

    def _tell(self, queue: str) -> None:
        self._subscription.notify_work(queue)
