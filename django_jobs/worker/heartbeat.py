"""The heartbeat: renew the lease, with one statement, and give up in time when nobody answers."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from django.db import connections

from django_jobs.conf import get_settings
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.transactions import is_transient, jobs_alias

if TYPE_CHECKING:
    from .process import Process

BEATS_PER_LEASE = 4
MARGIN = 0.15


class Heartbeat(threading.Thread):
    """Beats four times a lease on a connection of its own."""

    def __init__(self, process: Process) -> None:
        super().__init__(name=f"heartbeat {process.id}", daemon=True)
        self._process = process
        self._stopped = threading.Event()
        self._acknowledged_at = time.monotonic()
        self._overdue_since: float | None = None

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def run(self) -> None:
        """Beat until stopped, or until the lease is lost."""
        self._acknowledged_at = time.monotonic()
        try:
            while not self._stopped.is_set() and not self._process.is_lost:
                self._stopped.wait(self.step())
        except Exception as error:
            self._process.is_broken(error)
        finally:
            connections.close_all()

    def step(self) -> float:
        """Beat once; return how long to rest, in seconds."""
        lease = get_settings().LEASE_SECONDS
        interval = lease / BEATS_PER_LEASE
        sent_at = time.monotonic()
        try:
            answer = processes.beat(self._process.id)
            if not answer.acknowledged:
                if not self._stopped.is_set():
                    self._process.lose_lease()
                return 0.0
            self._acknowledged_at = sent_at
            self._process.trouble.over()
        except Exception as error:  # a heartbeat that ended would end its process
            processes.discard_connection()
            pause = self._process.trouble.after(error)
            # A busy SQLite keeps rescuers from writing, too: that is no lost lease.
            if not is_transient(error) and self.is_overdue:
                self._process.lose_lease()
            return min(pause, interval)
        return max(0.01, interval - (time.monotonic() - sent_at))

    @property
    def is_overdue(self) -> bool:
        """Whether the last beat that was answered was sent nearly a lease ago."""
        return time.monotonic() - self._acknowledged_at > get_settings().LEASE_SECONDS * (1 - MARGIN)

    def check(self) -> None:
        """Lose the lease when this thread waits for a server that never answers; for the main thread to call.

        Overdue for a second of this look: a process that was stopped and continues may still have its lease.
        """
        if not self.is_overdue or connections[jobs_alias()].vendor == "sqlite":
            self._overdue_since = None
        elif self._overdue_since is None:
            self._overdue_since = time.monotonic()
        elif time.monotonic() - self._overdue_since > 1.0:
            self._process.lose_lease()
