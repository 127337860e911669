"""A worker thread: take jobs from the tray of its process, run them; claim and settle for all when it is time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, Registry, make_handler, registry
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.lifecycle.transactions import is_away, is_transient
from django_jobs.text import shown
from django_jobs.values import is_integer, is_seconds

from .executor import execute, no_handler
from .isolation import Isolation
from .lanes import FIRST_REST, Lanes, queue_names
from .run import Run
from .settler import release_tray, settle_rest, settle_tray
from .tidy import Tidy
from .tray import Seat, Tray

if TYPE_CHECKING:
    from .process import Process

GUEST_SECONDS = 0.002


class Worker(threading.Thread):
    """Runs jobs of its queues until it is stopped. Every method but `stop` runs in this thread.

    Args:
        queue: a queue's name, several names, or an object with `name` and `handlers`; None means every queue.
        handlers: a dict of job types to functions, or a Registry; decorated handlers are found besides.
        poll_interval: seconds between looks at an idle database.
        process: the worker process it belongs to; one that is shared by all such workers is made when none is given.
    """

    def __init__(
        self,
        queue: Any = None,
        handlers: Registry | dict[str, Callable[..., Any]] | None = None,
        poll_interval: float | None = None,
        *,
        process: Process | None = None,
    ) -> None:
        from .embedded import embedded

        names = queue_names(queue)
        if poll_interval is not None and not is_seconds(poll_interval):
            raise InvalidJob(f"poll_interval={shown(poll_interval)}: give a positive number of seconds")
        self.process = process or embedded()
        self.worker_id = f"{self.process.id}/{next(self.process.numbers)}"
        super().__init__(name=f"worker {self.worker_id}", daemon=True)
        self.seat = Seat()
        self.tray = Tray()  # until `start`, which gives it the one it shares
        self.handlers = handlers if isinstance(handlers, Registry) else _as_registry(handlers, queue)
        self.poll_interval = poll_interval
        self.lanes = Lanes(names, self.process, self.handlers)
        self._stopping = threading.Event()
        self._isolation = Isolation(self.process)
        self._connection: BaseDatabaseWrapper | None = None
        self._prepared: object = None
        self._tidy = Tidy()

    def stop(self) -> None:
        """Ask the thread to finish its current job and end; release what it has not started."""
        self._stopping.set()
        self.process.wakeup.call_all()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return self._stopping.is_set() or self.process.is_stopping or self.seat.abandoned

    @property
    def is_isolated(self) -> bool:
        """Whether the current job runs in this thread's subprocess."""
        return self._isolation.is_busy

    def start(self) -> None:
        """Start the thread, and its process when that has not started."""
        self.process.adopt(self)
        super().start()

    def run(self) -> None:
        """Repeat the step until stopped."""
        self._tidy.begin()
        try:
            while not self.is_stopping:
                try:
                    rest = self.step()
                except Error as error:
                    rest = self.process.trouble.after(error)
                    self._drop_connection()
                if rest > 0 and self.process.wakeup.wait_for_turn(rest, self.lanes.kind, self._stopping.is_set):
                    self.lanes.expect_work()
        except Exception as error:
            self.process.is_broken(error)
        finally:
            self._leave()

    def step(self) -> float:
        """Claim if it is time to, run what there is, settle; return how long to rest, in seconds."""
        self._prepare()
        wanted = self.tray.take_claim()
        found = wanted > 0 and self._claim(wanted)
        ran = self._run_jobs()
        if self.seat.abandoned:
            return -1.0
        if found or ran:
            return 0.0
        return self.lanes.rest(self.poll_interval) if wanted else FIRST_REST  # another thread is looking

    def _claim(self, wanted: int) -> bool:
        """Claim for all threads of the tray from the first queue that has something for us; return whether one had."""
        jobs: list[ClaimedJob] = []
        wanted = min(wanted, self.process.jobs_left())
        self.process.is_looking(self)
        try:
            queue = self.lanes.next_queue()
            while queue is not None and not jobs and not self.is_stopping:
                jobs = claim(queue, wanted, self.process.id)
                if not jobs:
                    queue = self.lanes.is_empty(queue)
        finally:
            self.tray.load(jobs, is_dry=len(jobs) < wanted)
            self.process.has_looked(self, found=bool(jobs))
        if jobs:
            self.process.keeper.watch()
            self.process.trouble.over()
            self.lanes.found_work()
            self.process.wakeup.call()
        return bool(jobs)

    def run_one(self, queue: str) -> str | None:
        """Claim, run and settle one job of a queue in the calling thread; return its id, or None when none is ready.

        For scripts: the thread itself is never started.
        """
        self.process.adopt(self, shares=False)
        self._tidy.begin()
        try:
            self._prepare()
            jobs = claim(queue, 1, self.process.id)
            self.tray.load(jobs, is_dry=True)
            self._run_jobs()
            release_tray(self.tray)  # the process stops
            settle_rest(self.process, self.tray)
            while self.tray.is_busy and not (self.seat.abandoned or self.process.is_lost or self.process.is_stopping):
                time.sleep(GUEST_SECONDS)  # the keeper has some of it in hand
                settle_rest(self.process, self.tray)
            return jobs[0].id if jobs else None
        finally:
            self.tray.leave(self.seat)
            self.process.keeper.watch()
            self._tidy.close()
            self.process.left(self)

    def _run_jobs(self) -> bool:
        """Run jobs until there is none left, or it is time to claim; return whether there was one."""
        ran, before = False, time.monotonic()
        while not self.is_stopping and (run := self.tray.next_run(self.seat)) is not None:
            ran = True
            if self.tray.has_waiting:
                self.lanes.turn.pass_on()
            self.process.keeper.watch()
            self._run_one(run)
            if self.seat.abandoned:
                return True
            now = time.monotonic()
            self.tray.took(now - before)
            before = settle_tray(self.process, self.tray, now)
            if self.tray.is_low:
                break
        settle_tray(self.process, self.tray, before)
        if ran:
            self._tidy.after_batch()
        return ran

    def _run_one(self, run: Run) -> None:
        job = run.job
        handler = self.handlers.find(job.job_type)
        if handler is None:
            self._keep(no_handler(job, self.handlers))
            return
        alone = handler.isolation == "process" or job.crash_count > 0
        if handler.is_async and not alone and self.is_alive():  # in `run_one` the caller waits for it
            self.process.coroutines.start(run, handler, self.handlers)
            self.tray.hand_over(self.seat)
            return
        timeout = job.timeout_seconds
        if timeout is not None:
            run.deadline = run.started + timeout
        if alone:
            result = self._isolation.run_alone(run, handler, self.handlers)
        else:
            result = execute(run, handler, self.handlers, self.process.id)
        self._keep(result)
        self._tidy.after_job()
        if run.changed_session:
            self._drop_connection()
        connection = self._connection
        if connection is None or connection.connection is not self._prepared or processes.is_stuck(connection):
            self._prepare()

    def _keep(self, result: Completed | Outcome | None) -> None:
        if self.tray.finish(self.seat, result):
            self.process.count(result)

    def _prepare(self) -> None:
        """Set up the connection when it is a new one; check it when it is an old one."""
        connection = processes.check_connection()
        if connection.connection is None or connection.connection is not self._prepared:
            processes.prepare_connection(self.process.id)
            self._prepared = connection.connection
        self._connection = connection

    def _drop_connection(self) -> None:
        processes.discard_connection()
        self._connection = self._prepared = None

    def _leave(self) -> None:
        """Hand back what has not started, settle what has, and close what is this thread's own."""
        is_last = self.tray.leave(self.seat)
        if not self.seat.abandoned:
            settle_tray(self.process, self.tray, time.monotonic())
            if is_last or self.process.is_stopping:
                try:
                    release_tray(self.tray)
                except Error as error:  # the end of the process hands them back
                    if not (is_away(error) or is_transient(error)):
                        raise
            settle_rest(self.process, self.tray)
        self._tidy.close()
        connections.close_all()
        self.process.left(self)


