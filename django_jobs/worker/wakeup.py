"""Wake-up: idle threads take turns to look, so an idle process costs one poll per interval."""

from __future__ import annotations

import threading


class Wakeup:
    """One idle thread, the looker, sleeps for the poll interval; the others sleep until they are handed work."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls = 0
        self._looking = False
        self._closed = False
        self.calls_seen = 0

    def call(self) -> None:
        """Let one idle thread look at once; calls that come before anybody looked count as one."""
        with self._condition:
            self._calls = min(self._calls + 1, 1)
            self.calls_seen += 1
            self._condition.notify()

    def close(self) -> None:
        """Wake every thread, for good."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def wait_for_turn(self, seconds: float) -> bool:
        """Wait until called, or until this thread was the looker for `seconds`; return whether called."""
        with self._condition:
            while not self._closed:
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
                return self._take_call()
            return True

    def _take_call(self) -> bool:
        called = self._calls > 0
        self._calls = 0
        return called
