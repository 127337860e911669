"""The worker process inside a script: one per operating-system process, for workers that are started by hand."""

from __future__ import annotations

import atexit
import os
import threading

from django.db import connections

from django_jobs.models import WorkerProcess

from .process import Process

_lock = threading.Lock()
_process: Process | None = None
_pid = 0


def local_process() -> Process:
    """Return the worker process of this script: one per operating-system process, started when first used."""
    global _process, _pid
    with _lock:
        if _process is not None and _pid == os.getpid() and _is_over(_process):
            _end(_process)
            _process = None
        if _process is None or _process.is_stopping or _pid != os.getpid():
            _process, _pid = Process(), os.getpid()
            atexit.register(_leave, _process, _pid)
        return _process


def stop_local_process(grace: float = 5.0) -> None:
    """Stop the worker process of this script, if there is one; the next `local_process()` makes another.

    Args:
        grace: seconds for what still runs.
    """
    with _lock:
        if _process is not None and _pid == os.getpid() and not _process.has_ended:
            _process.stop(grace=grace)


def _is_over(process: Process) -> bool:
    """Whether a process stops, or its row is gone: a test has emptied the tables, or it was declared dead."""
    if process.is_stopping:
        return True
    return process.lease.is_alive() and not WorkerProcess.objects.registered().filter(pk=process.id).exists()


def _end(process: Process) -> None:
    """End the loops of a process that is over, which would go on for ever; what it still runs may finish."""
    if process.has_ended:
        return
    if process.state.is_lost or not process.is_stopping:
        process.stop(graceful=False)
    else:  # recycled, because a thread ignored its timeout
        threading.Thread(target=_stop, args=(process,), name=f"end of {process.id}", daemon=True).start()


def _stop(process: Process) -> None:
    try:
        process.stop()
    finally:
        connections.close_all()


def _leave(process: Process, pid: int) -> None:
    if os.getpid() == pid and not process.has_ended:
        process.stop(grace=5.0)
