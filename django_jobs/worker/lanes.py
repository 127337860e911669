"""Which queue a worker thread looks at next: round the queues that have work, found with one statement for all of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry
from django_jobs.lifecycle.processes import queues_with_work
from django_jobs.names import queue_problem
from django_jobs.text import shown

if TYPE_CHECKING:
    from .process import Process

FIRST_REST = 0.005
DISCOVERY_SECONDS = 0.5
NOTIFIED_POLL_SECONDS = 5.0
LONG_IDLE_SECONDS = 60.0
LONG_IDLE_POLLS = 5


class Lanes:
    """The queues of one worker thread; `names` of None means every queue."""

    def __init__(self, names: list[str] | None, process: Process, handlers: Registry) -> None:
        self._names = names
        self._handlers = handlers
        self._single = names[0] if names is not None and len(names) == 1 else None
        self._process = process
        self._waiting: deque[str] = deque()
        self._discovered_at = float("-inf")
        self.turn = process.wakeup.turn(self.kind)  # shared: else each thread's rests would have to grow apart
        self.turn.names = names
        self.found_work()

    @property
    def kind(self) -> tuple[object, ...]:
        """What tells threads of other queues or handlers from those of the same."""
        return (id(self._handlers), self._names is None, *sorted(self._names or ()))

    def next_queue(self) -> str | None:
        """Return the queue to claim from now, or None when no queue has work."""
        if self._single is not None:
            return self._single
        if not self._waiting or time.monotonic() - self._discovered_at > DISCOVERY_SECONDS:
            self._discover()
        if not self._waiting:
            return None
        self._waiting.rotate(-1)
        return self._waiting[-1]

    def _discover(self) -> None:
        found = queues_with_work()
        if self._names is not None:
            found = [name for name in found if name in self._names]
        fresh = [name for name in found if name not in self._waiting]
        self._waiting = deque([*(name for name in self._waiting if name in found), *fresh])
        self._discovered_at = time.monotonic()

    def is_empty(self, queue: str) -> str | None:
        """Take note that a queue had nothing for us, and return the next one to try."""
        if self._single is not None:
            return None
        if queue in self._waiting:
            self._waiting.remove(queue)
        return self._waiting[0] if self._waiting else None

    def found_work(self) -> None:
        """Start over with short rests."""
        self.turn.rest = FIRST_REST
        self.turn.found_at = time.monotonic()

    def expect_work(self) -> None:
        """Start over with short rests, because somebody called; look at the queues named by the call, or at all anew."""
        self.found_work()
        named = self.turn.take_named()
        for queue in named:
            if queue not in self._waiting:
                self._waiting.appendleft(queue)
        # Who called by a queue's name saves us the question.
        self._discovered_at = time.monotonic() if named else float("-inf")

    def rest(self, poll_interval: float | None) -> float:
        """Return how long to rest, in seconds: longer each time, up to the poll interval, or five after a minute without work.

        A caller of many submits notifies only now and then, so a worker that was just awake looks again soon by itself.
        """
        longest = poll_interval if poll_interval is not None else get_settings().POLL_INTERVAL
        if self._process.is_notified:
            longest = max(longest, NOTIFIED_POLL_SECONDS)
        elif time.monotonic() - self.turn.found_at > LONG_IDLE_SECONDS:
            longest *= LONG_IDLE_POLLS
        rest, self.turn.rest = self.turn.rest, min(self.turn.rest * 2, longest)
        self._discovered_at = float("-inf")
        return min(rest, longest)


def queue_names(queue: Any) -> list[str] | None:
    """Return the names of a worker's queues: of a name, an object with a name, or several; None stands for every queue.

    Raises InvalidJob for what is no queue.
    """
    if queue is None:
        return None
    several: Iterable[Any] = [queue] if isinstance(queue, str) or hasattr(queue, "name") else queue
    if not isinstance(several, Iterable):
        raise InvalidJob(f"queue={shown(queue)}: give a JobQueue, a name, or several of them")
    names = [getattr(one, "name", one) for one in several]
    if problems := [problem for name in names if (problem := queue_problem(name))]:
        raise InvalidJob(*problems)
    return names
