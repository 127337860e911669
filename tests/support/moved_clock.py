"""A clock of SQLite's that a test sets: every connection that is opened within the block reads it as the database's."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created


class Clock:
    """What `STRFTIME(…, 'now')` reads."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self._own = threading.local()

    def strftime(self, pattern: str, moment: object = "now", *modifiers: object) -> Any:
        """Stand in for SQLite's function."""
        if not hasattr(self._own, "sqlite"):
            self._own.sqlite = sqlite3.connect(":memory:")
        if isinstance(moment, str) and moment.lower() == "now":
            moment = self.now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        marks = ", ".join("?" * (2 + len(modifiers)))
        return self._own.sqlite.execute(f"SELECT strftime({marks})", (pattern, moment, *modifiers)).fetchone()[0]

    def move(self, delta: timedelta) -> None:
        """Let it go by so much, or back."""
        self.now += delta


@contextmanager
def moved_clock(now: datetime) -> Iterator[Clock]:
    """Set the database's clock, for connections that are opened from now on; this thread's is opened anew."""
    clock = Clock(now)

    def install(connection: Any, **kwargs: Any) -> None:
        connection.connection.create_function("strftime", -1, clock.strftime)

    connections.close_all()
    connection_created.connect(install)
    try:
        yield clock
    finally:
        connection_created.disconnect(install)
        connections.close_all()
