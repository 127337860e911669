"""The worker process: its lease, its worker threads, its loops, its end. The same class runs in `runworkers` and in a script."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from django_jobs.conf import get_settings
from django_jobs.db.connections import on_database
from django_jobs.db.notify import listen_in_process, old_in_process
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.lifecycle.limits import write_declared
from django_jobs.lifecycle.release import release_process
from django_jobs.waiting import HandlerThreads

from .alerter import Alerter
from .bounded import RELEASE_SECONDS, do_within
from .buffer import JobBuffer
from .child.pool import ChildPool
from .coroutines import Coroutines
from .flag import Flag
from .lease import Lease
from .listener import Listener
from .liveness import LivenessMonitor
from .log_writer import LogWriter
from .maintenance import Maintenance
from .settler import Settler
from .state import JobLimit, WorkerState
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .places import Places
    from .thread import Worker

END_SECONDS = 0.5  # that the loops get to end in


class Process:
    """A worker process. Its threads join it with `adopt`; `thread.start_workers` starts as many as it is to have.

    Args:
        queues: the queues its own threads run; None means every queue.
        threads: how many threads of its own it is to have.
        max_jobs: leave with exit code 75 after this many jobs.
        max_rss: leave with exit code 75 above this many megabytes.
        database: the alias of the database that it serves; None: that of the routers.
        places: what it shares with the processes of other databases; it starts with one thread then, and others as needed.
    """

    def __init__(
        self,
        *,
        queues: Sequence[str] | None = None,
        threads: int = 0,
        max_jobs: int | None = None,
        max_rss: int | None = None,
        database: str | None = None,
        places: Places | None = None,
    ) -> None:
        self.queues = list(queues) if queues is not None else None
        self.threads = threads
        self.places = places
        limit = places.limit if places is not None else None if max_jobs is None else JobLimit(max_jobs)
        self.state = WorkerState(limit=limit, on_lost=self._lose_runs, database=database)
        self.lease = Lease(self.state, self.silent_threads)
        self.maintenance = Maintenance(
            self.state,
            LivenessMonitor(self.state, self.held, self._cancel),
            max_rss if max_rss is not None else get_settings().MAX_RSS_MB,
        )
        self.settler = Settler(self.state, self.maintenance.expect_due, self.state.connections.lent)
        self.inline_settler = Settler(self.state, self.maintenance.expect_due)  # for scripts, over their own connection
        self.coroutines = Coroutines(self.state, self.settler)
        self.watchdog = Watchdog(self.state, self.settler, self.coroutines, self.buffers)
        self.log_writer = LogWriter(self.state)
        self.alerter = Alerter(self.state)
        self.listener = Listener(self.state, self.maintenance.look_at_requests)
        self.pool = places.pool if places is not None else ChildPool(self.state)
        # Those that are still to start count too: a handler of the first must not be told that it is the last.
        self.handler_threads = (
            places.handler_threads
            if places is not None
            else HandlerThreads(lambda: max(self.threads, len(self.workers())))
        )
        self.has_ended = False
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._registering = threading.Lock()
        self._workers: list[Worker] = []
        self._buffers: list[JobBuffer] = []
        self._held_by_hand: dict[str, ClaimedJob] = {}
        self._is_registered = self._has_started = False
        self._stop_listening: list[Callable[[], None]] = []

    @property
    def id(self) -> str:
        """The name of this process in the database."""
        return self.state.id

    @property
    def is_registered(self) -> bool:
        """Whether the row of the process has been written."""
        return self._is_registered

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is claimed or started."""
        return self.state.is_stopping

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(worker.slot.run is not None for worker in self.workers()) + self.coroutines.running

    def workers(self) -> list[Worker]:
        """Return the worker threads that live."""
        with self._lock:
            return list(self._workers)

    def buffers(self) -> list[JobBuffer]:
        """Return the buffers of the worker threads, and those that nobody uses any more but hold something."""
        with self._lock:
            self._buffers = [buffer for buffer in self._buffers if buffer.is_used]
            return list(self._buffers)

    def held(self) -> dict[str, int]:
        """Return the fence of each job that this process holds."""
        places = [buffer.held() for buffer in self.buffers()]
        # After the buffers: a job may be handed over from there to here, and is to be seen in one place at least.
        places.append(self.coroutines.held())
        with self._lock:
            places.append({job.id: job.fence for job in self._held_by_hand.values()})
        held: dict[str, int] = {}
        for place in places:
            for job_id, fence in place.items():
                held[job_id] = max(fence, held.get(job_id, 0))  # an older run of it may be about to be settled
        return held

    def silent_threads(self) -> int:
        """Return how many of its worker threads neither run a job nor look for one; none while the process stops."""
        limit = get_settings().LEASE_SECONDS / 2
        return 0 if self.is_stopping else sum(worker.is_silent(limit) for worker in self.workers())

    def has_abandoned(self) -> bool:
        """Whether a thread was given up; it may never end."""
        return any(worker.slot.abandoned for worker in self.workers())

    def has_nothing_to_do(self) -> bool:
        """Whether the last claim was in vain, nobody claims now, and nothing runs, is to be settled or to be cascaded."""
        is_idle = self.state.found_nothing and not self.maintenance.owes_cascade
        return is_idle and not self.running and not self.held()

    # Its life.

    def register(self) -> bool:
        """Write the row of the process, unless it is there; return True.

        Raises a database error when that cannot be done; then call it again.
        """
        with self._registering:  # a lock of its own: a server may be silent, and the process is to end all the same
            if not self._is_registered:
                with self._on_its_database():
                    leases.register(self.id, queues=self.queues or [], threads=self.threads)
                    write_declared()  # before the first claim: what runs already counts
                self._is_registered = True
        return True

    def start(self) -> None:
        """Register the process and start its loops; starting again does nothing.

        Raises RuntimeError when the system gives no thread for one; the process ends then.
        """
        self.register()
        with self._lock:
            if self._has_started:
                return
            self._has_started = True
        self.state.connections.open()
        try:
            with self._on_its_database():
                pollers = self.state.pollers
                self._stop_listening = [listen_in_process(pollers.wake), old_in_process(pollers.expect_old)]
                self.log_writer.begin()
                for loop in (self.lease, self.watchdog, self.maintenance, self.listener):
                    loop.start()
                if get_settings().ALERTS is not None:
                    self.alerter.start()
        except RuntimeError as error:  # the system gives no further thread
            self.state.recycle_after(error)
            raise

    def new_worker_id(self) -> str:
        """Return the name of another worker thread."""
        return f"{self.id}/{next(self._numbers)}"

    def adopt(self, worker: Worker, *, shares: bool = True) -> None:
        """Take in a worker that is about to start; those with the same queues and handlers share a buffer if they may."""
        self.start()
        with self._lock:
            for other in self._workers if shares else ():
                if other.is_alive() and other.selector.kind == worker.selector.kind:
                    worker.buffer = other.buffer
            worker.buffer.join(worker.slot)
            if worker.buffer not in self._buffers:
                self._buffers.append(worker.buffer)
            self._workers.append(worker)

    def needs_thread(self, worker: Worker) -> bool:
        """Whether a thread that shares places, and is about to run a job, leaves nobody behind who would claim the next one."""
        workers = self.workers()
        return len(workers) < self.threads and all(other is worker or other.slot.run for other in workers)

    def spare(self, worker: Worker, idle_before: float) -> bool:
        """Let an idle thread go when another one is idle, too, and both have been since that moment; say whether it goes."""
        with self._lock:
            idle = [other for other in self._workers if other.idle_since < idle_before and not other.is_stopping]
            is_spare = worker in idle and len(idle) > 1
            if is_spare:
                worker.idle_since = float("inf")  # for the others, before the thread has ended
            return is_spare

    def remove(self, worker: Worker) -> None:
        """Note that a worker thread has ended."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
            if not self._workers:
                self.pool.end_idle()

    def hold(self, job: ClaimedJob) -> None:
        """Hold a job that a script has claimed and settles by itself, until `let_go`."""
        with self._lock:
            self._held_by_hand[job.id] = job

    def let_go(self, job_id: str) -> None:
        """Hold a job of a script no longer."""
        with self._lock:
            self._held_by_hand.pop(job_id, None)

    def _cancel(self, requested: dict[str, int]) -> None:
        """Tell running jobs, given as id and fence, that somebody asked to cancel them."""
        for worker in self.workers():
            run = worker.slot.run
            if run is not None:
                run.ask_to_stop(requested)
        self.coroutines.cancel(requested)

    def _lose_runs(self) -> None:
        """Tell running jobs that the lease is lost."""
        for worker in self.workers():
            run = worker.slot.run
            if run is not None:
                run.lose()

    # Its end.

    def stop(self, *, graceful: bool = True, grace: float | None = None, cut_short: Flag | None = None) -> bool:
        """Stop claiming, hand back what has not started, let what runs finish; return whether everything ended in time.

        Args:
            grace: seconds for what runs; None: SHUTDOWN_GRACE_SECONDS.
            cut_short: ends the grace once it is set.
        """
        self.state.drain()
        limit = get_settings().SHUTDOWN_GRACE_SECONDS if grace is None else grace
        ended = self._join(time.monotonic() + (limit if graceful else 0.0), cut_short or Flag())
        self._close(ended)
        return ended

    def _join(self, deadline: float, cut_short: Flag) -> bool:
        while time.monotonic() < deadline and not cut_short.is_set():
            self.watchdog.wake()  # it stands in for threads that broke
            alive = [worker for worker in self.workers() if worker.is_alive() and not worker.slot.abandoned]
            if not alive and not self._has_work_in_hand():
                return True
            if alive:
                alive[0].join(0.05)
            else:
                time.sleep(0.02)
        return not self._has_work_in_hand()

    def _has_work_in_hand(self) -> bool:
        return self.coroutines.running > 0 or any(buffer.is_busy for buffer in self.buffers())

    def _close(self, ended: bool) -> None:
        self.has_ended = True
        if not ended:  # before the loop stops, which ends its tasks as failures
            self.coroutines.give_up_all()
        for stop_listening in self._stop_listening:
            stop_listening()
        for loop in (self.coroutines, self.maintenance, self.listener, self.watchdog, self.log_writer, self.alerter):
            loop.stop()
        deadline = time.monotonic() + END_SECONDS
        for loop in (self.coroutines, self.maintenance, self.watchdog, self.log_writer, self.alerter):
            if loop.is_alive() and loop is not threading.current_thread():
                loop.join(max(0.0, deadline - time.monotonic()))
        self.state.connections.close()
        # Before the row goes: a beat that finds none would take the lease for lost.
        self.lease.stop()
        if ended and not self.state.is_lost:
            with self._on_its_database():
                do_within(RELEASE_SECONDS, lambda: release_process(self.id, self.state.jobs_done))

    def release_running(self) -> None:
        """Hand back what still runs at the end of the grace, right before the process exits."""
        for worker in self.workers():
            worker.buffer.give_up_run(worker.slot)
        self.coroutines.give_up_all()
        with self._on_its_database():
            release_process(self.id, self.state.jobs_done)

    def _on_its_database(self) -> AbstractContextManager[None]:
        return on_database(self.state.database)
