"""What a signal sets and threads wait for."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class Flag:
    """Like `threading.Event`, but a signal's handler may set it.

    The handler runs in the main thread, perhaps in the middle of that thread's own `wait`. The lock of an Event may be held
    there: the handler would wait for it, and the process for its handler, forever. A SimpleQueue's `put` may be called at any
    moment.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._told: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Set it, for good."""
        self._is_set = True
        self._told.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so many seconds; return whether it is."""
        if not self._is_set:
            with suppress(Empty):
                self._told.get(timeout=max(0.0, seconds))
                self._told.put(None)  # for the next one that waits
        return self._is_set
