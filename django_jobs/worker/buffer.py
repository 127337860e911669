"""The buffer of the worker threads that run the same queues: the jobs that one of them claimed for all, and their outcomes.

One thread at a time claims for all of them, before the buffer is empty, and one at a time settles what all of them have done. So
a job starts on whichever thread is free first, and the number of statements depends on the jobs and not on the threads: with a
batch of its own for each of 32 threads and jobs of 10 ms, a batch was five jobs. No thread does nothing else: each looks after a
job whether it is time to claim or to settle, so there is no further thread that can be stuck or has to be stopped.

Jobs of a bulk handler are gathered on lists, which start as one run. No thread waits for a list to fill: others run meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.claim import ClaimedJob
from django_jobs.lifecycle.outcome import Outcome

from .run import BulkRun, Run

MAX_BATCH = 512  # jobs of one claim or settle
AHEAD_SECONDS = 0.05  # a claim takes what the threads run in that time, and at least
MOST_AHEAD_SECONDS = 0.1  # up to this, twice what a claim and a settle take: on a far or a busy server
GATHER_SECONDS = 0.01  # how long outcomes wait for others
PATIENCE_SECONDS = 0.1  # how long a role may take, and jobs may wait while none starts
LONGEST_WAIT_SECONDS = 0.5  # how long a job may wait here at all
SLOW_SECONDS = 1.0  # a slower job counts as one of that long
QUICK_SECONDS = 0.0002  # jobs that take less, on average, wait for nothing: a query takes longer
QUICK_THREADS = 2  # the best number for them: while one waits for the database, the other runs jobs; more take turns
BLOCKED_SECONDS = 0.01  # a run that takes longer than threads wait for the interpreter is no quick one
MOST_SETTLED = 2 * MAX_BATCH  # at once; a list of a bulk handler may be longer
POSTPONE_SECONDS = 1.0  # until postponed outcomes are settled again


class Slot:
    """A worker thread's place at a buffer, and the run it is busy with. Only the buffer changes it, under its lock."""

    def __init__(self, handlers: Registry) -> None:
        self.handlers = handlers
        self.run: Run | None = None
        self.abandoned = False


