"""What a loop does while the database is away: rest with jitter, and log that once a minute."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable

from django_jobs.db.errors import is_away

logger = logging.getLogger("django_jobs")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
LOG_SECONDS = 60.0


class OutageBackoff:
    """Shared by all loops of a process, so that an outage is one line a minute and not one per thread.

    Args:
        on_no_files: called with the error when this process may open no further file: that is no outage, and no wait ends it.
        database: the alias of the database, to be named in the log; None: there is one only.
    """

    def __init__(
        self, on_no_files: Callable[[OSError], object] = lambda error: None, database: str | None = None
    ) -> None:
        self._what = "the database" if database is None else f"the database {database!r}"
        self._on_no_files = on_no_files
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
            logger.warning("%s cannot be used, waiting for it: %s", self._what, str(error).strip().partition("\n")[0])
        if (too_many := _too_many_files()) is not None:
            self._on_no_files(too_many)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  jitter, no secret

    @property
    def is_out(self) -> bool:
        """Whether nothing has been written since an error."""
        return self._since is not None

    def over(self) -> None:
        """Note that the database took a write. An answer alone is not the end: one that is read-only for a while answers, too."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
            was_logged, self._was_logged = self._was_logged, False
            self._pause = FIRST_PAUSE
        if since is not None and was_logged and time.monotonic() - since > 1:
            logger.warning("%s is back after %.0f seconds", self._what, time.monotonic() - since)


def _too_many_files() -> OSError | None:
    """Return the error of a process that has as many files open as it may; drivers tell it as one of many reasons."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno == errno.EMFILE else None
    return None
