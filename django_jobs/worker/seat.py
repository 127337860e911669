"""A worker thread's seat: the jobs it claimed, the one it runs, its unsettled results. Shared with the keeper."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable

from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome

from .run import Run


class Seat:
    """Whether a claimed job starts or is handed back is decided here, under one lock, and nowhere else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[ClaimedJob] = deque()
        self._completed: list[Completed] = []
        self._outcomes: list[Outcome] = []
        self._held: dict[str, int] = {}
        self.run: Run | None = None
        self.abandoned = False

    def load(self, jobs: Iterable[ClaimedJob]) -> None:
        """Take a claimed batch."""
        with self._lock:
            self._waiting.extend(jobs)
            self._held.update((job.id, job.fence) for job in self._waiting)

    def next_run(self) -> Run | None:
        """Start the next job of the batch; None when there is none left."""
        with self._lock:
            self.run = Run(self._waiting.popleft()) if self._waiting else None
            return self.run

    def finish(self, result: Completed | Outcome | None) -> bool:
        """Keep the result of the run that just ended; return False when the keeper gave the run up meanwhile."""
        with self._lock:
            run, self.run = self.run, None
            if run is None or run.abandoned:
                return False
            if isinstance(result, Completed):
                self._completed.append(result)
            elif result is not None:
                self._outcomes.append(result)
            else:
                self._held.pop(run.job.id, None)
            return True

    def hand_over(self) -> None:
        """Forget the current run: somebody else (the event loop) finishes it."""
        with self._lock:
            if self.run is not None:
                self._held.pop(self.run.job.id, None)
            self.run = None

    def take_unstarted(self) -> list[ClaimedJob]:
        """Take back the jobs that have not started; they will not start here."""
        with self._lock:
            jobs = list(self._waiting)
            self._waiting.clear()
            for job in jobs:
                self._held.pop(job.id, None)
            return jobs

    def take_results(self) -> tuple[list[Completed], list[Outcome]]:
        """Take the results that are to be settled now; the seat holds their jobs until `settled`."""
        with self._lock:
            completed, self._completed = self._completed, []
            outcomes, self._outcomes = self._outcomes, []
            return completed, outcomes

    def settled(self, completed: Iterable[Completed], outcomes: Iterable[Outcome]) -> None:
        """Hold jobs no longer whose settle has been answered; one that was claimed anew meanwhile has another fence."""
        runs = {(done.id, done.fence) for done in completed} | {(one.job.id, one.job.fence) for one in outcomes}
        with self._lock:
            for job_id, fence in runs:
                if self._held.get(job_id) == fence:
                    del self._held[job_id]

    def give_up_run(self) -> Run | None:
        """Take the current run away from its thread, which will never be trusted again."""
        with self._lock:
            run = self.run
            if run is None or run.abandoned:
                return None
            run.abandoned = True
            self.abandoned = True
            return run

    def held(self) -> dict[str, int]:
        """Return the fence of each job that this seat holds."""
        with self._lock:
            return dict(self._held)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that the keeper might have to look after."""
        return self.run is not None or bool(self._waiting) or bool(self._completed) or bool(self._outcomes)

    def slow_for(self) -> float:
        """Return for how long, in seconds, the current run has kept the others waiting; 0 without one."""
        run = self.run
        return 0.0 if run is None else time.monotonic() - run.started
