"""What a loop does while the database is away: rest with jitter, and log that once a minute."""

from __future__ import annotations

import logging
import random
import threading
import time

from django_jobs.db.errors import is_away

logger = logging.getLogger("django_jobs")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
LOG_SECONDS = 60.0


class OutageBackoff:
    """Shared by all loops of a process, so that an outage is one line a minute and not one per thread."""

    def __init__(self) -> None:
        self.count = 0  # of errors so far
        self._lock = threading.Lock()
        self._pause = FIRST_PAUSE
        self._since: float | None = None
        self._logged_at = float("-inf")
        self._was_logged = False

    def after(self, error: BaseException) -> float:
        """Note an error and return how long to rest, in seconds; an error that is no outage is logged with its traceback."""
        now = time.monotonic()
        with self._lock:
            self.count += 1
            pause, self._pause = self._pause, min(self._pause * 1.5, LONGEST_PAUSE)
            self._since = self._since or now
            is_silent = now - self._logged_at < LOG_SECONDS
            if not is_silent:
                self._logged_at = now
                self._was_logged = True
        if not is_away(error):
            logger.error("a statement of the worker failed", exc_info=error)
        elif not is_silent:
            logger.warning("the database cannot be used, waiting for it: %s", str(error).strip().partition("\n")[0])
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter, no secret

    def over(self) -> None:
        """Note that the database took a write. An answer alone is not the end: one that is read-only for a while answers, too."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
            was_logged, self._was_logged = self._was_logged, False
            self._pause = FIRST_PAUSE
        if since is not None and was_logged and time.monotonic() - since > 1:
            logger.warning("the database is back after %.0f seconds", time.monotonic() - since)
