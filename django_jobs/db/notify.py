"""Notify idle workers of work, a process of requests, and waiters of finished jobs: after the commit, in a statement of its own.

On PostgreSQL by NOTIFY, at most one per queue and 20 ms; a worker process in this very process is called directly. While one
process looks for all (`worker/shared_poll.py`), nobody notifies of work.
"""

from __future__ import annotations

import logging
import selectors
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.conf import get_settings

from .connections import discard, jobs_alias, jobs_connection
from .dialects.postgresql import PostgreSQL
from .transactions import after_commit

logger = logging.getLogger("django_jobs")

# A notification in the committing transaction takes a cluster-wide lock until the log is flushed, hence after it; a burst of
# submits needs only the first one, because an awake worker looks again by itself.
QUIET_SECONDS = 0.02
MOST_REMEMBERED = 1_000  # queues of which a process remembers when it has notified
# Two channels have the queue as payload: a worker of all queues listens once, and no queue's name has to be an identifier.
WORK_CHANNEL = "django_jobs_work"
OLD_CHANNEL = "django_jobs_old"
PROCESS_CHANNEL = "django_jobs_process"
FINISHED_CHANNEL = "django_jobs_finished"
# Who listens for finished jobs holds this advisory lock, shared, as long as its session lives. PostgreSQL wakes every session of
# the database that listens to anything, so that a notification that nobody waits for costs a look of each worker process.
AWAITED = (0x646A, 0x66)
AWAITED_SECONDS = 1.0  # how long a session may take to get it: who looks whether it is free has it for that statement
# Who looks for all holds this advisory lock for each of its queues, or that of all queues.
POLLED = 0x646B
ALL_QUEUES = 0
F = TypeVar("F", bound=Callable[..., None])
_last: dict[tuple[str, str, str], float] = {}
# By the alias of their database.
_work_listeners: dict[str, list[Callable[[str], None]]] = {}
_old_listeners: dict[str, list[Callable[[str], None]]] = {}
_cascade_listeners: dict[str, list[Callable[[], None]]] = {}
_turn_listeners: dict[str, list[Callable[[float], None]]] = {}
_room_listeners: dict[str, list[Callable[[str], None]]] = {}


def has_notifications() -> bool:
    """Say whether the jobs' database can notify, and the site lets it."""
    return _can_notify(jobs_connection())


