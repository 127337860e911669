"""Isolation: run a job alone in a child that can be killed. The child settles its own job; we watch over it."""

from __future__ import annotations

import time

from django.db import Error

from django_jobs.conf import get_settings
from django_jobs.exceptions import Cancelled, TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.active_limits import limit_of_queue_object
from django_jobs.lifecycle.claim import ClaimedJob, held_claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.models.attempt import AttemptOutcome
from django_jobs.worker.bulk import execute_all
from django_jobs.worker.executor import failure
from django_jobs.worker.run import Run
from django_jobs.worker.state import WorkerState

from .pool import ChildPool, IsolatedChild

NOT_STARTED_SECONDS = 5.0
PATIENCE_SECONDS = 1.0


class Isolation:
    """A worker thread's way to the warm children of its process."""

    def __init__(self, state: WorkerState, pool: ChildPool) -> None:
        self._state = state
        self._pool = pool

    def run_alone(self, run: Run, handler: Handler, handlers: Registry) -> Outcome:
        """Run a job in a child; nothing is left to settle when the child has settled it.

        A job whose handler the child does not know (one that a script registered) runs in this process.
        """
        child = self._pool.take(0.0 if handler.isolation == "process" else PATIENCE_SECONDS)
        if child is None:
            return Outcome.released(run.job, "no child process could be started to run it in", NOT_STARTED_SECONDS)
        try:
            return self._watch_over(child, run, handler, handlers)
        finally:
            self._pool.give_back(child)

    def _watch_over(self, child: IsolatedChild, run: Run, handler: Handler, handlers: Registry) -> Outcome:
        deadline = run.start_clock()  # ours to keep: the watchdog could interrupt this thread only
        job, state = run.job, self._state
        order = {"job_id": job.id, "fence": job.fence, "process_id": state.id, "database": state.database}
        if (limit := limit_of_queue_object(job.queue)) is not None:  # the child has no JobQueue that would tell it
            order["queue_limit"] = (job.queue, limit.told)
        child.order(order)
        answer = child.answer(lambda: self._wants_end(run, deadline))
        word, _, attempt = answer.partition(" ")
        if word == "settled":
            return Outcome.settled(run.job, AttemptOutcome(attempt) if attempt else None)
        if answer == "unknown":
            run.deadline = deadline
            return execute_all(run, handler, handlers, self._state.id)[0]
        child.end(get_settings().TIMEOUT_GRACE_SECONDS if answer == "ended" else 0.0)
        if run.timed_out:
            late = TimedOut(f"timed out after {run.job.timeout_seconds} seconds; its process was ended")
            return failure(run, handler, handlers, late)
        if run.cancel_requested:
            return failure(run, handler, handlers, Cancelled())
        if run.lost or self._state.is_lost:
            return Outcome.lost(run.job)
        job = self._as_it_is_now(run)
        how = f"its process {child.how_it_ended} (crash {job.crash_count + 1})"
        return Outcome.crashed(job, how, handlers.job_options(handler, job.queue), seconds=run.seconds)

    def _as_it_is_now(self, run: Run) -> ClaimedJob:
        """Return a run's job with the crashes that its row counts: a step that the child recorded has made them nought."""
        job = run.job
        try:
            with run.lent():
                return held_claim(job.id, job.fence, self._state.id) or job
        except Error:  # it is counted as it was; whoever settles it waits for the database
            return job

    def _wants_end(self, run: Run, deadline: float | None) -> bool:
        if deadline is not None and time.monotonic() > deadline:
            run.timed_out = True
        return run.timed_out or run.cancel_requested or run.lost or run.abandoned or self._state.is_lost
