"""The tray of the worker threads that run the same queues: what one of them claimed for all, and what is to be settled.

One thread at a time claims for all of them, before the tray is empty, and one at a time settles what all of them have done. So a
job starts on whichever thread is free first, and the number of statements goes by the jobs and not by the threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable

from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome, Results, runs_of

from .run import Run

MAX_BATCH = 512
AHEAD_SECONDS = 0.05
GATHER_SECONDS = 0.01
PATIENCE_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 0.5
SLOW_SECONDS = 1.0
ASIDE_SECONDS = 1.0


class Seat:
    """A worker thread's place at a tray. Only the tray changes it, under its lock."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.abandoned = False


class Duty:
    """What one thread does for all. Another one may take it as well once that takes long: a stuck statement holds up nobody."""

    def __init__(self) -> None:
        self._taken_at: dict[int, float] = {}

    def take(self, now: float, *, is_urgent: bool = False) -> bool:
        """Take the duty when it is free, or stuck in the hands of those who have it, or if need be whoever has it."""
        if self._taken_at and not is_urgent and now - max(self._taken_at.values()) < PATIENCE_SECONDS:
            return False
        self._taken_at[threading.get_ident()] = now
        return True

    def give_back(self) -> None:
        """Have it no longer; for the thread that took it."""
        self._taken_at.pop(threading.get_ident(), None)


