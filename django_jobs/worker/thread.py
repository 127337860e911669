"""A worker thread: take jobs from the buffer of its process and run them; claim and settle for all when it is time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from django.conf import settings
from django.db import Error, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.conf import get_settings
from django_jobs.db.connections import (
    discard,
    discard_all,
    discard_connection,
    discard_pooled,
    is_cut,
    is_stuck,
    jobs_connection,
    usable_connection,
    work_on,
)
from django_jobs.db.dialects import dialect
from django_jobs.db.errors import is_away
from django_jobs.db.sessions import last_used
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, Registry, make_handler, registry, unknown_job_type
from django_jobs.lifecycle import leases, unknown_type
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import Handover
from django_jobs.numbers import is_integer, is_seconds
from django_jobs.text import shown
from django_jobs.waiting import handler_threads

from .buffer import PATIENCE_SECONDS, JobBuffer, Slot
from .bulk import execute_all
from .child.isolation import NOT_STARTED_SECONDS, Isolation
from .cleanup import HandlerCleanup
from .connections import FRESH_SECONDS, IDLE_SECONDS
from .executor import execute, wait_to_start
from .local_process import local_process
from .poller import FIRST_REST, QueueSelector, queue_names
from .process import Process
from .run import BulkRun, Run
from .watch import CommitWatch, ReadyWatch, Watch

INLINE_SECONDS = 0.002
CROWDED_REST = 0.02
SPARE_SECONDS = 10.0  # a thread that shares places and was idle for so long goes, unless it is the last idle one


class Worker(threading.Thread):
    """Runs jobs of its queues until it is stopped. Every method but `stop` runs in this thread.

    Args:
        queue: a queue's name, several names, or an object with `name` and `handlers`; None means every queue.
        handlers: a dict of job types to functions, or a Registry; decorated handlers are found besides.
        poll_interval: in the place of the setting POLL_INTERVAL (seconds).
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
        self.process = process or local_process(getattr(queue, "using", None))
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
        self._places = self.process.places
        self.idle_since = float("inf")
        self._isolation = Isolation(self._state, self.process.pool)
        self._stopping = threading.Event()
        self._connection: BaseDatabaseWrapper | None = None
        self._prepared: object = None
        self._has_lent = False  # whether claims and settles go over connections of the process
        self._cleanup = HandlerCleanup()
        self._watch: Watch = CommitWatch()
        self._is_resting = self._has_failed = False
        self._went_on_at = self._claimed_at = time.monotonic()
        self._sessions = self._cleanup.sessions

    def stop(self) -> None:
        """Ask the thread to finish its current job and end; it releases what it has not started."""
        self._stopping.set()
        self._state.pollers.wake_all()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return self._stopping.is_set() or self._state.is_stopping or self.slot.abandoned

    def start(self) -> None:
        """Start the thread, and its process when that has not started.

        Raises RuntimeError when the system gives no further thread; the process ends then, because it would lack one.
        """
        self.process.adopt(self)
        try:
            super().start()
        except RuntimeError as error:
            self.buffer.leave(self.slot)
            self.process.remove(self)
            self._state.recycle_after(error)
            raise

    def is_silent(self, limit: float) -> bool:
        """Say whether the thread, which was started, neither runs a job nor looks for one.

        It has died, was given up, or has not got through to the jobs for more than `limit` seconds.
        """
        if self.ident is None:  # an inline worker, or one that is about to start
            return False
        if not self.is_alive() or self.slot.abandoned:
            return True
        is_well = self.slot.run is not None or (self._is_resting and not self._has_failed)
        return not is_well and time.monotonic() - self._went_on_at > limit

    def run(self) -> None:
        """Repeat the step until stopped."""
        try:
            work_on(self._state.database)
            self._has_lent = jobs_connection().vendor != "sqlite"
            if self._has_lent:
                leases.prepare_when_opened(self._state.id)
                self._watch = ReadyWatch(
                    self._asking,
                    self.selector.names,
                    self.poll_interval or get_settings().POLL_INTERVAL,
                    self._state.pollers.processes,
                    lambda: self._state.pollers.is_notified,
                    self.selector.expect_work_in,
                )
            handler_threads.set(self.process.handler_threads)
            self._cleanup.begin()
            step = self.step if self._places is None else self._step_in_turn
            while not self.is_stopping:
                try:
                    rest = step()
                    self._has_failed = False
                    is_woken = rest > 0 and self._rest(rest)
                except Error as error:
                    self._has_failed = True
                    self._give_back_run("the database went away before its run was on record")
                    rest = self._state.backoff.after(error)
                    self._drop_connection()
                    is_woken = self._rest(rest)
                if is_woken:
                    self.selector.expect_work()
        except BaseException as error:  # a thread that dies without a word would leave a process that only looks alive
            self._state.recycle_after(error)
        finally:
            self._leave()

    def _rest(self, seconds: float) -> bool:
        """Rest until there is work, or it is time to look for some; return whether somebody woke this thread."""
        self._is_resting = True
        self.buffer.begin_rest(self.slot)
        try:
            return self.selector.poller.wait_watching(self._watch, seconds, self._is_to_rest_no_more)
        finally:
            self._close_if_idle(time.monotonic())
            self.buffer.end_rest(self.slot)
            self._is_resting = False

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Lend a connection for a question of the watch: a thread that gets no answer does not rest."""
        self._is_resting, self._went_on_at = False, time.monotonic()
        with self._state.connections.lent():
            yield
        self._is_resting = True

    def _is_to_rest_no_more(self) -> bool:
        if self.is_stopping or self._is_connection_idle(time.monotonic()):
            return True
        if self._places is None:
            return False
        if self.process.spare(self, time.monotonic() - SPARE_SECONDS):
            self._stopping.set()
        return self._stopping.is_set()

    def _step_in_turn(self) -> float:
        """Make a step in a place of the process, where databases share them."""
        assert self._places is not None
        self._is_resting = True
        if self.idle_since == float("inf"):
            self.idle_since = time.monotonic()
        if not self._places.take(self):
            return -1.0
        self._is_resting = False
        try:
            return self.step()
        finally:
            self._places.leave(self)

    def step(self) -> float:
        """Claim if it is time to, run what there is, settle; return how long to rest, in seconds."""
        if not self._has_failed:
            self._went_on_at = time.monotonic()
        self._prepare()
        wanted = self.buffer.take_claim()
        found = wanted > 0 and self._claim(wanted)
        ran = self._run_jobs()
        if self.slot.abandoned:
            return -1.0
        if (found or ran or not wanted) and self.buffer.is_crowded:
            return CROWDED_REST
        if found or ran:
            return 0.0
        if not wanted:
            return FIRST_REST  # another thread is claiming
        rest, until = self.selector.rest(self.poll_interval, self._watch), self.buffer.until_a_list_starts()
        return rest if until is None else min(rest, max(until, FIRST_REST))

    def _claim(self, wanted: int, only: str | None = None) -> bool:
        """Claim for all threads of the buffer from the first queue that has something for us; return whether one had.

        Args:
            only: claim from this queue and no other.
        """
        jobs: list[ClaimedJob] = []
        self._claimed_at = time.monotonic()
        wanted = min(wanted, self._state.jobs_left())
        if self._places is not None:  # jobs that are not quick would wait here for a place
            wanted = min(wanted, max(self.buffer.ahead, 1 + self._places.free()))
        self._state.begin_claim(self)
        try:
            with self._state.connections.lent():
                queue = only or self.selector.next_queue()
                while queue is not None and not jobs and not self.is_stopping:
                    ageing = self.handlers.job_options(None, queue).ageing
                    jobs = claim(queue, wanted, self._state.id, self._state.pollers.marks, ageing)
                    if not jobs:
                        queue = None if only else self.selector.queue_after(queue)
        finally:
            self.buffer.load(jobs, is_dry=len(jobs) < wanted)
            self._state.end_claim(self, found=bool(jobs))
        if jobs:
            self._watchdog.wake()
            self._state.backoff.over()
            self.selector.poller.found_work()
            self._watch.found_work()
            if not self.buffer.is_quick:  # who runs quick jobs looks again soon
                self._state.pollers.wake()
        return bool(jobs)

    def run_one(self, queue: str) -> str | None:
        """Claim, run and settle one job of a queue in the calling thread; return its id, or None when none is ready.

        For scripts, as an inline worker: the thread itself is never started.
        """
        self._settler = self.process.inline_settler
        self.process.adopt(self, shares=False)
        self._cleanup.begin()
        threads_before = handler_threads.set(self.process.handler_threads)
        try:
            self._prepare()
            with self._state.claiming():
                jobs = claim(queue, 1, self._state.id, ageing=self.handlers.job_options(None, queue).ageing)
                self.buffer.load(jobs, is_dry=True)
            self._run_jobs()
            self._settler.release(self.buffer)  # the process stops
            self._settler.settle_rest(self.buffer)
            while self.buffer.is_busy and not (self.slot.abandoned or self._state.is_lost or self._state.is_stopping):
                time.sleep(INLINE_SECONDS)  # the watchdog settles some of it
                self._settler.settle_rest(self.buffer)
            return jobs[0].id if jobs else None
        finally:
            handler_threads.reset(threads_before)
            self.buffer.leave(self.slot)
            self._watchdog.wake()
            self._cleanup.close()
            discard_pooled()  # our own settings of a session are not for others
            self.process.remove(self)

    def _run_jobs(self) -> bool:
        """Run jobs until there is none left, or it is time to claim; return whether there was one."""
        ran, before, keeps_queries = False, time.monotonic(), settings.DEBUG
        while not self.is_stopping and self._has_place() and (run := self.buffer.next_run(self.slot)) is not None:
            ran = True
            if self.buffer.wants_thread:
                self.selector.poller.hand_work()
            if self._places is not None:
                self._see_to_others()
            self._watchdog.wake()
            if keeps_queries:  # nine thousand for each connection: forget them as Django does for each request
                reset_queries()
            is_gathered = self._run_one(run)
            if self.slot.abandoned:
                return True
            self._went_on_at = now = time.monotonic()
            if run.handler is not None:
                self.buffer.took_list(now - before, len(run.jobs))
            elif not is_gathered:
                self.buffer.took(now - before)
            handover = self._handover(run.job) if self.buffer.is_spent else None
            try:
                before = self._settler.settle(self.buffer, now, handover)
            finally:
                if handover is not None:
                    self._take_over(handover, run.job)
            if self.buffer.is_crowded or (
                self.buffer.is_low and (self._places is None or not self._places.is_contended)
            ):
                break
        self._settler.settle(self.buffer, before)
        if ran:
            self._cleanup.after_batch()
            self._close_if_idle(before)
        return ran

    def _has_place(self) -> bool:
        """Whether the thread may run jobs: where databases share places it needs one, and keeps it for no settle alone."""
        return self._places is None or (self.buffer.has_work and self._places.keep(self))

    def _see_to_others(self) -> None:
        """See that a thread is left to claim for the other places."""
        self.idle_since = float("inf")
        if self.process.needs_thread(self) and not self.is_stopping:
            with suppress(RuntimeError):  # the system gives no further thread, and the process ends
                Worker(self.selector.names, self.handlers, self.poll_interval, process=self.process).start()

    def _handover(self, job: ClaimedJob) -> Handover | None:
        """Say that the settle may claim what it frees: where this thread has no other job to run than the one that has ended."""
        if not self.is_alive():
            return None
        self._state.begin_claim(self)
        if job.is_limited:
            self.buffer.claims_in_settle()
        return Handover(self._goes_on_with, max(1, min(self.buffer.ahead, self._state.jobs_left())))

    def _take_over(self, handover: Handover, job: ClaimedJob) -> None:
        if handover.jobs or job.is_limited:
            self.buffer.load(handover.jobs, is_dry=True)
        self._state.end_claim(self, found=True)

    def _goes_on_with(self, queue: str) -> bool:
        """Whether to run what a settle frees in a queue: not for long, for another queue or place in it may have its turn."""
        return (
            not self.is_stopping
            and time.monotonic() - self._claimed_at < PATIENCE_SECONDS
            and self.selector.looks_at(queue)
            and self.handlers.job_options(None, queue).ageing is None
            and not self._state.pollers.marks.of(queue).pace.is_behind
        )

    def _run_one(self, run: Run) -> bool:
        """Run a job, or a list of jobs; return True when it was only put on a list."""
        job = run.job
        handler = run.handler or self.handlers.find(job.job_type)
        if handler is None:
            self._keep(self._without_handler(job))
            if self._connection is None:
                self._prepare()
            return False
        if self._has_lent:
            run.lent = self._state.connections.lent
            self._close_if_cut()
        is_alone = handler.isolation == "process" or job.crash_count > 0
        if handler.bulk is not None and run.handler is None:
            if not is_alone and self.is_alive():
                self._gather(handler)
                return True
            lent, run = run.lent, BulkRun([job], handler)
            run.lent, self.slot.run = lent, run
        if handler.is_async and not is_alone and self.is_alive():  # an inline worker waits for its job
            self.process.coroutines.hand_over(run, handler, self.handlers)
            self.buffer.hand_over(self.slot)
            return False
        if is_alone:
            wait_to_start(job)
            self._keep(self._isolation.run_alone(run, handler, self.handlers))
        elif run.handler is not None:
            self._run_list(run, run.handler)
        else:
            if job.timeout_seconds is not None:
                run.deadline = run.started + job.timeout_seconds
            run.sessions = self._sessions
            self._keep(execute(run, handler, self.handlers, self._state.id))
        self._cleanup.after_job()
        if run.was_interrupted:  # perhaps in the middle of a query, whose answer the next one would take for its own
            self._sessions.discard_all()
            self._connection = None
        elif not self._sessions.are_clean:
            self._sessions.clean()
            self._connection = self._prepared = None
        connection = self._connection
        raw = None if connection is None else connection.connection
        if connection is None or raw is not self._prepared or (raw is not None and is_stuck(connection)):
            self._prepare()
        return False

    def _gather(self, handler: Handler) -> None:
        """Put the current job on a list, and claim further ones for it while the queue has some."""
        chosen = self.buffer.gather(self.slot, handler)
        while chosen is not None and (wanted := self.buffer.take_claim_for(chosen)):
            self._claim(wanted, chosen.queue)
            self.buffer.fill(chosen)

    def _run_list(self, run: Run, handler: Handler) -> None:
        run.deadline = run.start_clock()
        run.sessions = self._sessions
        outcomes = execute_all(run, handler, self.handlers, self._state.id)
        if self.buffer.finish_list(self.slot, outcomes):
            for outcome in outcomes:
                self._state.count(outcome)

    def _without_handler(self, job: ClaimedJob) -> Outcome:
        problem = unknown_job_type(job.job_type, self.handlers.job_types())
        try:
            with self._state.connections.lent() if self._has_lent else nullcontext():
                return unknown_type.without_handler(job, problem)
        except Error:  # nobody says how long it has waited: it waits on
            self._drop_connection()
            return unknown_type.leave(job, problem)

    def _keep(self, outcome: Outcome) -> None:
        if self.buffer.finish(self.slot, outcome):
            self._state.count(outcome)

    def _prepare(self) -> None:
        """Set up the connection when it is a new one; check it when it is an old one.

        It is kept from job to job: a new one for each would cost three quarters of the throughput. Where the process has
        connections for its claims and settles, this one is not opened before a handler uses it.
        """
        connection = usable_connection()
        if self._has_lent:
            self._sessions.watch(connection)
        elif connection.connection is None or connection.connection is not self._prepared:
            leases.prepare_connection(self._state.id)
            self._watch.begin(dialect())
        self._prepared = connection.connection
        self._connection = connection

    def _is_connection_idle(self, now: float) -> bool:
        """Whether no handler has used the thread's connection for long."""
        connection = self._connection
        if not self._has_lent or self._prepared is None or connection is None:
            return False
        return now - last_used(connection) > IDLE_SECONDS

    def _close_if_idle(self, now: float) -> None:
        if self._is_connection_idle(now):
            self._close()

    def _close_if_cut(self) -> None:
        """Close the thread's connection if the server has ended it since it was used: nobody but the handler would notice."""
        connection = self._connection
        if self._prepared is None or connection is None or time.monotonic() - last_used(connection) < FRESH_SECONDS:
            return
        if is_cut(connection):
            self._close()

    def _close(self) -> None:
        assert self._connection is not None
        discard(self._connection)
        self._prepared = None

    def _drop_connection(self) -> None:
        discard_connection()
        self._connection = self._prepared = None
        self._watch.end()

    def _give_back_run(self, why: str) -> None:
        """Release the jobs of a run in the middle of which this thread broke: nobody else would end it."""
        if (run := self.slot.run) is not None and not self.slot.abandoned:
            released = [Outcome.released(job, why, NOT_STARTED_SECONDS) for job in run.jobs]
            self.buffer.finish_list(self.slot, released)

    def _leave(self) -> None:
        """Hand back what has not started, settle what has, and close what is this thread's own."""
        is_last = self.buffer.leave(self.slot)
        if not self.slot.abandoned:
            self._give_back_run("its worker thread broke")
            self._settler.settle(self.buffer, time.monotonic())
            if is_last or self._state.is_stopping:
                try:
                    self._settler.release(self.buffer)
                except Error as error:  # the end of the process hands them back
                    if not is_away(error):
                        raise
            self._settler.settle_rest(self.buffer)
        self._cleanup.close()
        discard_all()  # a pool would give our own settings of a session to others
        self.process.remove(self)


def start_workers(process: Process, *, handlers: Registry = registry, poll_interval: float | None = None) -> None:
    """Start a process with its worker threads: as many as it is to have, on its queues.

    Raises a database error when the process cannot be registered; nothing has been started then.
    """
    process.start()
    for _ in range(process.threads if process.places is None else 1):
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
