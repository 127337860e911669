"""What a handler leaves behind must not reach the next job: its sessions (`db/sessions.py`), directory, local variables."""

from __future__ import annotations

import os
import sys
import threading
from traceback import clear_frames
from typing import Any

from django.db import connections

from django_jobs.db.connections import jobs_alias
from django_jobs.db.sessions import HandlerSessions


def release_locals(error: BaseException | None) -> None:
    """Let go of the local variables of a handler that raised; the traceback keeps its files, functions and lines.

    The exception goes into logs and signals once its outcome is settled, with many others. Until then it would keep alive all
    that the handler held, which may be large, and error trackers would send it away, payloads among it.
    """
    errors, seen = [error], set()
    while errors:
        error = errors.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        clear_frames(error.__traceback__)
        errors += [error.__cause__, error.__context__]
        errors += error.exceptions if isinstance(error, BaseExceptionGroup) else ()


class HandlerCleanup:
    """Restores the working directory, which belongs to the whole process, and throws sessions away that were changed."""

    def __init__(self) -> None:
        self.sessions = HandlerSessions()
        self._home: int | None = None
        self._changes = 0
        self._has_run = False

    def begin(self) -> None:
        """Watch this thread's sessions, and remember the working directory; in a script it is the one of this call."""
        self.sessions.begin()
        _count_changes_of_directory()
        self._changes = _changes_of_directory
        try:
            self._home = os.open(".", os.O_RDONLY)
        except OSError:  # it is gone, or may not be read: then it is not restored
            return
        _homes.add(self._home)

    def after_job(self) -> None:
        """Restore the working directory if somebody has changed it."""
        self._has_run = True
        if self._changes != _changes_of_directory:
            self._changes = _changes_of_directory
            self._go_home()

    def after_batch(self) -> None:
        """Restore the directory even if nobody saw it change; let Django close connections to other databases that are no use.

        Nothing where the thread has only handed jobs to the event loop.
        """
        if not self._has_run:
            return
        self._has_run = False
        self._go_home()
        ours = jobs_alias()
        for connection in connections.all(initialized_only=True):
            if connection.alias != ours and not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()

    def close(self) -> None:
        """Let go of the sessions and the directory."""
        self.sessions.end()
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
