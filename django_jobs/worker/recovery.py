"""Recovery: a supervisor takes back the jobs of children that ended, in a thread of its own.

A server that has fallen silent, or a table that somebody has locked, must hold up neither the start of new children, nor signals,
nor the exit.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from django.db import Error, connections

from django_jobs.lifecycle.release import release_process
from django_jobs.lifecycle.rescue import rescue_process

from .backoff import OutageBackoff


class Recovery(threading.Thread):
    """Rescues, or releases, what ended children held, one after the other, until the database has taken it."""

    def __init__(self) -> None:
        super().__init__(name="recovery", daemon=True)
        self._ended: deque[tuple[str, bool]] = deque()
        self._changed = threading.Condition()
        self._backoff = OutageBackoff()

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
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended)
                process_id, is_release = self._ended[0]
            try:
                (release_process if is_release else rescue_process)(process_id)
            except Error as error:
                pause = self._backoff.after(error)
                connections.close_all()
                time.sleep(pause)
                continue
            self._backoff.over()
            with self._changed:
                self._ended.popleft()
                self._changed.notify_all()
