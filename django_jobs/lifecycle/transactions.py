"""Our own transactions: short, on the job table's database, done again when the database asks for that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TypeVar

from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.models import Job
from django_jobs.models.fields import DbNow

T = TypeVar("T")

# PostgreSQL: serialization failure, deadlock, lock not available. MariaDB/MySQL: changed since read, lock wait, deadlock.
LOCK_NOT_AVAILABLE = "55P03"
RETRY_SQLSTATES = frozenset({"40001", "40P01", LOCK_NOT_AVAILABLE})
LOCK_WAIT_TIMEOUT = 1205
RETRY_ERRNOS = frozenset({1020, LOCK_WAIT_TIMEOUT, 1213})
BUSY_SECONDS = 30.0
LOCK_WAIT_SECONDS = 0.5
HALVING_SECONDS = 2.0
TRIES = 50
# What a server says while it goes down, comes up or refuses writes: the job of the loops is to wait, not to give up.
AWAY_SQLSTATES = ("08", "57P", "25006", "53")
# 1044, 1045 and 1049: no such user or database yet, which PostgreSQL's driver does not tell from a server that is away.
AWAY_ERRNOS = frozenset({1040, 1044, 1045, 1049, 1053, 1129, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055, 4031})
# SQLite's own: no memory, read-only, an I/O error, full, cannot open, a locking protocol error.
AWAY_SQLITE = frozenset({7, 8, 10, 13, 14, 15})


_chosen: ContextVar[str | None] = ContextVar("django_jobs_database", default=None)


def jobs_alias() -> str:
    """Return the database alias of the job table, as the site's routers say."""
    return _chosen.get() or router.db_for_write(Job)


@contextmanager
def use_database(alias: str | None) -> Iterator[None]:
    """Work on the job table of another database alias than the routers say (None: of theirs) until the block ends."""
    token = _chosen.set(alias)
    try:
        yield
    finally:
        _chosen.reset(token)


def jobs_connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the job table's database."""
    return connections[jobs_alias()]


def database_now(alias: str | None = None) -> datetime:
    """Read the database's clock (aware, UTC)."""
    connection = connections[alias or jobs_alias()]
    from .sql import dialect

    return dialect(connection).read_now(connection)


def run_transaction(move: Callable[[], T], alias: str | None = None, *, lock_wait: float | None = None) -> T:
    """Run a move in a transaction of its own, again after a deadlock, a serialization error or a busy database.

    Inside a transaction of the caller the move just joins it: only the outermost transaction can be run again.
    With `lock_wait` it waits no longer than so many seconds for a lock, and is not run again when that was too short.
    """
    using = alias or jobs_alias()
    connection = connections[using]
    if connection.in_atomic_block:
        with transaction.atomic(using=using):
            return move()
    return retry_transient(lambda: _once(move, using, lock_wait), for_locks=lock_wait is None)


def _once(move: Callable[[], T], using: str, lock_wait: float | None) -> T:
    from .sql import dialect

    connection = connections[using]
    with immediate(using), transaction.atomic(using=using):
        if lock_wait is None:
            return move()
        with dialect(connection).limited_lock_wait(connection, lock_wait):
            return move()


def retry_transient(statement: Callable[[], T], *, for_locks: bool = True) -> T:
    """Call `statement` until it is not refused for a passing reason; at most 30 seconds, or 50 times.

    A busy SQLite is waited for by time alone: how long each try takes is the site's option. Unless `for_locks`, a lock that was
    not to be had in time is no such reason.
    """
    started = time.monotonic()
    number = 0
    while True:
        number += 1
        try:
            return statement()
        except DatabaseError as error:
            tried_enough = number >= TRIES and not _is_sqlite_busy(error)
            is_final = not is_transient(error) or (is_lock_timeout(error) and not for_locks)
            if is_final or tried_enough or time.monotonic() - started > BUSY_SECONDS:
                raise
            time.sleep(random.uniform(0.002, 0.01) * min(number, 10))  # noqa: S311  jitter, no secret


@contextmanager
def immediate(using: str) -> Iterator[None]:
    """Make transactions on SQLite take the write lock at BEGIN, so that they wait for it instead of failing midway."""
    connection = connections[using]
    if connection.vendor != "sqlite":
        yield
        return
    connection.ensure_connection()
    before = connection.transaction_mode  # type: ignore[attr-defined]
    connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        connection.transaction_mode = before  # type: ignore[attr-defined]


def do_for_free(
    move: Callable[[Sequence[T], float], object], items: Sequence[T], also: tuple[type[Exception], ...] = ()
) -> list[T]:
    """Do a move for those items whose rows nobody else has locked, and return the others.

    `move(items, lock_wait)` is called for all of them, then for halves until what is locked is alone; it waits for half a second
    the first time and not at all afterwards. Errors of the types in `also` are halved as well, down to one item, whose own it is.
    What was not tried after two seconds is returned, too.
    """
    deadline = time.monotonic() + HALVING_SECONDS

    def do(some: Sequence[T], lock_wait: float) -> list[T]:
        if time.monotonic() > deadline:
            return list(some)
        try:
            move(some, lock_wait)
            return []
        except DatabaseError as error:
            locked = is_lock_timeout(error)
            if not locked and (len(some) == 1 or not isinstance(error, also)):
                raise
        if len(some) == 1:
            return list(some)
        middle = len(some) // 2
        return do(some[:middle], 0.0) + do(some[middle:], 0.0)

    return do(items, LOCK_WAIT_SECONDS)


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of a PostgreSQL error, or an empty string."""
    return getattr(error.__cause__, "sqlstate", None) or ""


def errno(error: BaseException) -> int:
    """Return the error number of a MariaDB or MySQL error, or 0."""
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def is_lock_timeout(error: BaseException) -> bool:
    """Say whether a lock was not to be had in the time that the server was told to wait."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE or errno(error) == LOCK_WAIT_TIMEOUT


def is_transient(error: BaseException) -> bool:
    """Say whether the same transaction may well succeed when it is run again at once."""
    if sqlstate(error) in RETRY_SQLSTATES or errno(error) in RETRY_ERRNOS:
        return True
    return isinstance(error, OperationalError) and _is_sqlite_busy(error)


def _sqlite_code(error: BaseException) -> int | None:
    """Return the primary result code of an SQLite error, None for errors of other databases."""
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_sqlite_busy(error: BaseException) -> bool:
    text = str(error)
    return "database is locked" in text or "database table is locked" in text


def is_away(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be used now, rather than that the statement is wrong."""
    if is_transient(error) or isinstance(error, InterfaceError):
        return True
    if errno(error) in AWAY_ERRNOS or sqlstate(error).startswith(AWAY_SQLSTATES):
        return True
    if isinstance(error, IntegrityError) or not isinstance(error, OperationalError):
        return False
    if (code := _sqlite_code(error)) is not None:
        return code in AWAY_SQLITE
    # A broken connection has no SQLSTATE in psycopg.
    return not sqlstate(error) and not 1000 <= errno(error) < 2000


__all__ = [
    "DbNow",
    "database_now",
    "do_for_free",
    "immediate",
    "is_away",
    "is_lock_timeout",
    "is_transient",
    "jobs_alias",
    "jobs_connection",
    "retry_transient",
    "run_transaction",
]