class WorkerPool:
    """A number of workers on one queue.

    Args:
        queue: as for `Worker`.
        num_workers: how many threads.
    """

    def __init__(self, queue: Any, num_workers: int = 4, **options: Any) -> None:
        queue_names(queue)
        if not is_integer(num_workers, 1, 10_000):
            raise InvalidJob(f"num_workers={shown(num_workers)}: give an integer from 1 to 10000")
        self.queue = queue
        self.num_workers = num_workers
        self._options = options
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Start the threads; starting again does nothing."""
        if not self.workers:
            self.workers = [Worker(self.queue, **self._options) for _ in range(self.num_workers)]
            for worker in self.workers:
                worker.start()

    def stop(self, graceful: bool = True, timeout: float | None = None) -> None:
        """Stop the threads; when `graceful`, wait until their jobs are done, at most `timeout` seconds."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.stop()
        for worker in workers:
            if graceful and worker is not threading.current_thread():
                worker.join(timeout)


def _as_registry(handlers: dict[str, Callable[..., Any]] | None, queue: Any) -> Registry:
    """Return the handlers of a worker: those given, then the queue's own, then the decorated ones."""
    parent = getattr(queue, "handlers", None)
    base = parent if isinstance(parent, Registry) else registry
    if not handlers:
        return base
    if not isinstance(handlers, Mapping):
        raise InvalidJob(f"handlers={shown(handlers)}: give a dict of job types to functions")
    own = Registry(base)
    for job_type, function in handlers.items():
        own.replace(function if isinstance(function, Handler) else make_handler(function, job_type, {}))
    return own
