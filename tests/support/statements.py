"""Break a connection at its n-th statement, as a server does that ends it: before the statement is done, or after."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from django.db import OperationalError, connections


class Breaker:
    """Counts the statements and commits of this thread's connection, and ends its session at the n-th."""

    def __init__(self, at: int, *, reply_is_lost: bool, end_session: Callable[[], None]) -> None:
        self.has_broken = False
        self._left = at
        self._reply_is_lost = reply_is_lost
        self._end_session = end_session

    def step(self, action: Callable[[], Any]) -> Any:
        """Do the action; at the n-th break before it, or after it."""
        self._left -= 1
        if self._left:
            return action()
        self.has_broken = True
        if self._reply_is_lost:
            action()
        self._end_session()
        if self._reply_is_lost:
            raise OperationalError("the connection was lost before the reply came")
        return action()


@contextmanager
def broken_connection(at: int, *, reply_is_lost: bool = False) -> Iterator[Breaker]:
    """End this thread's session at its `at`-th statement, from 1; a COMMIT counts as one.

    With `reply_is_lost` the statement is done and only its answer is missing. SQLite has no session to end: it refuses the
    statement as it does on a broken disk.
    """
    connection = connections["default"]
    connection.ensure_connection()
    kind = type(connection)
    commit: Callable[[Any], Any] = kind._commit  # type: ignore[attr-defined]
    with ExitStack() as stack:
        breaker = Breaker(at, reply_is_lost=reply_is_lost, end_session=_session_end(connection, stack))
        stack.enter_context(mock.patch.object(kind, "_commit", lambda self: breaker.step(lambda: commit(self))))
        stack.enter_context(
            connection.execute_wrapper(
                lambda run, *args: breaker.step(lambda: run(*args))
            )  # sql, params, many, context
        )
        yield breaker


def _session_end(connection: Any, stack: ExitStack) -> Callable[[], None]:
    """Return what ends the session of a connection, from another one."""
    if connection.vendor == "sqlite":
        return _refuse
    killer = connection.copy()
    stack.callback(killer.close)
    if connection.vendor == "postgresql":
        session, statement = connection.connection.info.backend_pid, "SELECT pg_terminate_backend(%s, 5000)"
    else:
        session, statement = connection.connection.thread_id(), "KILL %s"

    def end() -> None:
        with killer.cursor() as cursor:
            cursor.execute(statement, [session])

    return end


def _refuse() -> None:
    raise OperationalError("disk I/O error")
