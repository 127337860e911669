"""The watch over other processes: who stood still for how long, by this process's own monotonic clock."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from django_jobs.conf import get_settings
from django_jobs.lifecycle import processes, rescue

from .heartbeat import BEATS_PER_LEASE

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")


class RescueWatch:
    """Who stood still for how long, by this process's own monotonic clock: the second of the two looks."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stood_still: dict[str, tuple[int, float]] = {}
        self._contact_since = time.monotonic()
        self._troubles = 0
        self._unheld: dict[str, tuple[int, float]] = {}

    def contact_lost(self) -> None:
        """Start over: after an outage everybody stood still."""
        self._contact_since = time.monotonic()
        self._stood_still.clear()

    def dead(self, seen: list[rescue.Seen]) -> list[rescue.Seen]:
        """Return the dead processes: expired by the database's clock and still by ours, or still for long."""
        now = time.monotonic()
        lease = get_settings().LEASE_SECONDS
        if self._process.trouble.count != self._troubles:
            self._troubles = self._process.trouble.count
            self.contact_lost()
        still = {}
        for one in seen:
            beat, since = self._stood_still.get(one.id, (one.beat, now))
            still[one.id] = (one.beat, since if beat == one.beat else now)
        self._stood_still = still
        beat_seconds = lease / BEATS_PER_LEASE
        if now - self._contact_since < 2 * beat_seconds:
            return []
        return [
            one
            for one in seen
            if one.id != self._process.id
            and (
                (one.expired and now - still[one.id][1] >= lease / 2)
                or now - still[one.id][1] >= lease + 2 * beat_seconds
            )
        ]

    def look_at_own(self) -> None:
        """Read the rows that name this process: tell its runs of requests to cancel, hand back what it does not hold."""
        held = self._process.held()
        named = processes.held_by(self._process.id)
        self._pass_on({one.id: one.fence for one in named if one.asked_to_stop})
        self._release_unheld({one.id: one.fence for one in named if held.get(one.id) != one.fence})

    def _pass_on(self, requested: dict[str, int]) -> None:
        """Tell running jobs, given as id and fence, that somebody asked to cancel them."""
        for worker in self._process.workers() if requested else ():
            run = worker.seat.run
            if run is not None and requested.get(run.job.id) == run.job.fence:
                run.cancel_requested = True
        self._process.coroutines.cancel(requested)

    def _release_unheld(self, suspicious: dict[str, int]) -> None:
        """Hand back rows that name this process though it does not hold them, once they were seen twice."""
        now = time.monotonic()
        known = self._unheld
        self._unheld = {
            job_id: known[job_id] if known.get(job_id, (None,))[0] == fence else (fence, now)
            for job_id, fence in suspicious.items()
        }
        wait = max(1.0, get_settings().LEASE_SECONDS / 2)
        lost = [(job_id, fence) for job_id, (fence, since) in self._unheld.items() if now - since >= wait]
        if lost:
            logger.warning("handing back %d jobs whose claim was answered by nobody", len(lost))
            rescue.release_unheld(lost, self._process.id)
