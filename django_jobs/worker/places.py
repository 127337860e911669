"""The places of a worker process that serves several databases: so many jobs run at once over all, and the databases take turns.

Each database has a process of its own with threads of its own (`process.py`), so that a claim, a beat or a settle of one never
waits for another's server. A thread takes a place before it claims and gives it back after what it claimed has run; it goes to
the database that had its last turn the longest ago. A database whose server is away keeps nobody out: its places do not count.
A thread that comes back from a claim, slow or cut off, and finds its place given to another waits for the next one; what it
claimed waits in the buffer.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

from django_jobs.waiting import HandlerThreads

from .child.pool import ChildPool
from .state import JobLimit, WorkerState

if TYPE_CHECKING:
    from .thread import Worker

CLAIM_SECONDS = 0.1  # a claim that takes longer keeps no place from others
LATE_CLAIM_SECONDS = 1.0  # the same after one that was too late, so that a slow server has its turn, too
LOOK_SECONDS = 0.1
LOOKS_BEFORE_ASKING = 2


class Waiter:
    """A thread that waits for a place."""

    __slots__ = ("given", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.given = threading.Event()


class Places:
    """The places, and what else the processes share. Any thread may call; its own lock is held for moments only.

    Args:
        number: how many jobs may run at once.
        max_jobs: recycle after this many jobs of all databases; None: never.
    """

    def __init__(self, number: int, max_jobs: int | None = None) -> None:
        self.number = number
        self.limit = None if max_jobs is None else JobLimit(max_jobs)
        self.pool = ChildPool(WorkerState())
        self.handler_threads = HandlerThreads(lambda: number)
        self._lock = threading.Lock()
        self._held: dict[Worker, float] = {}  # until when a place does not count yet as one that runs a job; 0: it does
        self._waiting: list[Waiter] = []
        self._were_late: set[WorkerState] = set()  # whose last claim took so long that its place was given to another
        self._turns: dict[WorkerState, int] = {}
        self._numbers = itertools.count(1)

    @property
    def is_contended(self) -> bool:
        """Whether a thread waits for a place."""
        return bool(self._waiting)

    def free(self) -> int:
        """Return how many places nobody has or waits for."""
        with self._lock:
            return max(0, self.number - self._taken() - len(self._waiting))

    def take(self, worker: Worker) -> bool:
        """Wait for a place; return False when the thread is to stop instead."""
        waiter = Waiter(worker)
        with self._lock:
            self._waiting.append(waiter)
            self._give()
        looks = 0
        while not waiter.given.wait(LOOK_SECONDS):
            looks += 1
            if looks == LOOKS_BEFORE_ASKING:
                self._ask_holders()
            with self._lock:
                if worker.is_stopping and not waiter.given.is_set():
                    self._waiting.remove(waiter)
                    return False
                self._give()  # a claim may have become slow, or a server silent, which nobody tells
        return True

    def _ask_holders(self) -> None:
        """Have the processes that hold places look at their databases now, and not within a second: one of them may be silent."""
        for process in {worker.process for worker in list(self._held)}:
            process.maintenance.expect_due(0.0)

    def keep(self, worker: Worker) -> bool:
        """Let the thread run jobs in its place until it leaves it; return False when others have taken all meanwhile."""
        if self._held.get(worker) == 0.0:
            return True
        with self._lock:
            state = worker.process.state
            if self._taken(besides=worker) >= self.number:
                self._were_late.add(state)
                return False
            self._were_late.discard(state)
            self._held[worker] = 0.0
            return True

    def leave(self, worker: Worker) -> None:
        """Give a place back."""
        with self._lock:
            self._held.pop(worker, None)
            self._give()

    def _give(self) -> None:
        while self._waiting and self._taken() < self.number:
            waiter = min(self._waiting, key=lambda waiter: self._turns.get(waiter.worker.process.state, 0))
            self._waiting.remove(waiter)
            state = waiter.worker.process.state
            seconds = LATE_CLAIM_SECONDS if state in self._were_late else CLAIM_SECONDS
            self._held[waiter.worker] = time.monotonic() + seconds
            self._turns[state] = next(self._numbers)
            waiter.given.set()

    def _taken(self, besides: Worker | None = None) -> int:
        """Return how many places are taken, perhaps without that of one thread."""
        now = time.monotonic()
        return sum(
            (not until or now < until) and worker is not besides and not worker.process.state.is_cut_off
            for worker, until in list(self._held.items())
        )
