"""The keeper: one thread per process that looks after seats whose own thread is busy in a handler."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from django.db import connections

from django_jobs.conf import get_settings
from django_jobs.exceptions import TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle import processes, progress
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.transactions import jobs_alias

from .executor import judge
from .run import Run
from .settler import release_tray, try_to_settle
from .tray import Tray

if TYPE_CHECKING:
    from .process import Process
    from .thread import Worker

logger = logging.getLogger("django_jobs")
TICK_SECONDS = 0.05


class Keeper(threading.Thread):
    """Releases what waits behind a slow job, settles what is done, writes progress, ends runs that pass their timeout."""

    def __init__(self, process: Process) -> None:
        super().__init__(name=f"keeper {process.id}", daemon=True)
        self._process = process
        self._watching = threading.Event()
        self._stopped = threading.Event()

    def watch(self) -> None:
        """Look after the seats from now on; costs nothing when that is so already."""
        if not self._watching.is_set():
            self._watching.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._watching.set()

    def run(self) -> None:
        """Look at every seat and the coroutines, 20 times a second while any is busy, never while none is."""
        try:
            while not self._stopped.is_set():
                self._watching.wait()
                self._stopped.wait(TICK_SECONDS)
                self._watching.clear()
                try:
                    busy = [self.look_after(worker) for worker in self._process.workers()]
                    busy += [self.look_after_tray(tray) for tray in self._process.trays()]
                    busy.append(self.look_after_coroutines())
                except Exception as error:  # without its keeper a process neither times out nor releases
                    self._stopped.wait(self._process.trouble.after(error))
                    processes.discard_connection()
                    busy = [True]
                if any(busy):
                    self._watching.set()
        except Exception as error:
            self._process.is_broken(error)
        finally:
            connections.close_all()

    def look_after(self, worker: Worker) -> bool:
        """Do for one run what its thread cannot do now; return whether there is one."""
        run = worker.seat.run
        if run is None:
            return False
        if run.progress is not None:
            self._write_progress(run)
        if run.deadline is not None and time.monotonic() > run.deadline:
            self._end(worker, run)
        return True

    def look_after_tray(self, tray: Tray) -> bool:
        """Release what waits behind slow jobs, settle what is done; return whether there is anything to look after."""
        if tray.is_stuck:
            release_tray(tray)
        try_to_settle(self._process, tray)
        return tray.is_busy

    def _write_progress(self, run: Run) -> None:
        if connections[jobs_alias()].vendor == "sqlite":
            run.progress = None
            return
        told, run.progress = run.progress, None
        if told is not None and not progress.report_progress(run.job.id, run.job.fence, *told):
            run.lost = True

    def _end(self, worker: Worker, run: Run) -> None:
        """Interrupt a run that passed its timeout; after the grace settle it without its thread, and recycle the process."""
        if worker.is_isolated:
            return  # the thread itself watches its subprocess
        if not run.timed_out:
            run.timed_out = True
            run.interrupt(TimedOut)
            return
        grace = get_settings().TIMEOUT_GRACE_SECONDS
        if run.deadline is None or time.monotonic() <= run.deadline + grace:
            return
        handler = worker.handlers.find(run.job.job_type)
        if handler is None:
            return
        outcome = _timed_out(run, handler, worker.handlers)
        if not worker.tray.give_up_run(worker.seat, outcome):
            return
        self._process.count(outcome)
        logger.error(
            "job %s (%s) ignored its timeout for %s seconds; its thread is given up and the process will be recycled",
            run.job.id,
            run.job.job_type,
            grace,
        )
        self._process.recycle()

    def look_after_coroutines(self) -> bool:
        """Give up coroutines that their loop does not end, and recycle the process; return whether any has a timeout."""
        grace = get_settings().TIMEOUT_GRACE_SECONDS
        for entry in self._process.coroutines.overdue(grace):
            outcome = _timed_out(entry.run, entry.handler, entry.handlers)
            if not self._process.coroutines.give_up_run(entry.run, outcome):
                continue
            self._process.count(outcome)
            logger.error(
                "job %s (%s) still runs %s seconds after its timeout: it, or another one, blocks the event loop; the process"
                " will be recycled",
                entry.run.job.id,
                entry.run.job.job_type,
                grace,
            )
            self._process.recycle()
        return self._process.coroutines.has_deadlines


def _timed_out(run: Run, handler: Handler, handlers: Registry) -> Outcome:
    run.timed_out = True
    return judge(run, handler, handlers, TimedOut(f"timed out after {run.job.timeout_seconds} seconds"))
