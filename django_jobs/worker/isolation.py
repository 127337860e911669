"""Isolation: run a job alone in a subprocess that can be killed. The child settles its own job; we watch over it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from django_jobs.conf import get_settings
from django_jobs.exceptions import Cancelled, TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.outcome import Completed, Outcome
from django_jobs.models import AttemptOutcome, JobStatus

from .executor import crashed, execute, failure
from .run import Run
from .subprocesses import Child

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")
NOT_STARTED_SECONDS = 5.0
PATIENCE_SECONDS = 1.0


class Isolation:
    """A worker thread's way to the warm subprocesses of its process; one that was taken is not shared until given back."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.is_busy = False

    def run_alone(self, run: Run, handler: Handler, handlers: Registry) -> Completed | Outcome | None:
        """Run a job in the subprocess; None when the child has settled it.

        A job whose handler the child does not know (one that a script registered) runs in this process.
        """
        self.is_busy = True
        try:
            return self._run_alone(run, handler, handlers)
        finally:
            self.is_busy = False

    def _run_alone(self, run: Run, handler: Handler, handlers: Registry) -> Completed | Outcome | None:
        # A suspect waits for a subprocess that others use, because a start takes longer than most jobs.
        child = self._process.subprocesses.take(0.0 if handler.isolation == "process" else PATIENCE_SECONDS)
        if child is None:
            return Outcome(
                job=run.job,
                status=JobStatus.SCHEDULED,
                attempt=AttemptOutcome.RELEASED,
                delay=NOT_STARTED_SECONDS,
                error="no subprocess could be started to run it in",
            )
        try:
            return self._watch_over(child, run, handler, handlers)
        finally:
            self._process.subprocesses.give_back(child)

    def _watch_over(self, child: Child, run: Run, handler: Handler, handlers: Registry) -> Completed | Outcome | None:
        run.started = time.monotonic()
        run.deadline = None if run.job.timeout_seconds is None else run.started + run.job.timeout_seconds
        child.send({"id": run.job.id, "fence": run.job.fence, "process_id": self._process.id})
        answer = child.answer(lambda: self._wants_end(run))
        if answer == "settled":
            return None
        if answer == "unknown":
            return execute(run, handler, handlers, self._process.id)
        how = child.end(get_settings().TIMEOUT_GRACE_SECONDS if answer == "ended" else 0.0)
        if run.timed_out:
            return failure(
                run,
                handler,
                handlers,
                TimedOut(f"timed out after {run.job.timeout_seconds} seconds; its process was ended"),
            )
        if run.cancel_requested:
            return failure(run, handler, handlers, Cancelled())
        if run.lost or self._process.is_lost:
            return None
        return crashed(run, handler, handlers, how)

    def _wants_end(self, run: Run) -> bool:
        if run.deadline is not None and time.monotonic() > run.deadline:
            run.timed_out = True
        return run.timed_out or run.cancel_requested or run.lost or run.abandoned or self._process.is_lost