def _can_notify(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "postgresql" and get_settings().NOTIFY


def _listen(listeners: dict[str, list[F]], listener: F) -> Callable[[], None]:
    of_database = listeners.setdefault(jobs_alias(), [])
    of_database.append(listener)
    return lambda: of_database.remove(listener) if listener in of_database else None


def _tell_after_commit(listeners: dict[str, list[F]], *values: object) -> None:
    for listener in list(listeners.get(jobs_alias(), ())):
        after_commit(partial(listener, *values))


def listen_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(queue)` after each submit of this process to this database; return what ends that."""
    return _listen(_work_listeners, listener)


def old_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(queue)` after each move of this process that made an old job ready; return what ends that."""
    return _listen(_old_listeners, listener)


def cascade_in_process(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener()` after each move of this process that left dependents to be failed here; return what ends that."""
    return _listen(_cascade_listeners, listener)


def notify_cascade() -> None:
    """Have the worker process, if this is one, fail the dependents that are left once the transaction has committed."""
    _tell_after_commit(_cascade_listeners)


def turns_in_process(listener: Callable[[float], None]) -> Callable[[], None]:
    """Call `listener(seconds)` after each move of this process that set a turn here, so far off; return what ends that."""
    return _listen(_turn_listeners, listener)


def notify_turn(seconds: float) -> None:
    """Have the worker process, if this is one, let in whose turn has come in so many seconds; after the commit."""
    _tell_after_commit(_turn_listeners, seconds)


def room_in_process(listener: Callable[[str], None]) -> Callable[[], None]:
    """Call `listener(scope)` after each move of this process that left room in a scope here; return what ends that."""
    return _listen(_room_listeners, listener)


def notify_room(scope: str) -> None:
    """Have the worker process, if this is one, look again who waits for slots of a scope, after the commit: they are locked."""
    _tell_after_commit(_room_listeners, scope)


def notify_work(queue: str, *, is_old: bool = False) -> None:
    """Wake workers of a queue once the caller's transaction has committed (at once without one).

    Args:
        is_old: whether what became ready was due long ago: claims that begin at a mark (`marks.py`) are to look behind it.
    """
    connection = jobs_connection()

    def wake() -> None:
        if is_old:
            _notify_of_old(connection, queue)
        for listener in list(_work_listeners.get(connection.alias, ())):
            listener(queue)
        _notify_now_and_then(connection, WORK_CHANNEL, queue, _notify_workers)

    _once_committed(connection, wake)


def _notify_of_old(connection: BaseDatabaseWrapper, queue: str) -> None:
    for listener in list(_old_listeners.get(connection.alias, ())):
        listener(queue)
    if _can_notify(connection):
        _notify_or_not(connection, OLD_CHANNEL, queue, _notify)


def notify_finished() -> None:
    """Tell those who wait for jobs that some have finished, once the caller's transaction has committed."""
    connection = jobs_connection()
    if connection.vendor == "postgresql":
        _once_committed(connection, lambda: _notify_now_and_then(connection, FINISHED_CHANNEL, "", _notify_waiters))


def notify_process(process_id: str) -> None:
    """Make a worker process look at once for cancel and stop requests (PostgreSQL; elsewhere its next beat does)."""
    connection = jobs_connection()
    if _can_notify(connection):
        _notify(connection, PROCESS_CHANNEL, process_id)


def _once_committed(connection: BaseDatabaseWrapper, callback: Callable[[], None]) -> None:
    # after_commit would do without a transaction, too, but only after a few calls that every submit would pay for.
    if connection.in_atomic_block:
        after_commit(callback)
    else:
        callback()


def _notify(connection: BaseDatabaseWrapper, channel: str, payload: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", (channel, payload))


def _notify_workers(connection: BaseDatabaseWrapper, channel: str, payload: str) -> None:
    """Notify unless a process looks for all workers of the queue; those who ask do not stand in each other's way."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, %s) WHERE pg_try_advisory_xact_lock_shared(%s, %s)"
            " AND pg_try_advisory_xact_lock_shared(%s, %s)",
            (channel, payload, POLLED, ALL_QUEUES, POLLED, _number(payload)),
        )


def _number(queue: str) -> int:
    """Return the number of a queue's lock; two queues that share one are looked for together, or not at all."""
    return zlib.crc32(queue.encode()) // 2 or 1


def _notify_waiters(connection: BaseDatabaseWrapper, channel: str, payload: str) -> None:
    """Notify if somebody holds the lock of those who wait."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, %s) WHERE NOT pg_try_advisory_xact_lock(%s, %s)", (channel, payload, *AWAITED)
        )


def _notify_now_and_then(
    connection: BaseDatabaseWrapper,
    channel: str,
    payload: str,
    tell: Callable[[BaseDatabaseWrapper, str, str], None] = _notify,
) -> None:
    if not _can_notify(connection):
        return
    now = time.monotonic()
    key = (connection.alias, channel, payload)
    if now - _last.get(key, float("-inf")) < QUIET_SECONDS:
        return
    if len(_last) >= MOST_REMEMBERED:
        _last.clear()
    _last[key] = now
    _notify_or_not(connection, channel, payload, tell)


def _notify_or_not(
    connection: BaseDatabaseWrapper,
    channel: str,
    payload: str,
    tell: Callable[[BaseDatabaseWrapper, str, str], None],
) -> None:
    try:
        tell(connection, channel, payload)
    except DatabaseError:
        # What it tells of is committed; the next look finds it.
        logger.debug("could not notify %s of %r", channel, payload, exc_info=True)


class Subscription:
    """A connection of its own that listens (PostgreSQL)."""

    def __init__(self, *channels: str) -> None:
        # copy() keeps the site's connection settings but shares nothing with this thread's connection.
        self._connection = cast(Any, jobs_connection()).copy()
        self._connection.inc_thread_sharing()
        self._connection.ensure_connection()  # and not connect(), whose errors are the driver's own
        statements = [f"LISTEN {channel}" for channel in channels]
        if FINISHED_CHANNEL in channels:
            limit = f"SET LOCAL lock_timeout = {int(AWAITED_SECONDS * 1000)}"
            statements += [limit, "SELECT pg_advisory_lock_shared({}, {})".format(*AWAITED)]
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("; ".join(statements))  # one transaction
        except DatabaseError:
            self.close()
            raise

    def wait(self, seconds: float) -> Iterator[tuple[str, str]]:
        """Yield (channel, payload) of what arrives within `seconds`, until the end of the first batch."""
        raw = self._connection.connection
        with self._connection.wrap_database_errors:
            found = list(raw.notifies(timeout=0))
            if not found and self._has_input(raw.fileno(), seconds):
                found = list(raw.notifies(timeout=0))
        for notification in found:
            yield notification.channel, notification.payload

    @staticmethod
    def _has_input(descriptor: int, seconds: float) -> bool:
        """Wait in one go: the driver would wake up ten times a second."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    # Looking for all.

    def count_processes(self) -> int:
        """Return how many worker processes live."""
        return PostgreSQL(self._connection).count_processes()

    def begin_poll(self, queues: Iterable[str] | None) -> bool:
        """Promise to look for the jobs of these queues (None: of all) for everybody; return False when somebody does already.

        Nobody notifies of work in them until `end_poll`, or until this session ends.
        """
        numbers = [ALL_QUEUES] if queues is None else sorted(map(_number, queues))
        taken = all(row[0] for row in self._lock("pg_try_advisory_lock", numbers))
        if not taken:
            self.end_poll()
        return taken

    def end_poll(self) -> None:
        """End the promise. Look once more after it: whoever asked before has not notified."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")

    def _lock(self, function: str, numbers: list[int]) -> list[tuple[bool]]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT {function}(%s, number) FROM unnest(%s::int[]) AS given(number)", (POLLED, numbers))
            rows: list[tuple[bool]] = cursor.fetchall()
            return rows

    def seconds_of_an_answer(self) -> float:
        """Return for how long this process waits for the answer to a statement that does nothing."""
        began = time.monotonic()
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return time.monotonic() - began

    def ready_queues(self) -> list[tuple[str, float]]:
        """Return (queue, seconds for which the first of its ready jobs has been due), of queues that have one."""
        return PostgreSQL(self._connection).ready_queues()

    def notify_work(self, queue: str) -> None:
        """Wake the workers of a queue, this process among them."""
        _notify(self._connection, WORK_CHANNEL, queue)

    def close(self) -> None:
        """Close the connection, for good: a session that listens is nothing that a pool may give to others."""
        discard(self._connection)
