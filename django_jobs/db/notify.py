"""Notify idle workers of work, a process of requests, and waiters of finished jobs: after the commit, in a statement of its own.

On PostgreSQL by NOTIFY, at most one per queue and 20 ms; a worker process in this very process is called directly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from django.db import DatabaseError

from django_jobs.conf import get_settings

from .connections import jobs_alias, jobs_connection
from .transactions import after_commit

logger = logging.getLogger("django_jobs")

# A notification in the committing transaction takes a cluster-wide lock until the log is flushed, hence after it; a burst of
# submits needs only the first one, because an awake worker looks again by itself.
QUIET_SECONDS = 0.02
# Three channels, with the queue as payload: a worker of all queues listens once, and no queue's name has to be an identifier.
WORK_CHANNEL = "django_jobs_work"
PROCESS_CHANNEL = "django_jobs_process"
FINISHED_CHANNEL = "django_jobs_finished"
_last: dict[tuple[str, str, str], float] = {}
_work_listeners: list[Callable[[str], None]] = []
_cascade_listeners: list[Callable[[], None]] = []


def has_notifications() -> bool:
    """Say whether the jobs' database can notify, and the site lets it."""
    return jobs_connection().vendor == "postgresql" and get_settings().NOTIFY


def listen_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(queue)` after each submit of this process; return what ends that."""
    _work_listeners.append(listener)
    return lambda: _work_listeners.remove(listener) if listener in _work_listeners else None


def cascade_in_process(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener()` after each move of this process that left dependents to be failed; return what ends that."""
    _cascade_listeners.append(listener)
    return lambda: _cascade_listeners.remove(listener)


def notify_cascade() -> None:
    """Have the worker process, if this is one, fail the dependents that are left once the transaction has committed."""
    for listener in list(_cascade_listeners):
        after_commit(listener)


def notify_work(queue: str) -> None:
    """Wake workers of a queue once the caller's transaction has committed (at once without one)."""
    if jobs_connection().in_atomic_block:
        after_commit(lambda: _work_is_there(queue))
    else:
        _work_is_there(queue)


def _work_is_there(queue: str) -> None:
    for listener in list(_work_listeners):
        listener(queue)
    _notify_now_and_then(WORK_CHANNEL, queue)


def notify_finished() -> None:
    """Tell those who wait for jobs that some have finished, once the caller's transaction has committed."""
    connection = jobs_connection()
    if connection.vendor != "postgresql":
        return
    if connection.in_atomic_block:
        after_commit(lambda: _notify_now_and_then(FINISHED_CHANNEL, ""))
    else:
        _notify_now_and_then(FINISHED_CHANNEL, "")


def notify_process(process_id: str) -> None:
    """Make a worker process look at once for cancel and stop requests (PostgreSQL; elsewhere its next beat does)."""
    if has_notifications():
        _notify(PROCESS_CHANNEL, process_id)


def _notify_now_and_then(channel: str, payload: str) -> None:
    if not has_notifications():
        return
    now = time.monotonic()
    key = (jobs_alias(), channel, payload)
    if now - _last.get(key, float("-inf")) < QUIET_SECONDS:
        return
    _last[key] = now
    try:
        _notify(channel, payload)
    except DatabaseError:
        # What it tells of is committed; the next look finds it.
        logger.debug("could not notify %s of %r", channel, payload, exc_info=True)


def _notify(channel: str, payload: str) -> None:
    with jobs_connection().cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", (channel, payload))


class Subscription:
    """A connection of its own that listens (PostgreSQL)."""

    def __init__(self, *channels: str) -> None:
        # copy() keeps the site's connection settings but shares nothing with this thread's connection.
        self._connection = cast(Any, jobs_connection()).copy()
        self._connection.inc_thread_sharing()
        self._connection.ensure_connection()  # and not connect(), whose errors are the driver's own
        with self._connection.cursor() as cursor:
            cursor.execute("; ".join(f"LISTEN {channel}" for channel in channels))

    def wait(self, seconds: float) -> Iterator[tuple[str, str]]:
        """Yield (channel, payload) of what arrives within `seconds`, until the end of the first batch."""
        with self._connection.wrap_database_errors:
            for notification in self._connection.connection.notifies(timeout=seconds, stop_after=1):
                yield notification.channel, notification.payload

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
