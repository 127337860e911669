"""A worker thread: take jobs from the buffer of its process and run them; claim and settle for all when it is time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.db.connections import discard_connection, is_stuck, usable_connection
from django_jobs.db.errors import is_away
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, Registry, make_handler, registry, unknown_job_type
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.settle import Outcome
from django_jobs.numbers import is_integer, is_seconds
from django_jobs.text import shown

from .buffer import JobBuffer, Slot
from .child.isolation import Isolation
from .cleanup import HandlerCleanup
from .executor import execute
from .local_process import local_process
from .poller import FIRST_REST, QueueSelector, queue_names
from .process import Process
from .run import Run
from .settler import release_buffer

INLINE_SECONDS = 0.002


class Worker(threading.Thread):
    """Runs jobs of its queues until it is stopped. Every method but `stop` runs in this thread.

    Args:
        queue: a queue's name, several names, or an object with `name` and `handlers`; None means every queue.
        handlers: a dict of job types to functions, or a Registry; decorated handlers are found besides.
        poll_interval: seconds between looks at an idle database.
        process: the worker process it belongs to; one that is shared by all such workers is made when none is given.

    Raises InvalidJob for a bad argument.
    """

    def __init__(
        self,
        queue: Any = None,
        handlers: Registry | dict[str, Callable[..., Any]] | None = None,
        poll_interval: float | None = None,
        *,
        process: Process | None = None,
    ) -> None:
        names = queue_names(queue)
        if poll_interval is not None and not is_seconds(poll_interval):
            raise InvalidJob(f"poll_interval={shown(poll_interval)}: give a positive number of seconds")
        self.process = process or local_process()
        self.worker_id = self.process.new_worker_id()
        super().__init__(name=f"worker {self.worker_id}", daemon=True)
        self.handlers = handlers if isinstance(handlers, Registry) else _as_registry(handlers, queue)
        self.poll_interval = poll_interval
        self.slot = Slot(self.handlers)
        self.buffer = JobBuffer()  # until `start`, which gives it the one that it shares
        self.selector = QueueSelector(names, self.handlers, self.process.state.pollers)
        self._state = self.process.state
        self._settler = self.process.settler
        self._watchdog = self.process.watchdog
        self._isolation = Isolation(self._state, self.process.pool)
        self._stopping = threading.Event()
        self._connection: BaseDatabaseWrapper | None = None
        self._prepared: object = None
        self._cleanup = HandlerCleanup()

    def stop(self) -> None:
        """Ask the thread to finish its current job and end; it releases what it has not started."""
        self._stopping.set()
        self._state.pollers.wake_all()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return self._stopping.is_set() or self._state.is_stopping or self.slot.abandoned

    def start(self) -> None:
        """Start the thread, and its process when that has not started."""
        self.process.adopt(self)
        super().start()

    def run(self) -> None:
        """Repeat the step until stopped."""
        try:
            self._cleanup.begin()
            while not self.is_stopping:
                try:
                    rest = self.step()
                except Error as error:
                    rest = self._state.backoff.after(error)
                    self._drop_connection()
                if rest > 0 and self.selector.poller.wait(rest, lambda: self.is_stopping):
                    self.selector.expect_work()
        except Exception as error:
            self._state.recycle_after(error)
        finally:
            self._leave()

    def step(self) -> float:
        """Claim if it is time to, run what there is, settle; return how long to rest, in seconds."""
        self._prepare()
        wanted = self.buffer.take_claim()
        found = wanted > 0 and self._claim(wanted)
        ran = self._run_jobs()
        if self.slot.abandoned:
            return -1.0
        if found or ran:
            return 0.0
        return self.selector.rest(self.poll_interval) if wanted else FIRST_REST  # another thread is claiming

    def _claim(self, wanted: int) -> bool:
        """Claim for all threads of the buffer from the first queue that has something for us; return whether one had."""
        jobs: list[ClaimedJob] = []
        wanted = min(wanted, self._state.jobs_left())
        self._state.begin_claim(self)
        try:
            queue = self.selector.next_queue()
            while queue is not None and not jobs and not self.is_stopping:
                jobs = claim(queue, wanted, self._state.id)
                if not jobs:
                    queue = self.selector.queue_after(queue)
        finally:
            self.buffer.load(jobs, is_dry=len(jobs) < wanted)
            self._state.end_claim(self, found=bool(jobs))
        if jobs:
            self._watchdog.wake()
            self._state.backoff.over()
            self.selector.poller.found_work()
            self._state.pollers.wake()
        return bool(jobs)

    def run_one(self, queue: str) -> str | None:
        """Claim, run and settle one job of a queue in the calling thread; return its id, or None when none is ready.

        For scripts, as an inline worker: the thread itself is never started.
        """
        self.process.adopt(self, shares=False)
        self._cleanup.begin()
        try:
            self._prepare()
            jobs = claim(queue, 1, self._state.id)
            self.buffer.load(jobs, is_dry=True)
            self._run_jobs()
            release_buffer(self.buffer)  # the process stops
            self._settler.settle_rest(self.buffer)
            while self.buffer.is_busy and not (self.slot.abandoned or self._state.is_lost or self._state.is_stopping):
                time.sleep(INLINE_SECONDS)  # the watchdog settles some of it
                self._settler.settle_rest(self.buffer)
            return jobs[0].id if jobs else None
        finally:
            self.buffer.leave(self.slot)
            self._watchdog.wake()
            self._cleanup.close()
            self.process.remove(self)

    def _run_jobs(self) -> bool:
        """Run jobs until there is none left, or it is time to claim; return whether there was one."""
        ran, before = False, time.monotonic()
        while not self.is_stopping and (run := self.buffer.next_run(self.slot)) is not None:
            ran = True
            if self.buffer.has_waiting:
                self.selector.poller.hand_work()
            self._watchdog.wake()
            self._run_one(run)
            if self.slot.abandoned:
                return True
            now = time.monotonic()
            self.buffer.took(now - before)
            before = self._settler.settle(self.buffer, now)
            if self.buffer.is_low:
                break
        self._settler.settle(self.buffer, before)
        if ran:
            self._cleanup.after_batch()
        return ran

    def _run_one(self, run: Run) -> None:
        job = run.job
        handler = self.handlers.find(job.job_type)
        if handler is None:
            self._keep(Outcome.no_handler(job, unknown_job_type(job.job_type, self.handlers.job_types())))
            return
        is_alone = handler.isolation == "process" or job.crash_count > 0
        if handler.is_async and not is_alone and self.is_alive():  # an inline worker waits for its job
            self.process.coroutines.hand_over(run, handler, self.handlers)
            self.buffer.hand_over(self.slot)
            return
        if is_alone:
            outcome = self._isolation.run_alone(run, handler, self.handlers)
        else:
            if job.timeout_seconds is not None:
                run.deadline = run.started + job.timeout_seconds
            outcome = execute(run, handler, self.handlers, self._state.id)
        self._keep(outcome)
        self._cleanup.after_job()
        if run.was_interrupted:  # perhaps in the middle of a query, whose answer the next one would take for its own
            self._drop_connection()
            connections.close_all()
        elif run.changed_session:
            self._drop_connection()
        connection = self._connection
        if connection is None or connection.connection is not self._prepared or is_stuck(connection):
            self._prepare()

    def _keep(self, outcome: Outcome) -> None:
        if self.buffer.finish(self.slot, outcome):
            self._state.count(outcome)

    def _prepare(self) -> None:
        """Set up the connection when it is a new one; check it when it is an old one.

        It is kept from job to job: a new one for each would cost three quarters of the throughput.
        """
        connection = usable_connection()
        if connection.connection is None or connection.connection is not self._prepared:
            leases.prepare_connection(self._state.id)
            self._prepared = connection.connection
        self._connection = connection

    def _drop_connection(self) -> None:
        discard_connection()
        self._connection = self._prepared = None

    def _leave(self) -> None:
        """Hand back what has not started, settle what has, and close what is this thread's own."""
        is_last = self.buffer.leave(self.slot)
        if not self.slot.abandoned:
            self._settler.settle(self.buffer, time.monotonic())
            if is_last or self._state.is_stopping:
                try:
                    release_buffer(self.buffer)
                except Error as error:  # the end of the process hands them back
                    if not is_away(error):
                        raise
            self._settler.settle_rest(self.buffer)
        self._cleanup.close()
        connections.close_all()
        self.process.remove(self)


def start_workers(process: Process, *, handlers: Registry = registry, poll_interval: float | None = None) -> None:
    """Start a process with its worker threads: as many as it is to have, on its queues.

    Raises a database error when the process cannot be registered; nothing has been started then.
    """
    process.start()
    for _ in range(process.threads):
        Worker(process.queues, handlers, poll_interval, process=process).start()


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
