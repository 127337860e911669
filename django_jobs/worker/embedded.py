"""The worker process inside a script: one per operating-system process, for workers that are started by hand."""

from __future__ import annotations

import atexit
import os
import threading

from django.db import connections

from django_jobs.lifecycle import processes

from .process import Process

_embedded: Process | None = None
_embedded_lock = threading.Lock()


def embedded() -> Process:
    """Return the worker process of this script: one per operating-system process, started when first used."""
    global _embedded
    with _embedded_lock:
        if _embedded is not None and _embedded_pid == os.getpid() and _is_over(_embedded):
            _end(_embedded)
            _embedded = None
        if _embedded is None or _embedded.is_stopping or _embedded_pid != os.getpid():
            _renew()
        assert _embedded is not None
        return _embedded


def stop_embedded(grace: float = 5.0) -> None:
    """Stop the worker process of this script, if there is one; the next `embedded()` makes another."""
    with _embedded_lock:
        if _embedded is not None and _embedded_pid == os.getpid() and not _embedded.has_ended:
            _embedded.stop(grace=grace)


def _end(process: Process) -> None:
    """End the loops of a process that is over, which would go on for ever; what it still runs may finish."""
    if process.has_ended:
        return
    if process.is_lost or not process.is_stopping:
        process.stop(graceful=False)
    else:  # recycled, because a thread ignored its timeout
        threading.Thread(target=_stop, args=(process,), name=f"end of {process.id}", daemon=True).start()


def _stop(process: Process) -> None:
    try:
        process.stop()
    finally:
        connections.close_all()


def _is_over(process: Process) -> bool:
    """Say whether a process stops, or its row is gone: a test has emptied the tables, or it was declared dead."""
    return process.is_stopping or (process.heartbeat.is_alive() and not processes.is_registered(process.id))


_embedded_pid = 0


def _renew() -> None:
    global _embedded, _embedded_pid
    _embedded, _embedded_pid = Process(), os.getpid()
    atexit.register(_leave, _embedded, os.getpid())


def _leave(process: Process, pid: int) -> None:
    if os.getpid() == pid and not process.has_ended:
        process.stop(grace=5.0)
