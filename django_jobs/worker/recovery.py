"""Recovery: a supervisor takes back the jobs of children that ended, in a thread of its own.

A server that has fallen silent, or a table that somebody has locked, must hold up neither the start of new children, nor signals,
nor the exit.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from django.db import Error, OperationalError

from django_jobs.conf import get_settings
from django_jobs.db.connections import work_on
from django_jobs.lifecycle.release import release_process
from django_jobs.lifecycle.rescue import rescue_process

from .backoff import OutageBackoff
from .bounded import Work


class Recovery(threading.Thread):
    """Rescues, or releases, what ended children held, one after the other, until the database has taken it.

    Args:
        database: the alias of the database; None: that of the routers.

    Each try has a thread and connections of its own: one that gets no answer for a lease is left behind.
    """

    def __init__(self, database: str | None = None) -> None:
        self._database = database
        super().__init__(name="recovery", daemon=True)
        self._ended: deque[tuple[str, bool]] = deque()
        self._changed = threading.Condition()
        self._backoff = OutageBackoff(database=database)

    def rescue(self, process_id: str) -> None:
        """Take back the jobs of a child that died by itself: they are suspects."""
        self._add(process_id, False)

    def release(self, process_id: str) -> None:
        """Hand back the jobs of a child that was ended on purpose."""
        self._add(process_id, True)

    def _add(self, process_id: str, is_release: bool) -> None:
        with self._changed:
            self._ended.append((process_id, is_release))
            self._changed.notify_all()
        if not self.ident:
            self.start()

    def finish(self, seconds: float) -> bool:
        """Wait until nothing is left, at most so many seconds; return whether that is so. A rescuer finds what is left."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._ended, seconds)

    def run(self) -> None:
        """Take back what is added; this is the thread."""
        work_on(self._database)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended)
                process_id, is_release = self._ended[0]
            try:
                _take_back(process_id, is_release=is_release)
            except (Error, RuntimeError) as error:  # RuntimeError: the system gives no further thread
                time.sleep(self._backoff.after(error))
                continue
            self._backoff.over()
            with self._changed:
                self._ended.popleft()
                self._changed.notify_all()


def _take_back(process_id: str, *, is_release: bool) -> None:
    work = Work("taking back", lambda: (release_process if is_release else rescue_process)(process_id))
    work.start()
    work.join(get_settings().LEASE_SECONDS)
    if work.is_alive():
        raise OperationalError("no answer for a whole lease")
    work.result()
