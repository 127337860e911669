"""How worker threads find work: which queue they claim from next, and how they wait while there is none.

Of the threads that look at the same queues, one idle thread polls the database; the others sleep until they are handed work.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

from django_jobs.conf import get_settings
from django_jobs.db.dialects import dialect
from django_jobs.db.marks import Marks
from django_jobs.db.notify import QUIET_SECONDS
from django_jobs.due import queues_with_work
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry
from django_jobs.names import queue_problem
from django_jobs.submission import DEFAULT_QUEUE
from django_jobs.text import shown

from .stagger import ProcessCount, seconds_of_a_round
from .watch import LONG_IDLE_SECONDS, Watch

FIRST_REST = 0.005
# A submit that follows a notification within its quiet time is not told; after that, each is, and there is little to look for.
FIRST_REST_AFTER_NOTIFICATION = QUIET_SECONDS + 0.005
GROWTH, NOTIFIED_GROWTH = 2, 4
TAKE_OVER_SECONDS = 2.0  # until a resting thread polls when the polling one has left, and is perhaps stuck in its claim
DISCOVERY_SECONDS = 0.5
MOST_NAMED = 20  # queues that notifications name at once; each is a claim
SLOW_SEARCH_SECONDS = 0.02  # for the queues with work
NOTIFIED_POLL_SECONDS = 5.0
LONG_IDLE_POLLS = 5  # times the poll interval, where no notification arrives


class QueueSelector:
    """Which queue a worker thread claims from next: round the queues that have work, found with one statement for all of them.

    Args:
        names: the queues of the thread; None means every queue.
    """

    def __init__(self, names: list[str] | None, handlers: Registry, pollers: Pollers) -> None:
        self.names = names
        self._handlers = handlers
        self._single = names[0] if names is not None and len(names) == 1 else None
        self._pollers = pollers
        self._waiting: deque[str] = deque()
        self._discovered_at = float("-inf")
        self.poller = pollers.of(self.kind)
        self.poller.names = names
        self.poller.found_work()

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes threads of other queues or handlers from those of the same."""
        return (id(self._handlers), self.names is None, *sorted(self.names or ()))

    def next_queue(self) -> str | None:
        """Return the queue to claim from now, or None when no queue has work."""
        if self._single is not None:
            return self._single
        is_time = time.monotonic() - self._discovered_at > DISCOVERY_SECONDS
        if not self._waiting or is_time or self._pollers.marks.seconds_owed(self.names) == 0.0:
            self._discover()
        if not self._waiting:
            return None
        self._waiting.rotate(-1)
        return self._waiting[-1]

    def _discover(self) -> None:
        behind = self._pollers.marks.queues_behind()  # a claim from its mark costs less than to look what is behind it
        began = time.monotonic()
        found = [*behind, *queues_with_work(behind, self.names)]
        if dialect().counts_reads and time.monotonic() - began > SLOW_SEARCH_SECONDS:
            # It has read what is dead of queues without work, where nothing was claimed here: a claim gives each its mark.
            named_here = {DEFAULT_QUEUE, *self._handlers.queues(), *get_settings().QUEUES}
            found += sorted(named_here.union(self.names or ()) - {*found})
        if self.names is not None:
            found = [name for name in found if name in self.names]
        fresh = [name for name in found if name not in self._waiting]
        self._waiting = deque([*(name for name in self._waiting if name in found), *fresh])
        self._discovered_at = time.monotonic()

    def looks_at(self, queue: str) -> bool:
        """Say whether the thread runs jobs of a queue."""
        return self.names is None or queue in self.names

    def queue_after(self, queue: str) -> str | None:
        """Return the queue to try after one that had nothing for us, or None."""
        if self._single is not None:
            return None
        if queue in self._waiting:
            self._waiting.remove(queue)
        return self._waiting[0] if self._waiting else None

    def expect_work(self) -> None:
        """Start over with short rests, because somebody woke us; look at the queues that were named, or at all anew."""
        self.poller.expect_work(is_notified=self._pollers.is_notified)
        named = self.poller.take_named()
        if len(named) > MOST_NAMED:
            named.clear()  # to ask which queues have work is one question
        self._discovered_at = float("-inf")
        if named:
            self.expect_work_in(named)

    def expect_work_in(self, queues: Iterable[str]) -> None:
        """Look at these queues first, without the question which queues have work."""
        self._waiting.extendleft(queue for queue in queues if queue not in self._waiting)
        self._discovered_at = time.monotonic()

    def rest(self, poll_interval: float | None, watch: Watch) -> float:
        """Return how long to rest, in seconds: longer each time, up to the poll interval.

        After a minute without work, and where somebody watches, up to five poll intervals; with both, or where notifications
        arrive, up to five seconds. A caller of many submits notifies only now and then, so a worker that was just awake looks
        again soon by itself.
        """
        longest = poll_interval if poll_interval is not None else get_settings().POLL_INTERVAL
        watch.pause_after_looks_in_vain(longest)
        is_long_idle = time.monotonic() - self.poller.found_at > LONG_IDLE_SECONDS
        if self._pollers.is_notified or (watch.is_possible and is_long_idle):
            longest = max(longest, NOTIFIED_POLL_SECONDS)
        elif watch.is_possible or is_long_idle:
            longest *= LONG_IDLE_POLLS
        self._discovered_at = float("-inf")
        rest = self.poller.next_rest(longest, NOTIFIED_GROWTH if self._pollers.is_notified else GROWTH)
        if self._pollers.is_notified and self.poller.wakes_in_vain:
            rest = max(rest, min(longest, seconds_of_a_round(self._pollers.processes.number)))
        owed = self._pollers.marks.seconds_owed(self.names)
        return rest if owed is None else min(rest, max(owed, FIRST_REST))


