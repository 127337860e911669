"""Tell idle workers that there is work: after the commit, in a statement of its own, at most one per queue and 20 ms."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

from django.db import DatabaseError, connections, transaction

from django_jobs.conf import get_settings

logger = logging.getLogger("django_jobs")

# A notification in the committing transaction takes a cluster-wide lock until the log is flushed, hence after it; a burst of
# submits needs only the first one, because an awake worker looks again by itself.
QUIET_SECONDS = 0.02
_last: dict[tuple[str, str], float] = {}
_listeners: list[Callable[[str], None]] = []


def channel(queue: str) -> str:
    """Return the notification channel of a queue: a hash, so that no name needs quoting."""
    return "jobs_" + hashlib.sha256(queue.encode()).hexdigest()[:32]


def listen_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(queue)` after each submit of this process; return what ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def announce_work(queue: str, alias: str) -> None:
    """Wake workers of a queue once the caller's transaction has committed (at once without one)."""
    connection = connections[alias]
    if connection.in_atomic_block:
        transaction.on_commit(lambda: _tell(queue, alias), using=alias, robust=True)
    else:
        _tell(queue, alias)


def _tell(queue: str, alias: str) -> None:
    for listener in list(_listeners):
        listener(queue)
    connection = connections[alias]
    if connection.vendor != "postgresql" or not get_settings().NOTIFY:
        return
    now = time.monotonic()
    if now - _last.get((alias, queue), float("-inf")) < QUIET_SECONDS:
        return
    _last[alias, queue] = now
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", (channel(queue), queue))
    except DatabaseError:
        # The job is committed; a worker's next poll finds it.
        logger.debug("could not notify the workers of queue %r", queue, exc_info=True)


def tell_process(process_id: str, alias: str) -> None:
    """Make a worker process look at once for cancel and stop requests (PostgreSQL; elsewhere its next beat does)."""
    connection = connections[alias]
    if connection.vendor == "postgresql" and get_settings().NOTIFY:
        text = f"process {process_id}"
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", (channel(text), text))
