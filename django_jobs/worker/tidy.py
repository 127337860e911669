"""Put back what a handler may have changed around itself: its directory and its database connections."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from django.db import connections

from django_jobs.lifecycle.transactions import jobs_alias

_moves = 0
_is_watching = False
_lock = threading.Lock()
_homes: set[int] = set()


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    """Count how often somebody other than us has changed the directory; this is an audit hook."""
    global _moves
    if event == "os.chdir" and arguments[0] not in _homes:
        _moves += 1


def _watch() -> None:
    """Have `_notice` called. A system call after each job would cost as much as a small job, and hands the interpreter over."""
    global _is_watching
    with _lock:
        if not _is_watching:
            sys.addaudithook(_notice)
            _is_watching = True


class Tidy:
    """Puts back the directory, which belongs to the whole process, and closes broken connections to other databases."""

    def __init__(self) -> None:
        self._home: int | None = None
        self._moves = 0

    def begin(self) -> None:
        """Remember the working directory; in a script it is the one of this call."""
        _watch()
        self._moves = _moves
        self._home = os.open(".", os.O_RDONLY)
        _homes.add(self._home)

    def after_job(self) -> None:
        """Restore the working directory if somebody has changed it."""
        if self._moves != _moves:
            self._moves = _moves
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
