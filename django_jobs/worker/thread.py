"""A worker thread: claim a batch, run it, settle it; rest only when there is nothing to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.db import Error, connections

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, Registry, make_handler, registry
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.lifecycle.release import release_unstarted
from django_jobs.lifecycle.transactions import is_away, is_transient
from django_jobs.text import shown
from django_jobs.values import is_integer, is_seconds

from .executor import Tidy, execute, no_handler
from .isolation import Isolation
from .lanes import Lanes, queue_names
from .run import Run
from .seat import Seat

if TYPE_CHECKING:
    from .process import Process

MAX_BATCH = 128
BATCH_SECONDS = 0.05
SETTLE_SECONDS = 0.05


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
        self.worker_id = f"{self.process.id}/{self.process.next_number()}"
        super().__init__(name=f"worker {self.worker_id}", daemon=True)
        self.seat = Seat()
        self.handlers = handlers if isinstance(handlers, Registry) else _as_registry(handlers, queue)
        self.poll_interval = poll_interval
        self.lanes = Lanes(names, self.process)
        self._stopping = threading.Event()
        self._isolation = Isolation(self.process)
        self._seconds_per_job = BATCH_SECONDS / 4
        self._settled_at = 0.0
        self._prepared: object = None
        self._tidy = Tidy()

    def stop(self) -> None:
        """Ask the thread to finish its current job and end; release what it has not started."""
        self._stopping.set()
        self.process.wakeup.call_all()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return self._stopping.is_set() or self.process.is_stopping

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
        """Claim and run one batch; return how long to rest, in seconds."""
        self._prepare()
        if self.seat.is_busy:  # the database went away in the middle of the last batch
            self._run_batch()
        self.process.is_looking(self)
        try:
            jobs = self._claim_batch()
            self.seat.load(jobs)
        finally:
            self.process.has_looked(self, found=self.seat.is_busy)
        if not jobs:
            return self.lanes.rest(self.poll_interval)
        self.process.trouble.over()
        self.lanes.found_work()
        self.process.wakeup.call()
        self.process.keeper.watch()
        self._run_batch()
        return -1.0 if self.seat.abandoned else 0.0

    def _claim_batch(self) -> list[ClaimedJob]:
        """Claim from the first queue that has something for us."""
        jobs: list[ClaimedJob] = []
        queue = self.lanes.next_queue()
        while queue is not None and not jobs and not self.is_stopping:
            jobs = claim(queue, self._batch_size(), self.process.id)
            if not jobs:
                queue = self.lanes.is_empty(queue)
        return jobs

    def run_one(self, queue: str) -> str | None:
        """Claim, run and settle one job of a queue in the calling thread; return its id, or None when none is ready.

        For scripts: the thread itself is never started.
        """
        self.process.adopt(self)
        self._tidy.begin()
        try:
            self._prepare()
            jobs = claim(queue, 1, self.process.id)
            if not jobs:
                return None
            self.seat.load(jobs)
            self.process.keeper.watch()
            self._run_batch()
            return jobs[0].id
        finally:
            self._tidy.close()
            self.process.left(self)

    def _batch_size(self) -> int:
        """Return as many jobs as ran lately in 50 ms, so that none waits long behind the others."""
        left = self.process.jobs_left()
        return max(1, min(MAX_BATCH, int(BATCH_SECONDS / self._seconds_per_job), left))

    def _run_batch(self) -> None:
        before = self._settled_at = time.monotonic()
        ran, seconds = 0, 0.0
        while not self.is_stopping and (run := self.seat.next_run()) is not None:
            self._run_one(run)
            if self.seat.abandoned:
                return
            now = time.monotonic()
            ran, seconds, before = ran + 1, seconds + now - before, now
            if now - self._settled_at > SETTLE_SECONDS:
                self.settle()
                before = self._settled_at = time.monotonic()
        if ran:
            # Half of what was measured now, half of what was known: one slow job does not forget a fast queue. The settle
            # is left out: a slow database must not make the batches small, which would make it slower.
            self._seconds_per_job = max(1e-6, (self._seconds_per_job + seconds / ran) / 2)
        self.settle()
        if self.is_stopping:
            release_unstarted(self.seat.take_unstarted())
        self._tidy.after_batch()

    def _run_one(self, run: Run) -> None:
        job = run.job
        handler = self.handlers.find(job.job_type)
        if handler is None:
            self._keep(no_handler(job, self.handlers))
            return
        alone = handler.isolation == "process" or job.crash_count > 0
        if handler.is_async and not alone and self.is_alive():  # in `run_one` the caller waits for it
            self.process.coroutines.start(run, handler, self.handlers)
            self.seat.hand_over()
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
        self._prepare()

    def _keep(self, result: Completed | Outcome | None) -> None:
        if self.seat.finish(result):
            self.process.count(result)

    def settle(self) -> None:
        """Settle the results of this seat."""
        self.process.settle(self.seat)

    def _prepare(self) -> None:
        """Set up the connection when it is a new one; check it when it is an old one."""
        connection = processes.check_connection()
        if connection.connection is None or connection.connection is not self._prepared:
            processes.prepare_connection(self.process.id)
            self._prepared = connection.connection

    def _drop_connection(self) -> None:
        processes.discard_connection()
        self._prepared = None

    def _leave(self) -> None:
        """Hand back what has not started, settle what has, and close what is this thread's own."""
        if not self.seat.abandoned:
            try:
                release_unstarted(self.seat.take_unstarted())
                self.settle()
            except Error as error:
                if not (is_away(error) or is_transient(error)):
                    raise
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
