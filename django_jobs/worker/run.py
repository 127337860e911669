"""One run of one job in memory, or of a list of jobs in one call: who may interrupt it, and whether it is still ours."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from django_jobs.db.sessions import HandlerSessions
from django_jobs.exceptions import TimedOut
from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.run_log import RunLog

if TYPE_CHECKING:
    from django_jobs.handlers import Handler

    from .steps import Steps


class Run:
    """What a handler's thread shares with the threads that watch over it. Interrupts are made under the lock."""

    # What differs from run to run is set when it does: a run is made for each job, and most need none of it.
    abandoned = False
    blocks_around = 0  # of a test's transaction that the handler runs in
    cancel_requested = False
    deadline: float | None = None  # of `time.monotonic()`; None: the watchdog does not end it
    handler: Handler | None = None  # of a list of jobs
    has_started = False
    lent: Callable[[], AbstractContextManager[None]] = nullcontext  # lends a connection for our own moves
    log: RunLog | None = None  # of what the handler logs, where that is kept
    lost = False
    members: Sequence[Run] = ()  # the runs of the jobs of a list, each with a context of its own
    progress: tuple[float, str] | None = None  # for the watchdog to write
    sessions: HandlerSessions | None = None  # of the thread that runs the handler
    steps: Steps | None = None  # once the handler has asked for one
    timed_out = False
    _interrupt = False
    _thread: int | None = None

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        self.started = time.monotonic()
        self._lock = threading.Lock()

    @property
    def jobs(self) -> Sequence[ClaimedJob]:
        """The jobs that run."""
        return (self.job,)

    @property
    def late(self) -> str:
        """What is said of a run that has passed its timeout."""
        return "timed out" if self.timeout_seconds is None else f"timed out after {self.timeout_seconds:g} seconds"

    @property
    def timeout_seconds(self) -> float | None:
        """How long it may take, in seconds; None: as long as it likes."""
        return self.job.timeout_seconds

    @property
    def is_here(self) -> bool:
        """Whether this is the thread that runs the handler."""
        return self._thread == threading.get_ident()

    @property
    def was_interrupted(self) -> bool:
        """Whether an exception was sent into the handler's thread."""
        return self._interrupt

    @property
    def seconds(self) -> float:
        """How long the run has lasted, in seconds."""
        return time.monotonic() - self.started

    def start_clock(self) -> float | None:
        """Let the job's time begin now; return the deadline (`time.monotonic()`), None without a timeout."""
        self.started = time.monotonic()
        timeout = self.timeout_seconds
        return None if timeout is None else self.started + timeout

    def spread(self) -> Sequence[Run]:
        """Return a run for each job."""
        return (self,)

    def ask_to_stop(self, requested: Mapping[str, int]) -> bool:
        """Note that somebody asked to cancel some jobs, given as id and fence; return whether that is the whole run."""
        if requested.get(self.job.id) != self.job.fence:
            return False
        self.cancel_requested = True
        return True

    def lose(self) -> None:
        """Note that nothing of it may be written any more."""
        self.lost = True

    def arm(self) -> None:
        """Let this thread be interrupted from now on; called right before the handler.

        Raises TimedOut when its time is over already: it waited for the database, and nobody could interrupt it since.
        """
        with self._lock:
            if self.timed_out or self.abandoned:
                raise TimedOut(self.late)
            self.has_started = True
            self._thread = threading.get_ident()

    def disarm(self) -> None:
        """End that; called right after the handler. An exception that was sent but has not arrived is taken back."""
        with self._lock:
            thread, self._thread = self._thread, None
            if self._interrupt and thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)

    def interrupt(self, error: type[BaseException]) -> bool:
        """Raise `error` in the handler's thread; return False when no handler is on its stack.

        The exception arrives with the next bytecode of that thread, so a handler that waits in C code gets it late.
        """
        with self._lock:
            if self._thread is None or self._interrupt:
                return False
            self._interrupt = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(error))
            return True


class BulkRun(Run):
    """The run of a list of jobs in one call of a bulk handler; `job` is the first of them.

    It times out as a whole. Who asks to cancel one of its jobs tells that job's context, and stops no others.
    """

    def __init__(self, jobs: list[ClaimedJob], handler: Handler) -> None:
        super().__init__(jobs[0])
        self._jobs = jobs
        self.handler = handler

    @property
    def jobs(self) -> Sequence[ClaimedJob]:
        """The jobs that run, in the order of the handler's list."""
        return self._jobs

    @property
    def timeout_seconds(self) -> float | None:
        """The shortest of its jobs' timeouts, in seconds; None without any."""
        return min((job.timeout_seconds for job in self.jobs if job.timeout_seconds is not None), default=None)

    def take_off(self, ids: Collection[str]) -> None:
        """Take jobs off the list before its call."""
        self._jobs = [job for job in self._jobs if job.id not in ids]
        self.job = self._jobs[0] if self._jobs else self.job

    def ask_to_stop(self, requested: Mapping[str, int]) -> bool:
        """Tell the jobs' contexts; only a list of one is stopped as a whole."""
        for member in self.members:
            member.ask_to_stop(requested)
        return len(self.jobs) == 1 and super().ask_to_stop(requested)

    def lose(self) -> None:
        """Tell the jobs' contexts, too."""
        super().lose()
        for member in self.members:
            member.lost = True

    def spread(self) -> Sequence[Run]:
        """Return a run for each job, as this one stands; they are made when first asked for."""
        if not self.members:
            self.members = [Run(job) for job in self.jobs]
            for member in self.members:
                member.started = self.started
        return self.members