def queue_names(queue: Any) -> list[str] | None:
    """Return the names of a worker's queues: of a name, an object with a name, or several; None stands for every queue.

    Raises InvalidJob for what is no queue.
    """
    if queue is None:
        return None
    several: Iterable[Any] = [queue] if isinstance(queue, str) or hasattr(queue, "name") else queue
    if not isinstance(several, Iterable):
        raise InvalidJob(f"queue={shown(queue)}: give a JobQueue, a name, or several of them")
    names = [getattr(item, "name", item) for item in several]
    if problems := [problem for name in names if (problem := queue_problem(name))]:
        raise InvalidJob(*problems)
    return names


class Poller:
    """Where the idle threads of one kind wait: one of them polls, the others sleep until they are handed work.

    They share the length of their rests, or else each thread's would have to grow by itself.
    """

    def __init__(self) -> None:
        self.found_at = 0.0
        self.wakes_in_vain = 0  # looks for what all processes were told of, since one has found work; with the next one
        self.names: Collection[str] | None = None  # None: all queues
        self._rest = FIRST_REST
        self._named: set[str] = set()
        self._condition = threading.Condition()
        self._is_woken = self._is_told = False
        self._is_polling = False
        self._resting = 0

    def found_work(self) -> None:
        """Start over with short rests."""
        self._rest = FIRST_REST
        self.found_at = time.monotonic()
        self.wakes_in_vain = 0

    def expect_work(self, *, is_notified: bool) -> None:
        """Start over with short rests, because somebody woke a thread, which looks now."""
        self._rest = FIRST_REST_AFTER_NOTIFICATION if is_notified else FIRST_REST
        self.found_at = time.monotonic()
        with self._condition:
            self.wakes_in_vain += self._is_told
            self._is_told = False

    def next_rest(self, longest: float, growth: int) -> float:
        """Return how long the polling thread rests, in seconds: `growth` times as long each time, up to `longest`."""
        rest, self._rest = self._rest, min(self._rest * growth, longest)
        return min(rest, longest)

    def wake(self, queue: str | None = None, *, is_told: bool = False) -> None:
        """Let one thread look at once; calls before it has looked count as one.

        Args:
            queue: the queue that has work, if that is known; nothing happens when these threads do not look at it.
            is_told: whether other processes are told as well.
        """
        with self._condition:
            if queue is not None:
                if self.names is not None and queue not in self.names:
                    return
                if len(self._named) <= MOST_NAMED:
                    self._named.add(queue)
            self._is_woken = True
            self._is_told |= is_told
            self._condition.notify()

    def wait_watching(self, watch: Watch, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Wait as `wait` does, and end early once the watch sees that there may be work."""
        now = time.monotonic()
        end = now + seconds
        pace = watch.pace(now - self.found_at)
        self._count_resting(1)  # also while it asks, for whoever has work to hand
        try:
            while now < end and not watch.has_changed():
                if self.wait(min(pace, end - now) if watch.is_possible else end - now, is_over):
                    return True
                now = time.monotonic()
            return False
        finally:
            self._count_resting(-1)

    def _count_resting(self, number: int) -> None:
        with self._condition:
            self._resting += number

    def take_named(self) -> set[str]:
        """Return the queues that `wake` has named since, and forget them."""
        with self._condition:
            named, self._named = self._named, set()
            return named

    def hand_work(self) -> None:
        """Wake a thread if any rests; costs nothing when none does."""
        if self._resting and not self._is_woken:
            self.wake()

    def wake_all(self) -> None:
        """Wake every thread, so that those that are to stop notice it."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Wait until woken, or until this thread has polled for `seconds`; return whether it was woken.

        Nobody waits once `is_over()`, which is asked again after `wake_all`.
        """
        with self._condition:
            self._resting += 1
            try:
                while not is_over():
                    if self._take_wake():
                        return True
                    if self._is_polling:
                        self._condition.wait(TAKE_OVER_SECONDS)
                        continue
                    self._is_polling = True
                    try:
                        self._condition.wait(seconds)
                    finally:
                        self._is_polling = False
                        if is_over():
                            self._condition.notify()  # the next thread polls
                    return self._take_wake()
                self._condition.notify()  # what woke a thread that leaves is for another one
                return True
            finally:
                self._resting -= 1

    def _take_wake(self) -> bool:
        is_woken, self._is_woken = self._is_woken, False
        return is_woken


class Pollers:
    """The pollers of a worker process, one for each kind of threads: those that look at the same queues."""

    def __init__(self) -> None:
        self.marks = Marks()
        self.processes = ProcessCount()
        self._lock = threading.Lock()
        self._by_kind: dict[Hashable, Poller] = {}

    @property
    def is_notified(self) -> bool:
        """Whether notifications reach this process; then it polls seldom."""
        return self.marks.is_told

    @is_notified.setter
    def is_notified(self, is_notified: bool) -> None:
        self.marks.is_told = is_notified

    @property
    def wakes_in_vain(self) -> int:
        """How many times in a row what all processes were told of brought no thread of any kind a job."""
        return min((poller.wakes_in_vain for poller in self._all()), default=0)

    def of(self, kind: Hashable) -> Poller:
        """Return the poller that threads of a kind share."""
        with self._lock:
            return self._by_kind.setdefault(kind, Poller())

    def wake(self, queue: str | None = None, *, is_told: bool = False) -> None:
        """Let one idle thread of each kind look at once, as `Poller.wake` does."""
        for poller in self._all():
            poller.wake(queue, is_told=is_told)

    def expect_old(self, queue: str) -> None:
        """Look soon for jobs of a queue that have become ready though they are old."""
        self.marks.expect_old(queue)
        self.wake(queue)

    def queues(self) -> set[str] | None:
        """Return the queues that the threads look at; None: all."""
        names = [poller.names for poller in self._all()]
        return None if None in names else {name for some in names for name in some or ()}

    def wake_all(self) -> None:
        """Wake every thread, so that those that are to stop notice it."""
        for poller in self._all():
            poller.wake_all()

    def _all(self) -> list[Poller]:
        with self._lock:
            return list(self._by_kind.values())
