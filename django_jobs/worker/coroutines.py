"""Coroutine handlers: one event loop per process runs them side by side; a thread beside it settles them in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.db import Error, connections, reset_queries

from django_jobs import signals
from django_jobs.conf import get_settings
from django_jobs.db.connections import work_on
from django_jobs.db.sessions import HandlerSessions
from django_jobs.exceptions import LeaseLost, TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import still_held
from django_jobs.propagation import traced, traced_list

from . import capture
from .bulk import announce_list, failures, returned, turn_away, without_lost
from .executor import announce_start, arguments_of, as_completed, failure, not_started, readable
from .loop import Loop
from .run import BulkRun, Run
from .settler import Settler
from .state import WorkerState
from .steps import Steps

SETTLE_SECONDS = 0.01
CANCEL_SECONDS = 0.1
LAUNCH_SECONDS = 0.001
OFFER_SECONDS = 0.002  # until a place that is free is offered to a thread that waits for one
OFFERS = 32  # of all places: one part in so many is offered at once, for each offer is a change of threads


@dataclass(slots=True, eq=False)
class Entry:
    """A run that is not settled yet; of a list of jobs, the same for each of them."""

    run: Run
    handler: Handler
    handlers: Registry
    fences: dict[str, int]
    has_timeout: bool
    task: asyncio.Task[None] | None = None
    has_ended: bool = False
    may_be_cancelled: bool = True

    def cancel(self) -> None:
        """Cancel the coroutine, once: nothing may break into what the handler does at its end, or into what follows that."""
        if self.may_be_cancelled and self.task is not None:
            self.may_be_cancelled = False
            self.task.cancel()


class Coroutines(Loop):
    """The coroutine jobs of a process. As a thread it is their settler; that and the event loop start with the first job."""

    def __init__(self, state: WorkerState, settler: Settler) -> None:
        super().__init__("coroutines", state)
        self._settler = settler
        self._lock = threading.Lock()
        self._has_place = threading.Condition(self._lock)
        self._places = 0  # that are free
        self._waiting = 0  # threads, for a place
        self._is_offering = False  # the loop is about to tell them of those that are free
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_broken = False
        self._runs: dict[str, Entry] = {}
        self._starting: list[Entry] = []
        self._is_launching = False  # the loop looks by itself for what is handed over
        self._outcomes: list[Outcome] = []
        self._taken_at = 0.0
        self._sessions = HandlerSessions()
        self._thread_of_database_work = ThreadSensitiveContext()

    @property
    def running(self) -> int:
        """How many coroutine jobs are not settled yet."""
        return len(self._runs)

    def held(self) -> dict[str, int]:
        """Return the fence of each job held here."""
        with self._lock:
            return {job_id: entry.fences[job_id] for job_id, entry in self._runs.items()}

    # Called by worker threads and the watchdog.

    def hand_over(self, run: Run, handler: Handler, handlers: Registry) -> None:
        """Hand a run to the event loop; waits while as many run as the process may run at once."""
        loop = self._loop or self._start_loop()
        fences = {job.id: job.fence for job in run.jobs}
        entry = Entry(run, handler, handlers, fences, run.timeout_seconds is not None)
        with self._has_place:
            self._waiting += 1
            while not self._places:
                self._has_place.wait()
            self._waiting -= 1
            self._places -= 1
            self._runs.update(dict.fromkeys(fences, entry))
            is_broken, is_awake = self._is_broken, self._is_launching or bool(self._starting)
            if not is_broken:
                self._starting.append(entry)
        if is_broken:  # the process is about to end, and does not wait for a run that nothing starts
            error = "the event loop of its worker process had broken"
            self.give_up_run(run, [Outcome.released(job, error) for job in run.jobs])
        elif not is_awake:  # waking the loop is a system call
            with suppress(RuntimeError):  # it broke and was closed since, and this run was given up with the others
                loop.call_soon_threadsafe(self._launch)

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._places = get_settings().ASYNC_CONCURRENCY
                if not self.ident:
                    self.start()
                threading.Thread(target=self._run_loop, args=(loop,), name="event loop", daemon=True).start()
                self._loop = loop  # last: nothing may be handed to a loop whose threads could not start
            return self._loop

    def cancel(self, requested: dict[str, int]) -> None:
        """Cancel the coroutines of jobs, given as id and fence, that somebody asked to cancel."""
        with self._lock:
            chosen = {self._runs[job_id] for job_id in requested if job_id in self._runs}
        for entry in chosen:
            is_whole = entry.run.ask_to_stop(requested)
            if is_whole and entry.may_be_cancelled and self._loop is not None:
                self._loop.call_soon_threadsafe(entry.cancel)

    @property
    def has_timeouts(self) -> bool:
        """Whether any run that goes on has a timeout."""
        with self._lock:
            return any(entry.has_timeout and not entry.has_ended for entry in self._runs.values())

    @property
    def lacks_its_settler(self) -> bool:
        """Whether the thread that settles broke, while something is to be settled."""
        return self.ident is not None and not self.is_alive() and bool(self._runs)

    def overdue(self, grace: float) -> list[Entry]:
        """Return the runs that go on `grace` seconds past their timeout: the loop is blocked, or they ignore their end."""
        before = time.monotonic() - grace
        with self._lock:
            return [
                entry
                for entry in set(self._runs.values())
                if entry.run.deadline is not None and entry.run.deadline < before and not entry.has_ended
            ]

    def give_up_run(self, run: Run, outcomes: Iterable[Outcome]) -> bool:
        """Take a run away from the loop, and settle it with these outcomes; return False when it has ended meanwhile."""
        with self._lock:
            entry = self._runs.get(run.job.id)
            if entry is None or entry.run is not run or entry.has_ended or run.abandoned:
                return False
            run.abandoned = entry.has_ended = True
            self._outcomes += outcomes
        self.wake()
        return True

    def give_up_all(self) -> None:
        """Take every unfinished run away from the loop: the process ends, and hands their jobs back."""
        with self._lock:
            for entry in self._runs.values():
                entry.run.abandoned = True

    def stop(self) -> None:
        """End both threads once what has ended is settled; wait for neither."""
        super().stop()
        if self._loop is not None:
            with suppress(RuntimeError):  # it broke, and is closed
                self._loop.call_soon_threadsafe(self._loop.stop)

    # On the event loop.

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            work_on(self._state.database)
            self._use_own_thread()
            asyncio.set_event_loop(loop)
            loop.run_until_complete(sync_to_async(self._watch_sessions)())
            loop.run_forever()
        except BaseException as error:  # a task that a handler has started may raise SystemExit, which ends the loop
            self._give_up_broken()
            self._state.recycle_after(error)
        finally:
            _end_tasks(loop)
            self._end_own_thread()
            loop.close()

    def _give_up_broken(self) -> None:
        """Settle what the loop ran as crashed: one of these jobs may have broken it, so each runs alone next time."""
        with self._lock:
            self._is_broken = True
            entries = [entry for entry in set(self._runs.values()) if not entry.has_ended]
        for entry in entries:
            run, options = entry.run, entry.handlers.job_options(entry.handler, entry.run.job.queue)
            error = "the event loop of its worker process broke"
            self.give_up_run(run, [Outcome.crashed(job, error, options, seconds=run.seconds) for job in run.jobs])

    def _use_own_thread(self) -> None:
        """Let `sync_to_async` use one thread of this loop, and not one for all: another database's server may be silent."""
        SyncToAsync.thread_sensitive_context.set(self._thread_of_database_work)

    def _end_own_thread(self) -> None:
        """Let that thread close its connections and end, once it has done what it is at; it is not waited for."""
        executor = SyncToAsync.context_to_thread_executor.pop(self._thread_of_database_work, None)
        if executor is not None:
            executor.submit(connections.close_all)
            executor.shutdown(wait=False)

    def _watch_sessions(self) -> None:
        """Watch the sessions of the thread that all coroutines share for their database work: one has them all the time."""
        self._sessions.begin()
        self._sessions.lend()

    def _launch(self) -> None:
        """Start the coroutines that were handed over since; look again in a moment if there were any, for each wake is two calls
        of the system."""
        assert self._loop is not None
        self._use_own_thread()  # in this callback's context, which each task gets a copy of
        with self._lock:
            entries, self._starting = self._starting, []
            self._is_launching = bool(entries)
            for entry in entries:
                entry.task = self._loop.create_task(self._execute(entry))
        if entries:
            self._loop.call_later(LAUNCH_SECONDS, self._launch)

    async def _execute(self, entry: Entry) -> None:
        run, handler, handlers = entry.run, entry.handler, entry.handlers
        turned_away: list[Outcome] = []  # of jobs that were taken off a list
        outcomes: list[Outcome] | None = None
        try:
            if settings.DEBUG:
                await sync_to_async(reset_queries)()
            if isinstance(run, BulkRun):
                turned_away = await sync_to_async(turn_away)(run, handler, handlers)
                if not run.jobs:
                    return
                await sync_to_async(announce_list)(run, self._state.id)
            else:
                if signals.job_started.receivers:  # most sites have none, and a coroutine is to wait for no thread then
                    await sync_to_async(announce_start)(run, self._state.id)
                if run.job.rated and (outcome := await self._not_started(run.job)) is not None:
                    outcomes = [outcome]
                    return
            result = await self._call(run, handler)
            entry.may_be_cancelled = False
            if run.steps is not None:
                await _flush(run.steps)
                run.steps.end()
            outcomes = (
                returned(run, handler, handlers, result)
                if isinstance(run, BulkRun)
                else [as_completed(run.job, handler, result)]
            )
        except BaseException as error:
            entry.may_be_cancelled = False
            cause = readable(error)
            if run.steps is not None:
                await _flush(run.steps)
                cause = run.steps.error_after(cause)
            if isinstance(run, BulkRun) and isinstance(cause, LeaseLost) and not (run.lost or run.abandoned):
                outcomes = without_lost(run, await sync_to_async(still_held)(run.jobs))
            elif isinstance(run, BulkRun):  # in this thread: who clears the frame of a coroutine that waits ends it
                outcomes = failures(run, handler, handlers, cause)
            else:
                outcomes = [failure(run, handler, handlers, cause)]
            if issubclass(type(error), Error):
                await sync_to_async(_drop_broken_connections)()
        finally:
            if outcomes is None:
                outcomes = [Outcome.lost(job) for job in run.jobs]
            self._done(run, [*turned_away, *outcomes])
            if self._sessions.changed:  # in that thread's queue before whatever a later coroutine wants of the database
                await sync_to_async(self._sessions.clean)()

    async def _not_started(self, job: ClaimedJob) -> Outcome | None:
        await asyncio.sleep(job.not_before - time.monotonic())
        return await sync_to_async(not_started)(job)

    async def _call(self, run: Run, handler: Handler) -> Any:
        run.deadline = run.start_clock()
        arguments, keywords = arguments_of(run, handler, self._state.id)
        function = traced(run.job, handler) if run.handler is None else traced_list(run.jobs, handler)
        if handler.log_level is not None or capture.site_level is not None:
            capture.begin(run, handler)  # in the context of its task
        timeout = run.timeout_seconds
        if timeout is None:
            return await function(*arguments, **keywords)
        try:
            async with asyncio.timeout(timeout) as limit:
                return await function(*arguments, **keywords)
        except TimeoutError:
            if limit.expired():
                run.timed_out = True
                raise TimedOut(f"timed out after {timeout} seconds") from None
            raise

    def _done(self, run: Run, outcomes: list[Outcome]) -> None:
        """Keep the outcomes of a run for the settler."""
        with self._lock:
            entry = self._runs.get(run.job.id)
            is_current = entry is not None and entry.run is run
            if entry is not None and is_current:
                entry.has_ended = True
            for outcome in () if run.abandoned else outcomes:  # whoever gave it up has settled it, or hands it back
                if outcome.needs_settle:
                    self._outcomes.append(outcome)
                elif is_current:
                    self._runs.pop(outcome.job.id, None)
            self._places += 1
            if self._waiting:
                self._offer()
        for outcome in () if run.abandoned else outcomes:
            self._state.count(outcome)
        self.wake()

    def _offer(self) -> None:
        """Let the threads that wait for a place go on, once there are enough or some time has passed; the lock is held."""
        if self._places * OFFERS >= get_settings().ASYNC_CONCURRENCY:
            self._has_place.notify(self._places)
        elif not self._is_offering:
            assert self._loop is not None
            self._is_offering = True
            self._loop.call_later(OFFER_SECONDS, self._offer_what_is_free)

    def _offer_what_is_free(self) -> None:
        with self._has_place:
            self._is_offering = False
            self._has_place.notify(self._places)

    # In the settler's thread.

    @property
    def is_over(self) -> bool:
        """Whether the loop was stopped and everything is settled."""
        return super().is_over and not self._outcomes

    def step(self) -> None:
        """Settle what has gathered, at most a hundred times a second."""
        time.sleep(SETTLE_SECONDS)
        self._settler.settle(self, time.monotonic())

    def take_outcomes(self, now: float) -> list[Outcome] | None:
        """Take what has ended; None without any, or when the last ones have only just been taken."""
        if not self._outcomes or now - self._taken_at < SETTLE_SECONDS:
            return None
        self._taken_at = now
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def settled(self, outcomes: Iterable[Outcome], postponed: list[Outcome]) -> None:
        """Let go of the jobs whose settle has been answered; keep the others' outcomes for the next step."""
        kept = {outcome.job.id for outcome in postponed}
        with self._lock:
            for outcome in outcomes:
                entry = self._runs.get(outcome.job.id)
                # With another fence it is back already.
                is_ours = entry is not None and entry.fences.get(outcome.job.id) == outcome.job.fence
                if is_ours and outcome.job.id not in kept:
                    del self._runs[outcome.job.id]
            self._outcomes += postponed  # the wait for their locks is pause enough
        if postponed:
            self.wake()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs, and let it end, at most for `CANCEL_SECONDS`."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    until = time.monotonic() + CANCEL_SECONDS
    while tasks and (left := until - time.monotonic()) > 0:
        # Who stops the process may stop the loop here, and a cancelled task break it: the others are to end all the same.
        with suppress(RuntimeError, SystemExit, KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks, timeout=left))
            return


async def _flush(steps: Steps) -> None:
    """Write the cursors of loops."""
    if steps.is_dirty:
        await sync_to_async(steps.flush)()


def _drop_broken_connections() -> None:
    """Close what broke under a handler, in the thread that all coroutines share for their database work."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
