"""Maintenance: promote, deliver, tick, rescue, cascade, operate, prune. Every process does it; compare-and-set keeps it right."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from django_jobs.conf import get_settings
from django_jobs.db.connections import discard_connection, work_on
from django_jobs.db.errors import is_away
from django_jobs.db.notify import cascade_in_process, notify_work, room_in_process, turns_in_process
from django_jobs.due import look_ahead
from django_jobs.lifecycle.active_limits import active_limits, forget_numbers
from django_jobs.lifecycle.cancel import cancel_left_children
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.events import deliver, prune_events
from django_jobs.lifecycle.farewell import forget_gone
from django_jobs.lifecycle.operations import move_operations
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.prune import prune_batch
from django_jobs.lifecycle.replay import revive_all
from django_jobs.lifecycle.rescue import rescue_nameless, rescue_process
from django_jobs.lifecycle.slots import SCOPES_PER_SWEEP, count_running, let_in, sweep, take_turns
from django_jobs.lifecycle.starts import prune_starts
from django_jobs.lifecycle.turns import prune_turns
from django_jobs.models import WorkerProcess
from django_jobs.scheduling.store import sync_declared
from django_jobs.scheduling.ticks import tick

from .lease import BEATS_PER_LEASE
from .liveness import LivenessMonitor
from .loop import Loop
from .memory import resident_megabytes
from .state import WorkerState

logger = logging.getLogger("django_jobs")
PROMOTE_SECONDS = 1.0
FAILED_SECONDS = 5.0  # until a chore that failed by itself, and not because the database is away, is tried again
LATE_SECONDS = PROMOTE_SECONDS  # a promotion that comes later tells of it; at RECENT_SECONDS none needs to
CHORE_SECONDS = 2.0  # a chore may take longer than a look ahead before its server is taken for silent
TICK_SECONDS = 60.0  # `promote` sees each second whether a tick or a step is due, or an event to be delivered
CONTENDED_SECONDS = 0.01
LIMITS_SECONDS = 4.0  # a changed limit holds within five
LOCKED_SECONDS = 0.25  # until one looks again whether the site has unlocked who is next for a slot
TURN_SECONDS = 0.5  # how often to look for turns that a process has set which died since
PRUNE_SECONDS = 60.0
PRUNE_BATCHES = 4
PRUNE_SHARE = 500  # looks in vain for what to prune take one part in so many of the time


class Maintenance(Loop):
    """Repeats each chore in its own rhythm; a chore is a method that returns the seconds until it wants to run again.

    Args:
        max_rss: recycle the process above this many megabytes; None: never.
    """

    def __init__(self, state: WorkerState, liveness: LivenessMonitor, max_rss: int | None = None) -> None:
        super().__init__("maintenance", state)
        self._liveness = liveness
        self._max_rss = max_rss
        self._synced = False
        self._swept_to = ""
        self._with_room: set[str] = set()  # scopes where all who are next were locked
        self._cascades_requested = self._cascades_done = 0
        lease = get_settings().LEASE_SECONDS
        self._chores: dict[Callable[[], float], float] = {
            self.promote: 0.0,
            self.deliver: TICK_SECONDS,
            self.tick: 0.0,
            self.rescue: lease / BEATS_PER_LEASE,
            self.cascade: lease / BEATS_PER_LEASE,
            self.look_at_limits: 0.0,
            self.let_in_again: LIMITS_SECONDS,
            self.take_turns: 0.0,
            self.operate: TICK_SECONDS,
            self.prune: PRUNE_SECONDS / 2,
        }
        self._due = {chore: time.monotonic() + delay for chore, delay in self._chores.items()}
        self._due_lock = threading.Lock()  # of what others ask for while a chore's next time is worked out

    # Called by other threads.

    def expect_due(self, seconds: float) -> None:
        """Promote in `seconds` at the latest, because a job was scheduled for then."""
        self._advance(self.promote, time.monotonic() + seconds)

    def expect_turn(self, seconds: float) -> None:
        """Take turns in `seconds` at the latest, because one was set for then."""
        self._advance(self.take_turns, time.monotonic() + seconds)

    def expect_room(self, scope: str) -> None:
        """Let in who waits in a scope in a moment, because a transaction of the site has locked those who are next."""
        self._with_room.add(scope)
        self._advance(self.let_in_again, time.monotonic() + LOCKED_SECONDS)

    def expect_cascade(self) -> None:
        """Cascade at once: a job that ended badly left dependents to be failed."""
        self._cascades_requested += 1
        self._advance(self.cascade, time.monotonic())

    @property
    def owes_cascade(self) -> bool:
        """Whether a cascade was requested that is not finished."""
        return self._cascades_requested != self._cascades_done

    def look_at_requests(self) -> None:
        """Look at once whether this process was asked to stop, or a job of it to be cancelled."""
        self._advance(self.rescue, time.monotonic())

    def _advance(self, chore: Callable[[], float], moment: float) -> None:
        with self._due_lock:
            is_sooner = moment < self._due[chore]
            if is_sooner:
                self._due[chore] = moment
        if is_sooner:
            self.wake()

    # In the thread.

    def run(self) -> None:
        """Run the chores when they are due, until stopped."""
        work_on(self._state.database)
        listeners = (
            cascade_in_process(self.expect_cascade),
            turns_in_process(self.expect_turn),
            room_in_process(self.expect_room),
        )
        try:
            super().run()
        finally:
            for stop_listening in listeners:
                stop_listening()

    def step(self) -> float:
        """Run what is due; return how long to rest, in seconds."""
        for chore in self._chores:
            if self.is_over or self._due[chore] > time.monotonic():
                continue
            self._state.asked_at = time.monotonic() + CHORE_SECONDS
            self._due[chore] = float("inf")  # a request that comes while it runs is for the next time
            try:
                with self._state.connections.lent():
                    rest = chore()
            except Exception as error:  # one bad chore must not end the others
                discard_connection()
                if is_away(error):
                    rest = self._state.backoff.after(error)
                    self._liveness.contact_lost()
                else:
                    rest = FAILED_SECONDS
                    logger.exception("the chore %s of worker process %s failed", chore.__name__, self._state.id)
            self._state.asked_at = None
            with self._due_lock:
                self._due[chore] = min(self._due[chore], time.monotonic() + rest)
        return max(0.0, min(self._due.values()) - time.monotonic())

    def promote(self) -> float:
        """Make due jobs ready, and wake a thread for them; see when the next tick is."""
        marks = self._state.pollers.marks
        if marks.promotion.owes_look and promote(marks=marks):
            self._state.pollers.wake()
        while True:
            began, start = time.monotonic(), marks.promotion.start
            self._state.asked_at = began
            due, next_tick, has_events, next_step = look_ahead(self._state.id, start)
            self._state.asked_at = began + CHORE_SECONDS
            if has_events:
                self._advance(self.deliver, time.monotonic())
            if next_tick is not None:
                self._advance(self.tick, time.monotonic() + next_tick + 0.001)
            if next_step is not None:
                self._advance(self.operate, time.monotonic() + next_step)
            if due is None or due > 0:
                # A little late rather than a little early, which would be a look in vain.
                rest = PROMOTE_SECONDS if due is None else min(PROMOTE_SECONDS, due + 0.002)
                return marks.promotion.rest_after(start, time.monotonic() - began, rest)
            promoted = promote(marks=marks)
            if not promoted:
                return CONTENDED_SECONDS  # other processes are at it
            if due < -LATE_SECONDS:
                for queue in set(promoted):
                    notify_work(queue, is_old=True)
            self._state.pollers.wake()

    def deliver(self) -> float:
        """Wake the jobs that began to wait for an event while it was being committed."""
        if deliver():
            self._state.pollers.wake()
        return TICK_SECONDS

    def tick(self) -> float:
        """Submit the jobs of due schedules; the first time, write those that the code declares."""
        if not self._synced:
            sync_declared()
            self._synced = True
        seconds = tick()
        return TICK_SECONDS if seconds is None else min(TICK_SECONDS, max(0.002, seconds + 0.001))

    def rescue(self) -> float:
        """Rescue the jobs of dead processes and those that name a process that is gone; look at this process's own rows."""
        seen = WorkerProcess.objects.snapshots()
        if any(process.is_asked_to_stop and process.id == self._state.id for process in seen):
            self._state.drain()
        for process in self._liveness.dead(seen):
            rescue_process(process.id, process.beat)
        rescue_nameless()
        self._liveness.look_at_own()
        if self._max_rss is not None and resident_megabytes() > self._max_rss:
            logger.warning("worker process %s uses more than %d MB: it will be recycled", self._state.id, self._max_rss)
            self._state.recycle()
        return get_settings().LEASE_SECONDS / BEATS_PER_LEASE

    def cascade(self) -> float:
        """Fail the dependents of jobs as requested, or fail and revive what a process that died in the middle has left."""
        requested = self._cascades_requested
        cascade_all()
        revive_all()
        cancel_left_children()
        self._cascades_done = requested
        return get_settings().LEASE_SECONDS

    def look_at_limits(self) -> float:
        """Count what was claimed by numbers of before; let in whom no limit holds back any more."""
        forget_numbers()
        count_running()
        self._swept_to = sweep(self._swept_to, SCOPES_PER_SWEEP)
        return LIMITS_SECONDS

    def let_in_again(self) -> float:
        """Let in who waits in scopes where that was not possible a moment ago."""
        if scopes := {self._with_room.pop() for _ in range(len(self._with_room))}:
            let_in(scopes)
        return LIMITS_SECONDS

    def take_turns(self) -> float:
        """Let in whose turn has come by a rate; without rates nothing is asked."""
        if not active_limits().have_rates:
            return LIMITS_SECONDS
        seconds = take_turns()
        return TURN_SECONDS if seconds is None else min(TURN_SECONDS, max(0.0, seconds) + 0.001)

    def operate(self) -> float:
        """Make a step of what operators asked for on many rows."""
        seconds = move_operations()
        return TICK_SECONDS if seconds is None else min(TICK_SECONDS, max(CONTENDED_SECONDS, seconds))

    def prune(self) -> float:
        """Delete a little of what is past its retention."""
        began = time.monotonic()
        forget_gone()
        deleted = 0
        for _ in range(PRUNE_BATCHES):
            some = prune_batch() + prune_events() + prune_starts() + prune_turns()
            deleted += some
            if not some:
                break
        # A look in vain reads all finished jobs, and every process makes one.
        return 1.0 if deleted else max(PRUNE_SECONDS, PRUNE_SHARE * (time.monotonic() - began))
