"""Coroutine handlers: one event loop per process runs them side by side; a thread beside it settles them in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import Error, connections

from django_jobs.conf import get_settings
from django_jobs.exceptions import Cancelled, TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome, runs_of
from django_jobs.lifecycle.trace import traced

from .context import Context
from .executor import as_completed, failure
from .run import Run
from .settler import settle_results

if TYPE_CHECKING:
    from .process import Process

SETTLE_SECONDS = 0.01


@dataclass(slots=True)
class Entry:
    """A run that is not settled yet."""

    run: Run
    handler: Handler
    handlers: Registry
    task: asyncio.Task[None] | None = None
    has_ended: bool = False


class Coroutines:
    """Starts its two threads with the first coroutine job."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seats: threading.Semaphore | None = None
        self._runs: dict[str, Entry] = {}
        self._starting: list[Entry] = []
        self._completed: list[Completed] = []
        self._outcomes: list[Outcome] = []
        self._work = threading.Event()
        self._stopped = False
        self._settler: threading.Thread | None = None

    @property
    def running(self) -> int:
        """How many coroutine jobs are not settled yet."""
        return len(self._runs)

    def held(self) -> dict[str, int]:
        """Return the fence of each job held here."""
        with self._lock:
            return {job_id: entry.run.job.fence for job_id, entry in self._runs.items()}

    def start(self, run: Run, handler: Handler, handlers: Registry) -> None:
        """Hand a run to the loop; waits while as many run as the process may run at once."""
        loop = self._ensure_loop()
        assert self._seats is not None
        self._seats.acquire()
        with self._lock:
            self._runs[run.job.id] = entry = Entry(run, handler, handlers)
            is_awake = bool(self._starting)
            self._starting.append(entry)
        if not is_awake:  # waking the loop is a system call
            loop.call_soon_threadsafe(self._launch)

    def cancel(self, requested: dict[str, int]) -> None:
        """Cancel the coroutines of jobs, given as id and fence, that somebody asked to cancel."""
        with self._lock:
            chosen = [one for one in self._runs.values() if requested.get(one.run.job.id) == one.run.job.fence]
        for entry in chosen:
            entry.run.cancel_requested = True
            if entry.task is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(entry.task.cancel)

    def give_up(self) -> list[ClaimedJob]:
        """Take every unfinished run away and return its job."""
        with self._lock:
            runs = [entry.run for entry in self._runs.values() if not entry.run.abandoned]
            for run in runs:
                run.abandoned = True
            return [run.job for run in runs]

    @property
    def has_deadlines(self) -> bool:
        """Whether any run has a timeout."""
        with self._lock:
            return any(entry.run.deadline is not None for entry in self._runs.values())

    def overdue(self, grace: float) -> list[Entry]:
        """Return the runs that go on `grace` seconds past their timeout: the loop is blocked, or they ignore their end."""
        before = time.monotonic() - grace
        with self._lock:
            return [
                entry
                for entry in self._runs.values()
                if entry.run.deadline is not None and entry.run.deadline < before and not entry.has_ended
            ]

    def give_up_run(self, run: Run, outcome: Outcome) -> bool:
        """Take a run away from the loop, and settle it with this outcome; return False when it has ended meanwhile."""
        with self._lock:
            entry = self._runs.get(run.job.id)
            if entry is None or entry.run is not run or entry.has_ended or run.abandoned:
                return False
            run.abandoned = entry.has_ended = True
            self._outcomes.append(outcome)
        self._work.set()
        return True

    def stop(self) -> None:
        """Settle what is done and end both threads."""
        self._stopped = True
        self._work.set()
        if self._settler is not None:
            self._settler.join(5)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._seats = threading.Semaphore(get_settings().ASYNC_CONCURRENCY)
                threading.Thread(target=self._run_loop, name="coroutines", daemon=True).start()
                self._settler = threading.Thread(target=self._settle_loop, name="coroutine settler", daemon=True)
                self._settler.start()
            return self._loop

    def _run_loop(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    def _launch(self) -> None:
        """Start the coroutines that were handed over since; this runs on the loop."""
        assert self._loop is not None
        with self._lock:
            entries, self._starting = self._starting, []
            for entry in entries:
                entry.task = self._loop.create_task(self._execute(entry.run, entry.handler, entry.handlers))

    async def _execute(self, run: Run, handler: Handler, handlers: Registry) -> None:
        result: Completed | Outcome | None = None
        try:
            result = as_completed(run.job, await self._call(run, handler))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                error = Cancelled() if run.cancel_requested else error
            result = failure(run, handler, handlers, error)
            if isinstance(error, Error):
                await sync_to_async(_drop_broken_connections)()
        finally:
            self._done(run, result)

    async def _call(self, run: Run, handler: Handler) -> Any:
        job = run.job
        run.started = time.monotonic()
        if job.timeout_seconds is not None:
            run.deadline = run.started + job.timeout_seconds
            self._process.keeper.watch()
        arguments = (Context(run, self._process.id), job.payload) if handler.takes_context else (job.payload,)
        function = traced(job, handler)
        if job.timeout_seconds is None:
            return await function(*arguments)
        try:
            async with asyncio.timeout(job.timeout_seconds) as limit:
                return await function(*arguments)
        except TimeoutError:
            if limit.expired():
                run.timed_out = True
                raise TimedOut(f"timed out after {job.timeout_seconds} seconds") from None
            raise

    def _done(self, run: Run, result: Completed | Outcome | None) -> None:
        """Keep a result for the settler; this runs on the loop."""
        with self._lock:
            entry = self._runs.get(run.job.id)
            if entry is not None and entry.run is run:
                entry.has_ended = True
            if run.abandoned:  # whoever gave it up has settled it, or hands it back
                result = None
            elif isinstance(result, Completed):
                self._completed.append(result)
            elif result is not None:
                self._outcomes.append(result)
            elif entry is not None and entry.run is run:
                del self._runs[run.job.id]
        assert self._seats is not None
        self._seats.release()
        if not run.abandoned:
            self._process.count(result)
        self._work.set()

    def _settle_loop(self) -> None:
        """Settle what has gathered, at most a hundred times a second; this is the settler's thread."""
        try:
            while True:
                self._work.wait()
                time.sleep(SETTLE_SECONDS)
                self._work.clear()
                with self._lock:
                    completed, self._completed = self._completed, []
                    outcomes, self._outcomes = self._outcomes, []
                aside = settle_results(self._process, completed, outcomes)
                locked = runs_of(*aside)
                with self._lock:
                    for job_id, fence in runs_of(completed, outcomes) - locked:
                        entry = self._runs.get(job_id)
                        if entry is not None and entry.run.job.fence == fence:  # it may be back already
                            del self._runs[job_id]
                    if locked:  # again with the next ones; the wait for their locks is pause enough
                        self._completed += aside[0]
                        self._outcomes += aside[1]
                        self._work.set()
                    if self._stopped and not self._completed and not self._outcomes:
                        return
        finally:
            connections.close_all()


def _drop_broken_connections() -> None:
    """Close what broke under a handler, in the thread that all coroutines share for their database work."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
