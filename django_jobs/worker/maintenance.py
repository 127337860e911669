"""Maintenance: promote, tick, rescue the dead, prune. Every process does it; compare-and-set keeps it right."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.db import connections

from django_jobs.conf import get_settings
from django_jobs.lifecycle import processes, rescue
from django_jobs.lifecycle.ahead import seconds_ahead
from django_jobs.lifecycle.claim import promote
from django_jobs.lifecycle.notify import cascade_in_process
from django_jobs.lifecycle.prune import prune_batch
from django_jobs.lifecycle.replay import finish_replays
from django_jobs.lifecycle.schedule import sync_declared, tick
from django_jobs.lifecycle.wake import cascade_all

from .heartbeat import BEATS_PER_LEASE
from .memory import resident_megabytes
from .watch import RescueWatch

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")
PROMOTE_SECONDS = 1.0
TICK_SECONDS = 60.0  # `promote` sees each second whether a tick is due
CONTENDED_SECONDS = 0.01
PRUNE_SECONDS = 60.0
PRUNE_BATCHES = 4


class Maintenance(threading.Thread):
    """Repeats each chore in its own rhythm; a chore is a function that returns the seconds until it wants to run again."""

    def __init__(self, process: Process) -> None:
        super().__init__(name=f"maintenance {process.id}", daemon=True)
        self._process = process
        self._stopped = False
        self._synced = False
        self._cascades_asked = self._cascades_done = 0
        self._wake = threading.Event()
        self._watch = RescueWatch(process)
        lease = get_settings().LEASE_SECONDS
        self._chores: dict[Callable[[], float], float] = {
            self.promote: 0.0,
            self.tick: 0.0,
            self.rescue: lease / BEATS_PER_LEASE,
            self.cascade: lease / BEATS_PER_LEASE,
            self.prune: PRUNE_SECONDS / 2,
        }
        self._due = {chore: time.monotonic() + delay for chore, delay in self._chores.items()}

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wake.set()

    def expect_due(self, seconds: float) -> None:
        """Promote in `seconds` at the latest, because a job was scheduled for then."""
        self._advance(self.promote, time.monotonic() + seconds)

    def expect_cascade(self) -> None:
        """Cascade at once: a job that ended badly left dependents to be failed."""
        self._cascades_asked += 1
        self._advance(self.cascade, time.monotonic())

    @property
    def owes_cascade(self) -> bool:
        """Whether a cascade was asked for that is not finished."""
        return self._cascades_asked != self._cascades_done

    def look_at_requests(self) -> None:
        """Look at once whether this process was asked to stop."""
        self._advance(self.rescue, time.monotonic())

    def _advance(self, chore: Callable[[], float], moment: float) -> None:
        if moment < self._due[chore]:
            self._due[chore] = moment
            self._wake.set()

    def run(self) -> None:
        """Run the chores when they are due, until stopped."""
        stop_listening = cascade_in_process(self.expect_cascade)
        try:
            while not self._stopped:
                self._wake.wait(self.step())
                self._wake.clear()
        except Exception as error:
            self._process.is_broken(error)
        finally:
            stop_listening()
            connections.close_all()

    def step(self) -> float:
        """Run what is due; return how long to rest, in seconds."""
        if self.owes_cascade:  # asked for while the last one ended
            self._advance(self.cascade, time.monotonic())
        for chore in self._chores:
            if self._stopped or self._due[chore] > time.monotonic():
                continue
            try:
                rest = chore()
            except Exception as error:  # one bad chore must not end the others
                rest = self._process.trouble.after(error)
                self._watch.contact_lost()
                processes.discard_connection()
            self._due[chore] = time.monotonic() + rest
        return max(0.0, min(self._due.values()) - time.monotonic())

    def promote(self) -> float:
        """Make due jobs ready, and wake a thread for them; see when the next tick is."""
        while True:
            due, next_tick = seconds_ahead(self._process.id)
            if next_tick is not None:
                self._advance(self.tick, time.monotonic() + next_tick + 0.001)
            if due is None or due > 0:
                # A little late rather than a little early, which would be a look in vain.
                return PROMOTE_SECONDS if due is None else min(PROMOTE_SECONDS, due + 0.002)
            if not promote():
                return CONTENDED_SECONDS  # other processes are at it
            self._process.wakeup.call()

    def tick(self) -> float:
        """Submit the jobs of due schedules; the first time, write those that the code declares."""
        if not self._synced:
            sync_declared()
            self._synced = True
        seconds = tick()
        return TICK_SECONDS if seconds is None else min(TICK_SECONDS, max(0.002, seconds + 0.001))

    def rescue(self) -> float:
        """Look for dead processes, and for jobs that name a process that is gone."""
        everyone = rescue.look()
        if any(seen.asked_to_stop and seen.id == self._process.id for seen in everyone):
            self._process.drain()
        for seen in self._watch.dead(everyone):
            rescue.rescue_process(seen.id, seen.beat)
        rescue.rescue_nameless()
        self._watch.look_at_own()
        limit = self._process.max_rss
        if limit is not None and resident_megabytes() > limit:
            logger.warning("worker process %s uses more than %d MB: it will be recycled", self._process.id, limit)
            self._process.recycle()
        return get_settings().LEASE_SECONDS / BEATS_PER_LEASE

    def cascade(self) -> float:
        """Fail the dependents of jobs as asked, or fail and revive what a process that died in the middle has left."""
        asked = self._cascades_asked
        cascade_all()
        finish_replays()
        self._cascades_done = asked
        return 0.0 if self.owes_cascade else get_settings().LEASE_SECONDS

    def prune(self) -> float:
        """Delete a little of what is past its retention."""
        deleted = sum(prune_batch() for _ in range(PRUNE_BATCHES))
        return 1.0 if deleted else PRUNE_SECONDS
