"""A handler that forks, as `multiprocessing` does: its child has default signal handlers, and none of our lines and sessions."""

from __future__ import annotations

import os
import signal
import socket
import weakref
from collections.abc import Callable
from typing import Any

from django.db import connections

_lines: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_is_ours: Callable[[Any], bool] = lambda handler: False  # noqa: E731  replaced by `watch_forks`
_is_watching = False
_kept: list[Any] = []


def watch_forks(is_ours: Callable[[Any], bool]) -> None:
    """Clean up in every child that this process forks from now on.

    Args:
        is_ours: says whether a signal handler is one of this library's; those of the site stay.
    """
    global _is_ours, _is_watching
    _is_ours = is_ours
    if not _is_watching:
        os.register_at_fork(after_in_child=_after_fork)
        _is_watching = True


def close_in_children(line: socket.socket) -> None:
    """Close a line in forked children: the process at its other end would wait for its end as long as they live."""
    _lines.add(line)


def _after_fork() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        if _is_ours(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    for line in list(_lines):
        line.close()
    for connection in connections.all(initialized_only=True):
        # Kept and never closed: to close it here would end the session that the parent still uses.
        _kept.append(connection.connection)
        connection.connection = None
        connection.in_atomic_block = connection.needs_rollback = connection.closed_in_transaction = False
        connection.atomic_blocks, connection.savepoint_ids, connection.run_on_commit = [], [], []
        if pools := getattr(connection, "_connection_pools", None):  # their sessions are the parent's, too
            _kept.append(dict(pools))
            pools.clear()
