"""What the parts of one worker process share: its name, whether it stops and why, what it has done, how it waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django_jobs.lifecycle import leases
from django_jobs.lifecycle.outcome import FAILURES, Outcome
from django_jobs.models.attempt import AttemptOutcome

from .backoff import OutageBackoff
from .connections import ProcessConnections
from .poller import Pollers

logger = logging.getLogger("django_jobs")

EXIT_DRAINED = 0
EXIT_CONFIGURATION = 1
EXIT_LEASE_LOST = 70
EXIT_RECYCLE = 75
UNLIMITED = 10**9
PATIENCE_SECONDS = 0.5  # a server that takes longer for the look of each second is taken for silent


class JobLimit:
    """How many jobs may run before the end, of one process or of several together."""

    def __init__(self, max_jobs: int) -> None:
        self._lock = threading.Lock()
        self._left = max_jobs

    def left(self) -> int:
        """Return how many more may run; at least one, for whoever claims has not been told to stop."""
        return max(1, self._left)

    def is_reached_by_one_more(self) -> bool:
        """Count a job, and say whether it was the last one."""
        with self._lock:
            self._left -= 1
            return self._left <= 0


class WorkerState:
    """Flags and counters of a worker process, for any of its threads to read and to set.

    Args:
        limit: recycle the process after so many jobs; None: never.
        on_lost: called once, when the lease is lost.
        database: the alias of the database that it serves; None: that of the routers.
    """

    def __init__(
        self,
        *,
        limit: JobLimit | None = None,
        on_lost: Callable[[], None] | None = None,
        database: str | None = None,
    ) -> None:
        self.id = leases.new_process_id()
        self.database = database
        self.backoff = OutageBackoff(self.recycle_after, database)
        self.connections = ProcessConnections(self.id)
        self.pollers = Pollers()
        self.exit_code = EXIT_DRAINED
        self.completed = 0
        self.failed = 0
        self._others = 0  # runs that ended neither way: snoozed, released, cancelled, lost
        self.is_lost = False
        self.is_broken = False
        self.asked_at: float | None = None  # since when the maintenance waits for an answer
        self._limit = limit
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._claiming: dict[object, float] = {}  # since when each claims
        self._found_nothing = False

    @property
    def jobs_done(self) -> int:
        """How many runs of this process have ended, well or badly."""
        return self.completed + self.failed + self._others

    # Stopping.

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is claimed or started."""
        return self._stopping.is_set()

    def wait_until_stopping(self, seconds: float | None = None) -> bool:
        """Wait until the process stops; return whether it does."""
        return self._stopping.wait(seconds)

    def drain(self) -> None:
        """Claim nothing more; whoever waits for that stops the process in order."""
        self._stopping.set()
        self.pollers.wake_all()

    def recycle(self) -> None:
        """Drain and leave with exit code 75, to be started anew."""
        self.exit_code = self.exit_code or EXIT_RECYCLE
        self.drain()

    def recycle_after(self, error: BaseException) -> None:
        """Recycle because a thread broke, or could not start: what this process holds is in doubt, and the next one starts clean.

        Of several threads that break the first one is logged.
        """
        is_first, self.is_broken = not self.is_broken, True
        try:
            if is_first:
                logger.error(
                    "a thread of worker process %s broke (%s); the process ends, to be started anew",
                    self.id,
                    " ".join(str(error).split()) or type(error).__name__,
                    exc_info=error,
                )
        finally:
            self.recycle()

    def lose_lease(self) -> None:
        """Stop at once: nothing that this process still does may be written."""
        if self.is_lost:
            return
        self.is_lost = True
        logger.error("worker process %s has lost its lease; whatever it still runs is dropped", self.id)
        if self._on_lost is not None:
            self._on_lost()
        self.exit_code = EXIT_LEASE_LOST
        self.drain()

    @property
    def is_cut_off(self) -> bool:
        """Whether the database is away, does not answer, or has declared this process dead."""
        asked_at = self.asked_at
        return (
            self.is_lost
            or self.backoff.is_out
            or (asked_at is not None and time.monotonic() - asked_at > PATIENCE_SECONDS)
        )

    # Counting.

    def count(self, outcome: Outcome) -> None:
        """Count a run, and recycle the process after the last one that it may run.

        One that went to wait counts as completed: it got as far as it could.
        """
        with self._lock:
            self._found_nothing = False
            if outcome.is_completed or outcome.attempt == AttemptOutcome.WAITING:
                self.completed += 1
            elif outcome.attempt in FAILURES:
                self.failed += 1
            else:
                self._others += 1
        if self._limit is not None and self._limit.is_reached_by_one_more():
            self.recycle()

    def jobs_left(self) -> int:
        """Return how many more jobs this process may run."""
        return UNLIMITED if self._limit is None else self._limit.left()

    # Claiming.

    def begin_claim(self, worker: object) -> None:
        """Note that a worker thread is about to claim."""
        with self._lock:
            self._claiming[worker] = time.monotonic()

    def end_claim(self, worker: object, *, found: bool) -> None:
        """Note whether the claim of a worker thread found something."""
        with self._lock:
            self._claiming.pop(worker, None)
            self._found_nothing = not found

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Note that a script claims in the block, until it holds what it has claimed."""
        script = object()
        self.begin_claim(script)
        try:
            yield
        finally:
            self.end_claim(script, found=True)

    def claiming_since(self) -> float:
        """Return when the oldest claim that nobody has answered yet was sent (`time.monotonic()`); infinity without one."""
        with self._lock:
            return min(self._claiming.values(), default=float("inf"))

    @property
    def found_nothing(self) -> bool:
        """Whether the last claim was in vain, no job has run since, and no thread claims now."""
        with self._lock:
            return self._found_nothing and not self._claiming
