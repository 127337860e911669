"""The worker process: its lease, its threads, its end. The same class runs in `runworkers` and inside a script."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from django.db import Error

from django_jobs.conf import get_settings
from django_jobs.handlers import Registry, registry
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.notify import listen_in_process
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.lifecycle.release import release_process

from .coroutines import Coroutines
from .heartbeat import Heartbeat
from .keeper import Keeper
from .listener import Listener
from .maintenance import Maintenance
from .subprocesses import Subprocesses
from .thread import Worker
from .tray import Tray
from .trouble import Trouble
from .wakeup import Wakeup

logger = logging.getLogger("django_jobs")

EXIT_DRAINED = 0
EXIT_CONFIGURATION = 1
EXIT_LEASE_LOST = 70
EXIT_RECYCLE = 75
UNLIMITED = 10**9


class Process:
    """A worker process: starts threads, holds the lease, stops in order.

    Args:
        queues: the queues its own threads run; None means every queue.
        threads: how many threads it starts by itself; workers made elsewhere join with `adopt`.
        handlers: whose handlers its threads run.
        max_jobs: leave with exit code 75 after this many jobs.
        max_rss: leave with exit code 75 above this many megabytes.
    """

    def __init__(
        self,
        *,
        queues: Sequence[str] | None = None,
        threads: int = 0,
        handlers: Registry = registry,
        poll_interval: float | None = None,
        max_jobs: int | None = None,
        max_rss: int | None = None,
    ) -> None:
        self.id = processes.new_process_id()
        self.queues = list(queues) if queues is not None else None
        self.wakeup = Wakeup()
        self.trouble = Trouble()
        self.keeper = Keeper(self)
        self.coroutines = Coroutines(self)
        self.subprocesses = Subprocesses(self)
        self.heartbeat = Heartbeat(self)
        self.maintenance = Maintenance(self)
        self.listener = Listener(self)
        self.exit_code = EXIT_DRAINED
        self.completed = 0
        self.failed = 0
        self._threads = threads
        self._handlers = handlers
        self._poll_interval = poll_interval
        self._max_jobs = max_jobs
        self.max_rss = max_rss if max_rss is not None else get_settings().MAX_RSS_MB
        self.numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._workers: list[Worker] = []
        self._trays: list[Tray] = []
        self._looking: set[Worker] = set()
        self._found_nothing = False
        self._lent: dict[str, ClaimedJob] = {}
        self._started = False
        self._stopping = threading.Event()
        self._hurried = threading.Event()
        self._stop_listening: Callable[[], None] = lambda: None
        self.is_lost = self.has_ended = False

    # What the parts ask.

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is claimed or started."""
        return self._stopping.is_set()

    @property
    def is_notified(self) -> bool:
        """Whether notifications of new work reach this process."""
        return self.listener.is_healthy

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(worker.seat.run is not None for worker in self.workers()) + self.coroutines.running

    def workers(self) -> list[Worker]:
        """Return the worker threads that live."""
        with self._lock:
            return list(self._workers)

    def trays(self) -> list[Tray]:
        """Return the trays of the worker threads, and those that nobody uses any more but hold something."""
        with self._lock:
            self._trays = [tray for tray in self._trays if tray.is_used]
            return list(self._trays)

    def held(self) -> dict[str, int]:
        """Return the fence of each job that this process holds."""
        held: dict[str, int] = self.coroutines.held()
        with self._lock:
            held.update((job.id, job.fence) for job in self._lent.values())
        for tray in self.trays():
            held.update(tray.held())
        return held

    def has_abandoned(self) -> bool:
        """Whether a thread was given up; it may never end."""
        return any(worker.seat.abandoned for worker in self.workers())

    def jobs_left(self) -> int:
        """Return how many more jobs this process may run."""
        return UNLIMITED if self._max_jobs is None else max(1, self._max_jobs - self.completed - self.failed)

    # Its life.

    def start(self) -> None:
        """Register the process, start its loops and its threads; starting again does nothing."""
        with self._lock:
            if self._started:
                return
            # First, because it is what may fail; the caller then starts the process again.
            processes.register(self.id, queues=self.queues or [], threads=self._threads)
            self._started = True
        self._stop_listening = listen_in_process(self.wakeup.call)
        self.heartbeat.start()
        self.keeper.start()
        self.maintenance.start()
        self.listener.start()
        for _ in range(self._threads):
            Worker(self.queues, self._handlers, self._poll_interval, process=self).start()

    def adopt(self, worker: Worker, *, shares: bool = True) -> None:
        """Take in a worker that is about to start; those with the same queues and handlers share a tray if they may."""
        self.start()
        with self._lock:
            for other in self._workers if shares else ():
                if other.is_alive() and other.lanes.kind == worker.lanes.kind:
                    worker.tray = other.tray
            worker.tray.join(worker.seat)
            if worker.tray not in self._trays:
                self._trays.append(worker.tray)
            self._workers.append(worker)

    def left(self, worker: Worker) -> None:
        """Take note that a worker thread has ended."""
        with self._lock:
            self._looking.discard(worker)
            if worker in self._workers:
                self._workers.remove(worker)
            if not self._workers:
                self.subprocesses.end_idle()

    def lend(self, job: ClaimedJob) -> None:
        """Hold a job that a script has claimed and settles by itself, until `take_back`."""
        with self._lock:
            self._lent[job.id] = job

    def take_back(self, job_id: str) -> None:
        """Hold a lent job no longer."""
        with self._lock:
            self._lent.pop(job_id, None)

    def is_looking(self, worker: Worker) -> None:
        """Take note that a worker is about to claim."""
        with self._lock:
            self._looking.add(worker)

    def has_looked(self, worker: Worker, *, found: bool) -> None:
        """Take note of whether a worker found something to do."""
        with self._lock:
            self._looking.discard(worker)
            self._found_nothing = not found

    def count(self, result: Completed | Outcome | None) -> None:
        """Count a run, and recycle the process after the last one it may run."""
        with self._lock:
            self._found_nothing = False
            if isinstance(result, Outcome):
                self.failed += 1
            else:
                self.completed += 1
        if self._max_jobs is not None and self.completed + self.failed >= self._max_jobs:
            self.recycle()

    def has_nothing_to_do(self) -> bool:
        """Whether the last look was in vain, nobody looks now, and nothing runs, is to be settled or to be cascaded."""
        with self._lock:
            at_rest = self._found_nothing and not self._looking and not self.maintenance.owes_cascade
            return at_rest and not self.running and not self.held()

    # Its end.

    def stop(self, *, graceful: bool = True, grace: float | None = None) -> bool:
        """Stop claiming, hand back what has not started, let what runs finish; return whether everything ended in time."""
        self._stopping.set()
        for worker in self.workers():
            worker.stop()
        self.wakeup.close()
        limit = get_settings().SHUTDOWN_GRACE_SECONDS if grace is None else grace
        ended = self._join(time.monotonic() + (limit if graceful else 0.0))
        self._close(ended)
        return ended

    def hurry(self) -> None:
        """Make the deadline of the stop now."""
        self._hurried.set()

    def _join(self, deadline: float) -> bool:
        while time.monotonic() < deadline and not self._hurried.is_set():
            alive = [worker for worker in self.workers() if worker.is_alive() and not worker.seat.abandoned]
            if not alive and not self._has_work_in_hand():
                return True
            if alive:
                alive[0].join(0.05)
            else:
                time.sleep(0.02)
        return not self._has_work_in_hand()

    def _has_work_in_hand(self) -> bool:
        return self.coroutines.running > 0 or any(tray.is_busy for tray in self.trays())

    def _close(self, ended: bool) -> None:
        self.has_ended = True
        self._stop_listening()
        self.coroutines.stop()
        self.maintenance.stop()
        self.listener.stop()
        self.keeper.stop()
        for thread in (self.maintenance, self.keeper):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(5)
        # Before the row goes: a beat that finds none would take the lease for lost.
        self.heartbeat.stop()
        if ended and not self.is_lost:
            try:
                release_process(self.id)
            except Error:
                logger.debug("could not delete the row of this process; it will be rescued", exc_info=True)

    def release_running(self) -> None:
        """Hand back what still runs at the end of the grace, right before the process exits."""
        for worker in self.workers():
            worker.tray.give_up_run(worker.seat)
        self.coroutines.give_up()
        release_process(self.id)

    def drain(self) -> None:
        """Claim nothing more; whoever waits for that stops the process in order."""
        self._stopping.set()
        self.wakeup.close()

    def is_broken(self, error: Exception) -> None:
        """Take note that a loop met an error that nobody foresaw: leave, to be started anew in a known state."""
        logger.error("a loop of worker process %s broke; the process will be recycled", self.id, exc_info=error)
        self.recycle()

    def recycle(self) -> None:
        """Drain and leave with exit code 75, to be started anew."""
        self.exit_code = self.exit_code or EXIT_RECYCLE
        self.drain()

    def lose_lease(self) -> None:
        """Stop at once: nothing that this process still does may be written."""
        if self.is_lost:
            return
        self.is_lost = True
        logger.error("worker process %s has lost its lease; whatever it still runs is dropped", self.id)
        for worker in self.workers():
            run = worker.seat.run
            if run is not None:
                run.lost = True
        self.exit_code = EXIT_LEASE_LOST
        self.drain()

    def wait_until_stopping(self, timeout: float | None = None) -> bool:
        """Wait until somebody or something stops the process; return whether that is so."""
        return self._stopping.wait(timeout)
