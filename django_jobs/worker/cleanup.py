"""What a handler leaves behind must not reach the next job: changes to its database session, the directory, connections."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from django.db import connections

from django_jobs.db.connections import jobs_alias

# What the driver knows without a question (an open transaction on PostgreSQL and SQLite) is not looked for here.
LASTING = {"SET", "RESET", "USE", "LOCK", "LISTEN", "PREPARE", "PRAGMA", "ATTACH", "DISCARD", "XA"}
LASTING_ON_MYSQL = {*LASTING, "BEGIN", "START"}


class SessionWatch:
    """An `execute_wrapper` that remembers whether one of the statements changed the session; that outlives the handler."""

    def __init__(self) -> None:
        self.has_changed = False

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Look at the first word and pass the statement on."""
        words = str(sql[:40] if isinstance(sql, str) else sql).split(None, 1)
        if words and words[0].upper().rstrip(";") in (
            LASTING_ON_MYSQL if context["connection"].vendor == "mysql" else LASTING
        ):
            self.has_changed = True
        return execute(sql, params, many, context)


class HandlerCleanup:
    """Restores the working directory, which belongs to the whole process, and closes broken connections to other databases."""

    def __init__(self) -> None:
        self._home: int | None = None
        self._changes = 0

    def begin(self) -> None:
        """Remember the working directory; in a script it is the one of this call."""
        _count_changes_of_directory()
        self._changes = _changes_of_directory
        try:
            self._home = os.open(".", os.O_RDONLY)
        except OSError:  # it is gone, or may not be read: then it is not restored
            return
        _homes.add(self._home)

    def after_job(self) -> None:
        """Restore the working directory if somebody has changed it."""
        if self._changes != _changes_of_directory:
            self._changes = _changes_of_directory
            self._go_home()

    def after_batch(self) -> None:
        """Restore the directory even if nobody saw it change; let Django close connections to other databases that are no use."""
        self._go_home()
        ours = jobs_alias()
        for connection in connections.all(initialized_only=True):
            if connection.alias != ours and not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()

    def close(self) -> None:
        """Let go of the directory."""
        if self._home is not None:
            _homes.discard(self._home)
            os.close(self._home)
            self._home = None

    def _go_home(self) -> None:
        if self._home is not None:
            os.fchdir(self._home)


# An audit hook counts the changes: to ask for the directory after each job would be a system call, which costs as much as a small
# job and hands the interpreter to another thread.
_changes_of_directory = 0
_is_counting = False
_lock = threading.Lock()
_homes: set[int] = set()


def _count_changes_of_directory() -> None:
    global _is_counting
    with _lock:
        if not _is_counting:
            sys.addaudithook(_notice)
            _is_counting = True


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    """Count a change of the directory that is not ours."""
    global _changes_of_directory
    if event == "os.chdir" and arguments[0] not in _homes:
        _changes_of_directory += 1
