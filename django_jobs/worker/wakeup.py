"""Wake-up: idle threads of the same queues take turns to look, so idle threads cost one poll per interval."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable


class Wakeup:
    """The turns of a process: threads that look at the same queues take one, whatever other threads look at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[Hashable, Turn] = {}
        self._closed = False
        self.calls_seen = 0

    def call(self, queue: str | None = None) -> None:
        """Let one idle thread of each kind look at once, at a queue if it is known which; calls before it looked count as one."""
        self.calls_seen += 1
        for turn in self._all():
            turn.call(queue)

    def call_all(self) -> None:
        """Wake every thread, so that those that are to stop see it."""
        for turn in self._all():
            turn.call_all()

    def close(self) -> None:
        """Wake every thread, for good."""
        with self._lock:
            self._closed = True
        self.call_all()

    def _all(self) -> list[Turn]:
        with self._lock:
            return list(self._turns.values())

    def wait_for_turn(
        self, seconds: float, queues: Hashable = None, is_stopping: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until called, or until this thread was the looker of its queues for `seconds`; return whether called.

        `is_stopping` is asked after `call_all`; when it is so, nobody waits any longer.
        """
        return self.turn(queues).wait(seconds, lambda: self._closed or is_stopping())

    def turn(self, queues: Hashable) -> Turn:
        """Return what the threads that look at the same queues share."""
        with self._lock:
            return self._turns.setdefault(queues, Turn())


class Turn:
    """One idle thread, the looker, sleeps for the poll interval; the others sleep until they are handed work."""

    def __init__(self) -> None:
        self.rest = 0.0  # how long the next looker sleeps, in seconds; kept by `Lanes`, like the next
        self.found_at = 0.0
        self.names: Collection[str] | None = None  # None: all queues
        self._named: set[str] = set()
        self._condition = threading.Condition()
        self._called = False
        self._looking = False
        self._resting = 0

    def call(self, queue: str | None = None) -> None:
        with self._condition:
            if queue is not None:
                if self.names is not None and queue not in self.names:
                    return
                self._named.add(queue)
            self._called = True
            self._condition.notify()

    def take_named(self) -> set[str]:
        """Return the queues that calls have named since, and forget them."""
        with self._condition:
            named, self._named = self._named, set()
            return named

    def pass_on(self) -> None:
        """Call when somebody rests; costs nothing when nobody does."""
        if self._resting:
            self.call()

    def call_all(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        with self._condition:
            self._resting += 1
            try:
                while not is_over():
                    if self._take_call():
                        return True
                    if self._looking:
                        self._condition.wait()
                        continue
                    self._looking = True
                    try:
                        self._condition.wait(seconds)
                    finally:
                        self._looking = False
                        if is_over():
                            self._condition.notify()  # the next one becomes the looker
                    return self._take_call()
                return True
            finally:
                self._resting -= 1

    def _take_call(self) -> bool:
        called, self._called = self._called, False
        return called