class Tray:
    """Whether a claimed job starts or is handed back is decided here, under one lock, and nowhere else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats: set[Seat] = set()
        self._waiting: deque[tuple[ClaimedJob, float]] = deque()  # with the time of its claim
        self._handed_back: list[ClaimedJob] = []
        self._completed: list[Completed] = []
        self._outcomes: list[Outcome] = []
        self._aside: Results = ([], [])
        self._held: dict[str, int] = {}
        self._claiming, self._settling = Duty(), Duty()
        self._is_dry = True
        self._ahead = 0
        self._seconds_per_job = AHEAD_SECONDS / 4
        self._last_taken = self._first_result = self._aside_until = 0.0

    def join(self, seat: Seat) -> None:
        """Give a thread its place."""
        with self._lock:
            self._seats.add(seat)

    def leave(self, seat: Seat) -> bool:
        """Take a thread's place away; return whether it was the last one."""
        with self._lock:
            self._seats.discard(seat)
            return not self._seats

    # Claiming.

    def take_claim(self) -> int:
        """Take the duty to claim and return how many jobs; 0 when there are enough, or somebody claims already.

        Enough for what all threads ran lately in 50 ms, so that none waits long here, and one for each thread that is free.
        """
        with self._lock:
            self._ahead = min(MAX_BATCH, int(AHEAD_SECONDS / self._seconds_per_job * len(self._seats)))
            if (self._waiting and not self.is_low) or not self._claiming.take(time.monotonic()):
                return 0
            return max(1, self._ahead, min(MAX_BATCH, sum(seat.run is None for seat in self._seats)))

    @property
    def is_low(self) -> bool:
        """Whether to claim before the tray is empty, as long as the queue had as many as asked for."""
        return not self._is_dry and len(self._waiting) * 2 <= self._ahead

    def load(self, jobs: Iterable[ClaimedJob], *, is_dry: bool) -> None:
        """Put a claimed batch on the tray, and end the duty to claim; `is_dry` says that the queue had fewer than asked for."""
        with self._lock:
            self._claiming.give_back()
            self._is_dry = is_dry
            now = time.monotonic()
            if not self._waiting:
                self._last_taken = now
            for job in jobs:
                self._waiting.append((job, now))
                self._held[job.id] = job.fence

    # Running.

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits here for a thread."""
        return bool(self._waiting)

    @property
    def is_stuck(self) -> bool:
        """Whether jobs wait here for long, or while every thread is busy with a slow one, or are still to be released."""
        now = time.monotonic()
        with self._lock:
            return bool(self._handed_back) or (
                bool(self._waiting)
                and (now - self._last_taken > PATIENCE_SECONDS or now - self._waiting[0][1] > LONGEST_WAIT_SECONDS)
            )

    def next_run(self, seat: Seat) -> Run | None:
        """Start the next job; None when there is none."""
        with self._lock:
            if not self._waiting or seat.abandoned:
                return None
            seat.run = run = Run(self._waiting.popleft()[0])
            self._last_taken = run.started
            return run

    def finish(self, seat: Seat, result: Completed | Outcome | None) -> bool:
        """Keep the result of the run that just ended; return False when the keeper gave the run up meanwhile."""
        with self._lock:
            run, seat.run = seat.run, None
            if run is None or run.abandoned:
                return False
            if result is None:
                self._let_go(run.job.id, run.job.fence)
            else:
                self._keep(result)
            return True

    def _keep(self, result: Completed | Outcome) -> None:
        if not (self._completed or self._outcomes):
            self._first_result = time.monotonic()
        if isinstance(result, Completed):
            self._completed.append(result)
        else:
            self._outcomes.append(result)

    def took(self, seconds: float) -> None:
        """Learn how long a job takes; one that is slow does not make us forget that the others are fast."""
        self._seconds_per_job += (min(seconds, SLOW_SECONDS) - self._seconds_per_job) / 16

    def hand_over(self, seat: Seat) -> None:
        """Forget the current run: somebody else (the event loop) finishes it."""
        with self._lock:
            if seat.run is not None:
                self._let_go(seat.run.job.id, seat.run.job.fence)
            seat.run = None

    def give_up_run(self, seat: Seat, outcome: Outcome | None = None) -> bool:
        """Take the current run, of which `outcome` comes, away from its thread, which will never be trusted again.

        Returns False when there is none any more.
        """
        with self._lock:
            run = seat.run
            if run is None or run.abandoned or (outcome is not None and outcome.job != run.job):
                return False
            run.abandoned = True
            seat.abandoned = True
            self._seats.discard(seat)
            if outcome is not None:
                self._keep(outcome)
            return True

    def take_unstarted(self) -> list[ClaimedJob]:
        """Take back the jobs that have not started; they will not start here, and are held until `released`."""
        with self._lock:
            self._handed_back += [job for job, _ in self._waiting]
            self._waiting.clear()
            return list(self._handed_back)

    def released(self, jobs: Iterable[ClaimedJob]) -> None:
        """Let go of jobs whose release has been answered."""
        with self._lock:
            for job in jobs:
                self._let_go(job.id, job.fence)
            self._handed_back = [job for job in self._handed_back if self._held.get(job.id) == job.fence]

    # Settling.

    def take_results(self, now: float) -> Results | None:
        """Take the duty to settle with the results; None when there is no need yet, or somebody settles already.

        While jobs wait here, results are gathered: up to a batch, or for 10 ms. Their jobs are held until `settled`.
        """
        number = len(self._completed) + len(self._outcomes)
        is_time = number >= MAX_BATCH or not self._waiting or now - self._first_result > GATHER_SECONDS
        if not number or not is_time:
            return None
        with self._lock:
            if not (self._completed or self._outcomes) or not self._settling.take(now):
                return None
            return self._take_all()

    def take_aside(self) -> Results | None:
        """Take the results that were put aside a second ago; None without any."""
        now = time.monotonic()
        with self._lock:
            if not any(self._aside) or now < self._aside_until or not self._settling.take(now):
                return None
            aside, self._aside = self._aside, ([], [])
            return aside

    def take_rest(self) -> Results | None:
        """Take whatever is left to settle, whoever else is settling; None when nothing is."""
        with self._lock:
            completed, outcomes = self._take_all()
            aside, self._aside = self._aside, ([], [])
            completed += aside[0]
            outcomes += aside[1]
            if not (completed or outcomes):
                return None
            self._settling.take(time.monotonic(), is_urgent=True)
            return completed, outcomes

    def _take_all(self) -> Results:
        completed, self._completed = self._completed, []
        outcomes, self._outcomes = self._outcomes, []
        return completed, outcomes

    def settled(
        self,
        completed: Iterable[Completed],
        outcomes: Iterable[Outcome],
        *,
        aside: Results,
    ) -> None:
        """End the duty to settle, and let go of the jobs whose settle has been answered; keep the others aside."""
        locked = runs_of(*aside)
        with self._lock:
            self._settling.give_back()
            for job_id, fence in runs_of(completed, outcomes) - locked:
                self._let_go(job_id, fence)
            if locked:
                if not any(self._aside):
                    self._aside_until = time.monotonic() + ASIDE_SECONDS
                self._aside[0].extend(aside[0])
                self._aside[1].extend(aside[1])

    def _let_go(self, job_id: str, fence: int) -> None:
        if self._held.get(job_id) == fence:  # one that was claimed anew meanwhile has another fence
            del self._held[job_id]

    def held(self) -> dict[str, int]:
        """Return the fence of each job that is held here."""
        with self._lock:
            return dict(self._held)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that the keeper might have to look after."""
        return bool(self._held)

    @property
    def is_used(self) -> bool:
        """Whether somebody sits here, or something is held."""
        return bool(self._seats or self._held)
