"""Database work at the end of a process, which must not keep it from ending: a server may have fallen silent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.db import Error, connections

logger = logging.getLogger("django_jobs")


def do_within(seconds: float, work: Callable[[], object]) -> None:
    """Do some work in a thread of its own, and wait for it at most so many seconds; what it leaves undone is rescued."""
    thread = threading.Thread(target=_do, args=(work,), name="last work", daemon=True)
    thread.start()
    thread.join(seconds)


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Error:
        logger.debug("the last work of this process failed; what it left is rescued", exc_info=True)
    finally:
        connections.close_all()
