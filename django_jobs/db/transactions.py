"""Our own transactions: short, on the jobs' database, run again when the database asks for that.

@transactional
def move(...): ...            # one transaction, retried; joins the caller's when there is one

with lock_wait(0.5): move()   # and wait no longer than that for a row's lock
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .connections import in_transaction, jobs_alias, jobs_connection, use_database
from .dialects import dialect
from .errors import is_busy, is_lock_timeout, is_transient

P = ParamSpec("P")
T = TypeVar("T")

MAX_RETRY_SECONDS = 30.0
MAX_TRIES = 50

_lock_wait: ContextVar[float | None] = ContextVar("django_jobs_lock_wait", default=None)


def database_now() -> datetime:
    """Read the database's clock (aware, UTC)."""
    return dialect().read_now()


def transactional(move: Callable[P, T]) -> Callable[P, T]:
    """Run a function in a transaction of its own, again after a deadlock, a serialization error or a busy database.

    Inside a transaction of the caller it runs under a savepoint and is never repeated: only the outermost transaction can be.
    """

    @wraps(move)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        connection = jobs_connection()
        if connection.in_atomic_block or _is_manual(connection):
            with transaction.atomic(using=connection.alias):
                return move(*args, **kwargs)
        tries = _Tries()
        while True:
            try:
                with _own_transaction(connection):
                    return move(*args, **kwargs)
            except DatabaseError as error:
                tries.rest_or_raise(error)

    return run


def retried(statement: Callable[P, T]) -> Callable[P, T]:
    """Repeat a function that runs a statement outside of a transaction when the database refused it for a passing reason."""

    @wraps(statement)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        tries = _Tries()
        while True:
            try:
                return statement(*args, **kwargs)
            except DatabaseError as error:
                if in_transaction() or _is_manual(jobs_connection()):
                    raise
                tries.rest_or_raise(error)

    return run


def _is_manual(connection: BaseDatabaseWrapper) -> bool:
    """Say whether the caller begins and commits transactions himself, with autocommit off."""
    return not connection.autocommit and connection.connection is not None


@contextmanager
def lock_wait(seconds: float) -> Iterator[None]:
    """Let transactions that begin in the block wait for a row's lock no longer than that, where rows are locked.

    One that waited in vain is not run again: its error, for which `is_lock_timeout` is true, goes to the caller.
    """
    token = _lock_wait.set(seconds)
    try:
        yield
    finally:
        _lock_wait.reset(token)


def after_commit(callback: Callable[[], object]) -> None:
    """Call back once the open transaction has committed, at once without one; what it raises is logged and goes no further.

    The callback works on the same database, whatever the caller of the commit works on.
    """
    alias = jobs_alias()

    def call() -> None:
        with use_database(alias):
            callback()

    transaction.on_commit(call, using=alias, robust=True)


class _Tries:
    """Tries of one transaction: 50 at most, within 30 seconds. A busy SQLite is waited for by time alone, because how long
    each try takes is the site's `timeout`."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._number = 0

    def rest_or_raise(self, error: DatabaseError) -> None:
        """Rest a little before the next try; raise an error that no further try would mend."""
        self._number += 1
        tried_enough = self._number >= MAX_TRIES and not is_busy(error)
        is_final = not is_transient(error) or (is_lock_timeout(error) and _lock_wait.get() is not None)
        if is_final or tried_enough or time.monotonic() - self._started > MAX_RETRY_SECONDS:
            raise error
        time.sleep(random.uniform(0.002, 0.01) * min(self._number, 10))  # noqa: S311  jitter, no secret


@contextmanager
def _own_transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    seconds = _lock_wait.get()
    with immediate(connection), transaction.atomic(using=connection.alias):
        if seconds is None:
            yield
            return
        with dialect().limited_lock_wait(seconds):
            yield


@contextmanager
def immediate(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Make transactions on SQLite take the write lock at BEGIN, so that they wait for it instead of failing midway."""
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


@contextmanager
def snapshot() -> Iterator[None]:
    """See the database as it is now until the end of the block, however long that takes; nobody is held up by it.

    Inside a transaction of the caller it is that transaction's view.
    """
    connection = jobs_connection()
    if connection.in_atomic_block:
        yield
        return
    connection.ensure_connection()
    mode = getattr(connection, "transaction_mode", None)
    if connection.vendor == "sqlite":
        connection.transaction_mode = None  # type: ignore[attr-defined]  # a reader needs no write lock
    try:
        with transaction.atomic(using=connection.alias):
            if connection.vendor != "sqlite":
                with connection.cursor() as cursor:
                    # It holds for the transaction that the next statement begins (MariaDB) or has just begun.
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield
    finally:
        if connection.vendor == "sqlite":
            connection.transaction_mode = mode  # type: ignore[attr-defined]
