"""The watchdog: one thread per process that does for jobs what their own threads, busy in a handler, cannot do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_connection
from django_jobs.exceptions import TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle import progress
from django_jobs.lifecycle.outcome import Outcome

from .buffer import JobBuffer, Slot
from .bulk import judge_all
from .coroutines import Coroutines
from .loop import Loop
from .run import Run
from .settler import Settler
from .state import WorkerState

logger = logging.getLogger("django_jobs")
TICK_SECONDS = 0.05


class Watchdog(Loop):
    """Releases what waits behind a slow job, settles what has ended, writes progress, ends runs that pass their timeout.

    Args:
        buffers: returns the buffers of the process.
    """

    foreseen = Exception  # without its watchdog a process neither times out nor releases

    def __init__(
        self, state: WorkerState, settler: Settler, coroutines: Coroutines, buffers: Callable[[], list[JobBuffer]]
    ) -> None:
        super().__init__("watchdog", state)
        self._settler = settler
        self._coroutines = coroutines
        self._buffers = buffers

    def step(self) -> float | None:
        """Look at every slot and the coroutines; rest until `wake` when none is busy."""
        # First of all a pause: who runs short jobs wakes us for each, and is to be looked at 20 times a second.
        self._stopped.wait(TICK_SECONDS)
        busy = [self.look_after(buffer) for buffer in self._buffers()]
        busy.append(self.look_after_coroutines())
        return 0.0 if any(busy) else None

    def look_after(self, buffer: JobBuffer) -> bool:
        """Release what waits behind slow jobs, settle what has ended; return whether there is anything to look after."""
        if buffer.count_blocked():
            self._state.pollers.wake()
        for slot in buffer.slots():
            if slot.run is not None:
                self._look_after_run(buffer, slot, slot.run)
        if buffer.is_stuck:
            self._settler.release(buffer)
        self._settler.try_to_settle(buffer)
        return buffer.is_busy

    def _look_after_run(self, buffer: JobBuffer, slot: Slot, run: Run) -> None:
        for member in (run, *run.members):
            if member.progress is not None:
                with self._state.connections.lent():
                    _write_progress(member)
        if run.deadline is not None and time.monotonic() > run.deadline:
            self._end(buffer, slot, run, run.deadline)

    def _end(self, buffer: JobBuffer, slot: Slot, run: Run, deadline: float) -> None:
        """Interrupt a run that passed its timeout; after the grace settle it without its thread, and recycle the process."""
        if not run.timed_out:
            run.timed_out = True
            run.interrupt(TimedOut)
            return
        grace = get_settings().TIMEOUT_GRACE_SECONDS
        handler = run.handler or slot.handlers.find(run.job.job_type)
        if handler is None or time.monotonic() <= deadline + grace:
            return
        outcomes = _timed_out(run, handler, slot.handlers)
        if not buffer.give_up_run(slot, *outcomes):
            return
        for outcome in outcomes:
            self._state.count(outcome)
        logger.error(
            "job %s (%s) ignored its timeout for %s seconds; its thread is given up and the process will be recycled",
            run.job.id,
            run.job.job_type,
            grace,
        )
        self._state.recycle()

    def look_after_coroutines(self) -> bool:
        """Give up coroutines that their loop does not end, and recycle the process; return whether any has a timeout."""
        grace = get_settings().TIMEOUT_GRACE_SECONDS
        for entry in self._coroutines.overdue(grace):
            outcomes = _timed_out(entry.run, entry.handler, entry.handlers)
            if not self._coroutines.give_up_run(entry.run, outcomes):
                continue
            for outcome in outcomes:
                self._state.count(outcome)
            logger.error(
                "job %s (%s) still runs %s seconds after its timeout: it, or another one, blocks the event loop; the process"
                " will be recycled",
                entry.run.job.id,
                entry.run.job.job_type,
                grace,
            )
            self._state.recycle()
        if self._coroutines.lacks_its_settler:
            self._settler.settle(self._coroutines, time.monotonic())
            return True
        return self._coroutines.has_timeouts


def _write_progress(run: Run) -> None:
    report, run.progress = run.progress, None
    # The one writer of SQLite is the handler, which keeps its progress here because it is in a transaction.
    if report is None or jobs_connection().vendor == "sqlite":
        return
    if not progress.report_progress(run.job.id, run.job.fence, *report):
        run.lost = True


def _timed_out(run: Run, handler: Handler, handlers: Registry) -> list[Outcome]:
    run.timed_out = True
    return judge_all(run, handler, handlers, TimedOut(run.late))
