"""What a server does to its clients: end their connections, refuse their writes, or fall silent."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from django.db import DatabaseError, connection

from .proc import children
from .servers import PrivateServer


def end_connections() -> int:
    """End every session of the database under test but this thread's own, and return how many there were."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return int(cursor.fetchone()[0])
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        ended = 0
        for (session,) in cursor.fetchall():
            with suppress(DatabaseError):  # it has left by itself meanwhile
                cursor.execute(f"KILL {session:d}")
                ended += 1
        return ended


def keep_ending_connections(seconds: float, every: float = 0.3, meanwhile: Callable[[], object] | None = None) -> int:
    """End all connections again and again, and return how many there were; call `meanwhile` after each time."""
    ended, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        ended += end_connections()
        if meanwhile is not None:
            meanwhile()
        time.sleep(every)
    return ended


@contextmanager
def read_only() -> Iterator[None]:
    """Make a private server refuse writes, also in sessions that are open, until the block ends.

    On MariaDB it says so only to accounts without the right to write all the same, which root has.
    """
    begin, end = {
        "postgresql": ("ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET ALL"),
        "mysql": ("SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"),
    }[connection.vendor]
    _as_administrator(begin)
    try:
        yield
    finally:
        _as_administrator(end)


def _as_administrator(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_reload_conf()")


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    """Stop every process of a server, so that its sessions stay established and silent."""
    assert server.pid is not None
    pids = [server.pid, *children(server.pid)]
    _signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_all(pids, signal.SIGCONT)


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # a server's processes come and go
            os.kill(pid, number)
