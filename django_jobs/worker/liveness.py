"""Which other worker processes are dead, and which rows name this one: what a process sees of itself and of its peers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django_jobs.conf import get_settings
from django_jobs.lifecycle.release import HeldJob, held_jobs, release_unheld
from django_jobs.models.worker_process import ProcessSnapshot

from .lease import BEATS_PER_LEASE
from .state import WorkerState

logger = logging.getLogger("django_jobs")


class LivenessMonitor:
    """Remembers, by this process's own monotonic clock, since when others stand still: the second of the two looks of a rescue.

    A jump of the database's clock, a stopped process or an outage makes one look wrong, and rescues nobody who lives.

    Args:
        held: returns the fence of each job that this process holds.
        cancel: told the jobs, as id and fence, that this process runs and somebody asked to cancel.
    """

    def __init__(
        self, state: WorkerState, held: Callable[[], dict[str, int]], cancel: Callable[[dict[str, int]], None]
    ) -> None:
        self._state = state
        self._held = held
        self._cancel = cancel
        self._stood_still: dict[str, tuple[int, float]] = {}
        self._contact_since = self._looked_at = time.monotonic()
        self._errors = 0
        self._unheld: dict[str, tuple[int, float]] = {}

    def contact_lost(self) -> None:
        """Start over: after an outage everybody stood still."""
        self._contact_since = time.monotonic()
        self._stood_still.clear()

    def dead(self, seen: list[ProcessSnapshot]) -> list[ProcessSnapshot]:
        """Return the dead processes: expired by the database's clock and still by ours, or still for long."""
        now = time.monotonic()
        lease = get_settings().LEASE_SECONDS
        beat_seconds = lease / BEATS_PER_LEASE
        # A process that stood still itself has not seen whether the others could reach the database meanwhile.
        stood_still = now - self._looked_at >= 2 * beat_seconds
        self._looked_at = now
        if stood_still or self._state.backoff.count != self._errors:
            self._errors = self._state.backoff.count
            self.contact_lost()
        since = self._standing_since(seen, now)
        if now - self._contact_since < 2 * beat_seconds:
            return []
        return [
            process
            for process in seen
            if process.id != self._state.id
            and (
                (process.is_expired and now - since[process.id] >= lease / 2)
                or now - since[process.id] >= lease + 2 * beat_seconds
            )
        ]

    def _standing_since(self, seen: list[ProcessSnapshot], now: float) -> dict[str, float]:
        before = self._stood_still
        self._stood_still = {}
        for process in seen:
            beat, since = before.get(process.id, (process.beat, now))
            self._stood_still[process.id] = (process.beat, since if beat == process.beat else now)
        return {process_id: since for process_id, (_, since) in self._stood_still.items()}

    def look_at_own(self) -> None:
        """Read the rows that name this process: pass requests to cancel on, hand back what it does not hold."""
        if self._state.is_lost:  # it has let go of runs that did start: whoever rescues it says so in an attempt
            return
        claiming_since = self._state.claiming_since()
        held = self._held()
        named = held_jobs(self._state.id)
        if requested := {job.id: job.fence for job in named if job.cancel_requested}:
            self._cancel(requested)
        self._release_unheld([job for job in named if held.get(job.id) != job.fence], claiming_since)

    def _release_unheld(self, suspicious: list[HeldJob], claiming_since: float) -> None:
        """Hand back rows that name this process though it does not hold them: claims whose reply was lost.

        They must have been seen twice, half a lease apart, with the same fence: a claim's rows are there before its reply. And
        no claim may be on its way that was sent before the first look: a process that was stopped in the middle of a claim
        reads its reply late.
        """
        now = time.monotonic()
        known = self._unheld
        self._unheld = {
            job.id: known[job.id] if known.get(job.id, (None,))[0] == job.fence else (job.fence, now)
            for job in suspicious
        }
        wait = max(1.0, get_settings().LEASE_SECONDS / 2)
        lost = [job for job in suspicious if now - wait >= self._unheld[job.id][1] < claiming_since]
        if lost:
            logger.warning("handing back %d jobs whose claim was answered by nobody", len(lost))
            release_unheld(lost, self._state.id)
