"""What a loop does while the database is away: wait with jitter, and say so once a minute."""

from __future__ import annotations

import logging
import random
import threading
import time

from django_jobs.lifecycle.transactions import is_away

logger = logging.getLogger("django_jobs")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
LOG_SECONDS = 60.0


class Trouble:
    """Shared by all loops of a process, so that an outage is one line a minute and not one per thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pause = FIRST_PAUSE
        self._since: float | None = None
        self._logged_at = float("-inf")
        self._was_told = False
        self.count = 0

    def after(self, error: BaseException) -> float:
        """Take note of an error and return how long to rest, in seconds; one that is no outage is logged whole."""
        now = time.monotonic()
        with self._lock:
            self.count += 1
            pause, self._pause = self._pause, min(self._pause * 1.5, LONGEST_PAUSE)
            self._since = self._since or now
            silent = now - self._logged_at < LOG_SECONDS
            if not silent:
                self._logged_at = now
                self._was_told = True
        if not is_away(error):
            logger.error("a statement of the worker failed", exc_info=error)
        elif not silent:
            logger.warning("the database cannot be used, waiting for it: %s", str(error).strip().partition("\n")[0])
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter, no secret

    def over(self) -> None:
        """Take note that the database took a write; that it answers does not mean that it is of use."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
            was_told, self._was_told = self._was_told, False
            self._pause = FIRST_PAUSE
        if since is not None and was_told and time.monotonic() - since > 1:
            logger.warning("the database is back after %.0f seconds", time.monotonic() - since)
