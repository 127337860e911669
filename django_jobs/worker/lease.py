"""The lease of a worker process: renew it, with one statement a beat, and give up in time when nobody answers.

A lease for the process and not for each job: one UPDATE a beat, whatever it runs, and no limit to how long a job may take.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from django_jobs.conf import get_settings
from django_jobs.db.connections import discard_connection, jobs_connection
from django_jobs.db.errors import is_transient
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.farewell import note_lease_lost

from .loop import Loop
from .memory import resident_megabytes
from .state import WorkerState

BEATS_PER_LEASE = 4
MARGIN = 0.15


class Lease(Loop):
    """Beats four times a lease, on a connection of its own.

    Args:
        silent_threads: returns how many worker threads look for no work, for those who ask whether the process is well.
    """

    def __init__(self, state: WorkerState, silent_threads: Callable[[], int] = lambda: 0) -> None:
        super().__init__("lease", state)
        self._silent_threads = silent_threads
        self._measured: tuple[float, int] | None = None  # when, and the runs that had ended by then
        self._acknowledged_at = time.monotonic()
        self._overdue_since: float | None = None

    def start(self) -> None:
        """Start to beat; the process has just been registered."""
        self._acknowledged_at = time.monotonic()
        super().start()

    @property
    def is_over(self) -> bool:
        """Whether the loop was stopped, or the lease is lost."""
        return super().is_over or self._state.is_lost

    def step(self) -> float:
        """Beat once; return the seconds until the next beat."""
        lease = get_settings().LEASE_SECONDS
        interval = lease / BEATS_PER_LEASE
        sent_at = time.monotonic()
        try:
            if not leases.beat(self._state.id, self._vitals(sent_at)):
                if not super().is_over:  # the process may have left while this beat was on its way
                    self._state.lose_lease()
                    note_lease_lost(self._state.id)
                return 0.0
            self._acknowledged_at = sent_at
            self._state.backoff.over()
        except Exception as error:  # a process whose heartbeat has ended would be declared dead
            discard_connection()
            pause = self._state.backoff.after(error)
            # A busy SQLite keeps rescuers from writing, too: that is no lost lease.
            if not is_transient(error) and self.is_overdue:
                self._state.lose_lease()
            return min(pause, interval)
        return max(0.01, interval - (time.monotonic() - sent_at))

    def _vitals(self, now: float) -> leases.Vitals:
        done = self._state.jobs_done
        before, self._measured = self._measured, (now, done)
        rate = (done - before[1]) / (now - before[0]) if before is not None and now > before[0] else 0.0
        return leases.Vitals(self._silent_threads(), done, rate, round(resident_megabytes()))

    @property
    def is_overdue(self) -> bool:
        """Whether the last beat that was answered was sent nearly a lease ago."""
        return time.monotonic() - self._acknowledged_at > get_settings().LEASE_SECONDS * (1 - MARGIN)

    def check(self) -> None:
        """Lose the lease when this thread waits for a server that never answers; for the main thread to call.

        Overdue for a second of this look: a process that was stopped and continues may still have its lease.
        """
        if not self.is_overdue or jobs_connection().vendor == "sqlite":
            self._overdue_since = None
        elif self._overdue_since is None:
            self._overdue_since = time.monotonic()
        elif time.monotonic() - self._overdue_since > 1.0:
            self._state.lose_lease()
