"""Tell idle workers that there is work: after the commit, in a statement of its own, at most one per queue and 20 ms."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from django.db import DatabaseError, connections, transaction

from django_jobs.conf import get_settings

from .transactions import jobs_alias

logger = logging.getLogger("django_jobs")

# A notification in the committing transaction takes a cluster-wide lock until the log is flushed, hence after it; a burst of
# submits needs only the first one, because an awake worker looks again by itself.
QUIET_SECONDS = 0.02
WORK_CHANNEL = "django_jobs_work"
PROCESS_CHANNEL = "django_jobs_process"
FINISHED_CHANNEL = "django_jobs_finished"
_last: dict[tuple[str, str, str], float] = {}
_listeners: list[Callable[[str], None]] = []
_cascaders: list[Callable[[], None]] = []


def listen_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(queue)` after each submit of this process; return what ends that."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener) if listener in _listeners else None


def cascade_in_process(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener()` after each move of this process that left dependents to be failed; return what ends that."""
    _cascaders.append(listener)
    return lambda: _cascaders.remove(listener)


def announce_cascade(alias: str) -> None:
    """Have the worker process, if this is one, fail what is left once the caller's transaction has committed."""
    for listener in list(_cascaders):
        transaction.on_commit(listener, using=alias, robust=True)


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
    _notify_now_and_then(WORK_CHANNEL, queue, alias)


def announce_finished(alias: str) -> None:
    """Tell those who wait for jobs that some have finished, once the caller's transaction has committed."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return
    if connection.in_atomic_block:
        transaction.on_commit(lambda: _notify_now_and_then(FINISHED_CHANNEL, "", alias), using=alias, robust=True)
    else:
        _notify_now_and_then(FINISHED_CHANNEL, "", alias)


def _notify_now_and_then(channel: str, payload: str, alias: str) -> None:
    connection = connections[alias]
    if connection.vendor != "postgresql" or not get_settings().NOTIFY:
        return
    now = time.monotonic()
    key = (alias, channel, payload)
    if now - _last.get(key, float("-inf")) < QUIET_SECONDS:
        return
    _last[key] = now
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", (channel, payload))
    except DatabaseError:
        # What it tells of is committed; the next look finds it.
        logger.debug("could not notify %s of %r", channel, payload, exc_info=True)


def tell_process(process_id: str, alias: str) -> None:
    """Make a worker process look at once for cancel and stop requests (PostgreSQL; elsewhere its next beat does)."""
    connection = connections[alias]
    if connection.vendor == "postgresql" and get_settings().NOTIFY:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", (PROCESS_CHANNEL, process_id))


class FinishedSubscription:
    """A connection of its own that hears when jobs finish (PostgreSQL)."""

    def __init__(self, alias: str) -> None:
        self._connection = _connect_apart(alias)
        with self._connection.cursor() as cursor:
            cursor.execute(f"LISTEN {FINISHED_CHANNEL}")

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds, or until some job has finished; return whether one has."""
        with self._connection.wrap_database_errors:
            return any(True for _ in self._connection.connection.notifies(timeout=seconds, stop_after=1))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _connect_apart(alias: str) -> Any:
    # copy() keeps the site's connection settings but shares nothing with this thread's connection.
    connection = cast(Any, connections[alias]).copy()
    connection.inc_thread_sharing()
    connection.ensure_connection()  # and not connect(), whose errors are the driver's own
    return connection


class Subscription:
    """A connection of its own that listens for new work and for requests to one process (PostgreSQL)."""

    def __init__(self, process_id: str) -> None:
        self.alias = jobs_alias()
        self._process_id = process_id
        self._connection = _connect_apart(self.alias)
        with self._connection.cursor() as cursor:
            cursor.execute(f"LISTEN {WORK_CHANNEL}; LISTEN {PROCESS_CHANNEL}")

    def wait(self, seconds: float) -> Iterator[str | None]:
        """Yield, for `seconds` or until the first batch, the queue of new work, and None for a request to this process."""
        with self._connection.wrap_database_errors:
            for told in self._connection.connection.notifies(timeout=seconds, stop_after=1):
                if told.channel == WORK_CHANNEL:
                    yield str(told.payload)
                elif told.payload == self._process_id:
                    yield None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