@dataclass(slots=True, eq=False)
class JobList:
    """Jobs of one queue that wait to be given to their bulk handler together, in the order in which they were claimed."""

    handler: Handler
    queue: str
    closes_at: float
    jobs: list[ClaimedJob] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many further jobs it takes."""
        return (self.handler.bulk or 1) - len(self.jobs)

    def takes(self, job: ClaimedJob) -> bool:
        """Whether a job belongs here; one that may have killed its process runs alone."""
        return job.job_type == self.handler.job_type and job.queue == self.queue and not job.crash_count


class Role:
    """Claimer or settler: what one thread does for all. When it takes long, another thread may take the role as well, so that a
    statement that is stuck does not stop the others. Long is what is more than twice the usual: on a busy machine each is."""

    def __init__(self) -> None:
        self._taken_at: dict[int, float] = {}
        self.usual_seconds = 0.0

    @property
    def patience(self) -> float:
        """How long it may be taken before another thread may take it, too."""
        return max(PATIENCE_SECONDS, min(LONGEST_WAIT_SECONDS, 2 * self.usual_seconds))

    def take(self, now: float, *, is_urgent: bool = False) -> bool:
        """Take the role for this thread; return False when another thread took it a short time ago, unless urgent."""
        if not is_urgent and self.is_taken(now):
            return False
        self._taken_at[threading.get_ident()] = now
        return True

    def is_taken(self, now: float) -> bool:
        """Whether a thread has taken it a short time ago."""
        return bool(self._taken_at) and now - max(self._taken_at.values()) < self.patience

    def leave(self) -> None:
        """Give the role up; called by the thread that took it."""
        since = self._taken_at.pop(threading.get_ident(), None)
        if since is not None:
            self.usual_seconds += (min(SLOW_SECONDS, time.monotonic() - since) - self.usual_seconds) / 8


class JobBuffer:
    """Decides, under one lock and nowhere else, whether a claimed job starts or is handed back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: set[Slot] = set()
        self._resting: set[Slot] = set()
        self._waiting: deque[tuple[ClaimedJob, float]] = deque()  # with the time of its claim
        self._lists: list[JobList] = []
        self._handed_back: list[ClaimedJob] = []
        self._outcomes: list[Outcome] = []
        self._postponed: list[Outcome] = []
        self._held: dict[str, int] = {}
        self._claimer, self._settler = Role(), Role()
        self._is_dry = True
        self._ahead = 0
        self._seconds_per_job = self._steady_seconds = AHEAD_SECONDS / 4
        self._blocked = self._active = 0
        self._last_taken = self._first_outcome = self._postponed_until = 0.0

    def join(self, slot: Slot) -> None:
        """Add a thread's slot."""
        with self._lock:
            self._slots.add(slot)
            self._count_active()

    def leave(self, slot: Slot) -> bool:
        """Remove a thread's slot; return whether it was the last one."""
        with self._lock:
            self._forget(slot)
            return not self._slots

    def _forget(self, slot: Slot) -> None:
        self._slots.discard(slot)
        self._resting.discard(slot)
        self._count_active()

    def slots(self) -> list[Slot]:
        """Return the slots of the threads that are to be trusted."""
        with self._lock:
            return list(self._slots)

    # How many threads run jobs: all of them, or two while jobs are so quick that more would only take turns.

    def begin_rest(self, slot: Slot) -> None:
        """Note that a thread has nothing to do here."""
        with self._lock:
            if slot in self._slots:
                self._resting.add(slot)
                self._count_active()

    def end_rest(self, slot: Slot) -> None:
        """Note that a thread looks for something to do."""
        with self._lock:
            self._resting.discard(slot)
            self._count_active()

    @property
    def is_quick(self) -> bool:
        """Whether the jobs of late took so little time, on average, that they wait for nothing."""
        return self._steady_seconds < QUICK_SECONDS

    @property
    def is_crowded(self) -> bool:
        """Whether a thread that is here had better rest; costs no lock, for it is asked after each job."""
        return self._steady_seconds < QUICK_SECONDS and self._active > QUICK_THREADS

    @property
    def wants_thread(self) -> bool:
        """Whether a thread that rests had better run the jobs that wait here, too."""
        return bool(self._waiting) and (self._steady_seconds >= QUICK_SECONDS or self._active < QUICK_THREADS)

    def _count_active(self) -> None:
        """Count the threads that run jobs here; the number is asked for after each job."""
        self._active = len(self._slots) - len(self._resting) - self._blocked

    def count_blocked(self) -> bool:
        """Leave threads out of account that a slow job keeps, from now on; return whether quick jobs want another one instead."""
        since = time.monotonic() - BLOCKED_SECONDS
        with self._lock:
            self._blocked = sum(slot.run is not None and slot.run.started < since for slot in self._slots)
            self._count_active()
            return self.is_quick and self.wants_thread

    # Claiming.

    def take_claim(self) -> int:
        """Take the claimer's role and return how many jobs to claim; 0 when there are enough, or another thread claims.

        Enough for what all threads ran lately in 50 ms, so that none waits long here, or in twice the time that a claim and a
        settle take, so that these are not most of the work; and one for each thread that is free.
        """
        with self._lock:
            overhead = self._claimer.usual_seconds + self._settler.usual_seconds
            seconds = max(AHEAD_SECONDS, min(MOST_AHEAD_SECONDS, 2 * overhead))
            self._ahead = min(MAX_BATCH, int(seconds / self._seconds_per_job * len(self._slots)))
            if (self._waiting and not self.is_low) or not self._claimer.take(time.monotonic()):
                return 0
            return max(1, self._ahead, min(MAX_BATCH, sum(slot.run is None for slot in self._slots)))

    def claims_in_settle(self) -> None:
        """Take the claimer's role, which `load` ends: this thread is about to settle, and to claim what waits for a slot in that.

        Others would look in vain at the same time.
        """
        with self._lock:
            self._claimer.take(time.monotonic(), is_urgent=True)

    @property
    def ahead(self) -> int:
        """How many jobs a claim is to take, as of the last one."""
        return self._ahead

    @property
    def is_low(self) -> bool:
        """Whether to claim before the buffer is empty, as long as the queue had as many as asked for."""
        return not self._is_dry and len(self._waiting) * 2 <= self._ahead

    def load(self, jobs: Iterable[ClaimedJob], *, is_dry: bool) -> None:
        """Add a claimed batch and end the claimer's role; `is_dry` says that the queue had fewer than asked for."""
        with self._lock:
            self._claimer.leave()
            self._is_dry = is_dry
            now = time.monotonic()
            if not self._waiting:
                self._last_taken = now
            for job in jobs:
                self._waiting.append((job, now))
                self._held[job.id] = job.fence

    @property
    def is_spent(self) -> bool:
        """Whether the queue had no more than what has run here."""
        return self._is_dry and not self._waiting

    # Lists for bulk handlers.

    def gather(self, slot: Slot, handler: Handler) -> JobList | None:
        """Put the job of the current run on a list instead, with those that wait here for the same handler."""
        with self._lock:
            run, slot.run = slot.run, None
            if run is None or run.abandoned:
                return None
            chosen = next(
                (one for one in self._lists if one.handler is handler and one.takes(run.job) and one.room), None
            )
            if chosen is None:
                chosen = JobList(handler, run.job.queue, run.started + handler.bulk_wait)
                self._lists.append(chosen)
            self._fill(chosen, [(run.job, run.started), *self._waiting])
            return chosen

    def _fill(self, chosen: JobList, waiting: Iterable[tuple[ClaimedJob, float]]) -> None:
        self._waiting = deque()
        for entry in waiting:
            if chosen.room and chosen.takes(entry[0]):
                chosen.jobs.append(entry[0])
            else:
                self._waiting.append(entry)
        if not chosen.room:
            chosen.closes_at = min(chosen.closes_at, time.monotonic())

    def take_claim_for(self, chosen: JobList) -> int:
        """Take the claimer's role and return how many jobs to claim for a list; 0 when it may start as it is.

        As many again as it has: in a queue with few jobs of its type, most of what is claimed would be others, and wait here.
        """
        with self._lock:
            if chosen not in self._lists or self._is_dry or not chosen.room or len(self._waiting) * 2 > self._ahead:
                return 0
            if not self._claimer.take(time.monotonic()):
                return 0
            return min(chosen.room, len(chosen.jobs), MAX_BATCH)

    def fill(self, chosen: JobList) -> None:
        """Put on a list what waits here for its handler, unless it has started."""
        with self._lock:
            if chosen in self._lists:
                self._fill(chosen, self._waiting)

    def until_a_list_starts(self) -> float | None:
        """Return the seconds until the next list is to start, however few jobs it has; None without lists."""
        with self._lock:
            return min((one.closes_at - time.monotonic() for one in self._lists), default=None)

    def _start_list(self) -> BulkRun | None:
        """Return the run of the first list that is full, or is to start and for which nobody claims further jobs just now."""
        now = time.monotonic()
        is_short = not self._is_dry and self._claimer.is_taken(now)
        for chosen in self._lists:
            if not chosen.room or (chosen.closes_at <= now and not is_short):
                self._lists.remove(chosen)
                self._last_taken = now
                return BulkRun(chosen.jobs, chosen.handler)
        return None

    # Running.

    @property
    def is_stuck(self) -> bool:
        """Whether jobs wait here for long, or while every thread is busy with a slow job, or are still to be released."""
        now = time.monotonic()
        with self._lock:
            return (
                bool(self._handed_back)
                or self._has_overdue_list(now)
                or (
                    bool(self._waiting)
                    and (
                        now - self._last_taken > self._claimer.patience
                        or now - self._waiting[0][1] > LONGEST_WAIT_SECONDS
                    )
                )
            )

    def _has_overdue_list(self, now: float) -> bool:
        """Whether a list was to start and no thread is free; a free one may be claiming further jobs for it."""
        is_overdue = any(now - one.closes_at > PATIENCE_SECONDS for one in self._lists)
        return is_overdue and all(slot.run is not None for slot in self._slots)

    @property
    def has_work(self) -> bool:
        """Whether there is a job to be run, or a list that will be."""
        return bool(self._waiting or self._lists)

    def next_run(self, slot: Slot) -> Run | None:
        """Start the next job; None when there is none."""
        with self._lock:
            if self._lists and not slot.abandoned and (bulk_run := self._start_list()) is not None:
                slot.run = bulk_run
                return bulk_run
            if not self._waiting or slot.abandoned:
                return None
            slot.run = run = Run(self._waiting.popleft()[0])
            self._last_taken = run.started
            return run

    def finish(self, slot: Slot, outcome: Outcome) -> bool:
        """Keep the outcome of the run that just ended; return False when the watchdog gave the run up meanwhile."""
        with self._lock:
            run, slot.run = slot.run, None
            if run is None or run.abandoned:
                return False
            if outcome.needs_settle:
                self._keep(outcome)
            else:
                self._let_go(run.job)
            return True

    def finish_list(self, slot: Slot, outcomes: Iterable[Outcome]) -> bool:
        """Keep the outcomes of the run of a list; return False when the watchdog gave it up meanwhile."""
        with self._lock:
            run, slot.run = slot.run, None
            if run is None or run.abandoned:
                return False
            for outcome in outcomes:
                if outcome.needs_settle:
                    self._keep(outcome)
                else:
                    self._let_go(outcome.job)
            return True

    def _keep(self, outcome: Outcome) -> None:
        if not self._outcomes:
            self._first_outcome = time.monotonic()
        self._outcomes.append(outcome)

    def took_list(self, seconds: float, number: int) -> None:
        """Note how long a list of so many jobs took: what that many single ones would have told."""
        if not number:  # all were turned away
            return
        each = min(seconds / number, SLOW_SECONDS)
        self._seconds_per_job = each + (self._seconds_per_job - each) * (15 / 16) ** number

    def took(self, seconds: float) -> None:
        """Note how long a job took, for the size of the next claims; a slow job has a bounded weight.

        Leave out the time that a settle takes: small batches would make a slow database slower.
        """
        seconds = min(seconds, SLOW_SECONDS)
        self._seconds_per_job += (seconds - self._seconds_per_job) / 16
        self._steady_seconds += (seconds - self._steady_seconds) / 64

    def hand_over(self, slot: Slot) -> None:
        """Forget the current run: the event loop finishes it."""
        with self._lock:
            for job in slot.run.jobs if slot.run is not None else ():
                self._let_go(job)
            slot.run = None

    def give_up_run(self, slot: Slot, *outcomes: Outcome) -> bool:
        """Take the current run, with the outcomes of its jobs if any, away from its thread, which gets no further job.

        Returns False when it has ended meanwhile.
        """
        with self._lock:
            run = slot.run
            if run is None or run.abandoned or (outcomes and outcomes[0].job != run.job):
                return False
            run.abandoned = True
            slot.abandoned = True
            self._forget(slot)
            for outcome in outcomes:
                self._keep(outcome)
            return True

    def take_unstarted(self) -> list[ClaimedJob]:
        """Take out the jobs that have not started; they will not start here, and are held until `released`."""
        with self._lock:
            self._handed_back += [job for job, _ in self._waiting]
            self._handed_back += [job for one in self._lists for job in one.jobs]
            self._waiting.clear()
            self._lists.clear()
            return list(self._handed_back)

    def released(self, jobs: Iterable[ClaimedJob]) -> None:
        """Let go of jobs whose release has been answered."""
        with self._lock:
            for job in jobs:
                self._let_go(job)
            self._handed_back = [job for job in self._handed_back if self._held.get(job.id) == job.fence]

    # Settling.

    def take_outcomes(self, now: float) -> list[Outcome] | None:
        """Take the settler's role and the outcomes; None when there is no need yet, or another thread settles.

        While jobs wait here, outcomes are gathered: up to a batch, or for 10 ms. Their jobs are held until `settled`.
        """
        number = len(self._outcomes)
        is_time = number >= MAX_BATCH or not self._waiting or now - self._first_outcome > GATHER_SECONDS
        if not number or not is_time:
            return None
        with self._lock:
            if not self._outcomes or not self._settler.take(now):
                return None
            return self._take_some()

    def take_postponed(self) -> list[Outcome] | None:
        """Take the outcomes that were postponed a second ago; None without any."""
        now = time.monotonic()
        with self._lock:
            if not self._postponed or now < self._postponed_until or not self._settler.take(now):
                return None
            postponed, self._postponed = self._postponed, []
            return postponed

    def take_rest(self) -> list[Outcome] | None:
        """Take whatever is left to settle, even while another thread settles; None when nothing is."""
        with self._lock:
            outcomes = self._take_some() + self._postponed
            self._postponed = []
            if not outcomes:
                return None
            self._settler.take(time.monotonic(), is_urgent=True)
            return outcomes

    def _take_some(self) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes[:MOST_SETTLED], self._outcomes[MOST_SETTLED:]
        return outcomes

    def settled(self, outcomes: Iterable[Outcome], postponed: list[Outcome]) -> None:
        """End the settler's role; let go of the jobs whose settle has been answered, and keep the others' for a later one."""
        kept = {outcome.job.id for outcome in postponed}
        with self._lock:
            self._settler.leave()
            for outcome in outcomes:
                if outcome.job.id not in kept:
                    self._let_go(outcome.job)
            if postponed:
                if not self._postponed:
                    self._postponed_until = time.monotonic() + POSTPONE_SECONDS
                self._postponed += postponed

    def _let_go(self, job: ClaimedJob) -> None:
        if self._held.get(job.id) == job.fence:  # one that was claimed anew meanwhile has another fence
            del self._held[job.id]

    def held(self) -> dict[str, int]:
        """Return the fence of each job that is held here."""
        with self._lock:
            return dict(self._held)

    @property
    def is_busy(self) -> bool:
        """Whether a job is held here, which the watchdog may have to look after."""
        return bool(self._held)

    @property
    def is_used(self) -> bool:
        """Whether a thread has a slot here, or a job is held."""
        return bool(self._slots or self._held)
