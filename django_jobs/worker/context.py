"""The context that a handler with `takes_context=True` gets: its job, its progress, and the request to stop."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any

from django_jobs.db.connections import in_transaction
from django_jobs.db.dialects import dialect
from django_jobs.exceptions import Cancelled, InvalidJob, LeaseLost
from django_jobs.lifecycle import progress
from django_jobs.payloads import decode

from .run import Run

SECONDS_BETWEEN_LOOKS = 1.0


class Context:
    """The running job, seen from its handler."""

    def __init__(self, run: Run, worker_id: str) -> None:
        self._run = run
        self._looked = time.monotonic()
        self.worker_id = worker_id

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._run.job.id

    @property
    def job_type(self) -> str:
        """The job's registered type."""
        return self._run.job.job_type

    @property
    def queue(self) -> str:
        """The queue it was claimed from."""
        return self._run.job.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._run.job.attempt

    @property
    def fence(self) -> int:
        """The fence of this run: grows with every change of hands, so it can guard writes to other systems."""
        return self._run.job.fence

    @property
    def created_at(self) -> datetime:
        """When the job was submitted, by the database's clock (aware, UTC)."""
        return dialect().to_datetime(self._run.job.created_at)

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew."""
        return self._run.job.payload

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata given at submit."""
        return decode(self._run.job.metadata_text)  # type: ignore[no-any-return]

    def take_over_deadline(self) -> float | None:
        """Return when the run times out (`time.monotonic()`, None: never), and leave it to the handler to end by then.

        For handlers that wait for a process of their own, which must be ended before the run is.
        """
        deadline, self._run.deadline = self._run.deadline, None
        return deadline

    def dependencies(self) -> list[progress.Dependency]:
        """Return the jobs this one depended on, with `id, job_type, status, result`."""
        return progress.dependencies(self.job_id)

    def report_progress(self, fraction: float, message: str = "") -> None:
        """Show how far the job is, 0.0 to 1.0; raise LeaseLost when the job was taken away from this worker.

        In an atomic handler the job's row must not be touched before the end, so another thread writes it a moment later; on
        SQLite, whose one writer is the handler itself, it is not written at all.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not math.isfinite(fraction):
            raise InvalidJob(f"progress {fraction!r}: give a number from 0.0 to 1.0")
        self._refuse_lost()
        within = min(1.0, max(0.0, float(fraction)))
        if in_transaction():
            self._run.progress = (within, message)
        elif not progress.report_progress(self.job_id, self.fence, within, message):
            self._run.lost = True
            self._refuse_lost()

    def check_cancelled(self) -> None:
        """Raise Cancelled when somebody asked to stop this job, LeaseLost when it was taken away; looks at most once a second."""
        self._refuse_lost()
        now = time.monotonic()
        if not self._run.cancel_requested and now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            standing = progress.standing(self.job_id, self.fence)
            self._run.lost = not standing.is_held
            self._run.cancel_requested = standing.cancel_requested
            self._refuse_lost()
        if self._run.cancel_requested:
            raise Cancelled

    def _refuse_lost(self) -> None:
        if self._run.lost:
            raise LeaseLost(f"job {self.job_id} was taken away from this worker")
