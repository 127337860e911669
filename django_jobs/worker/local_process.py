"""The worker process inside a script: one per operating-system process and database, for workers that are started by hand."""

from __future__ import annotations

import atexit
import os
import threading

from django.db import connections

from django_jobs.db.connections import on_database, usual_alias
from django_jobs.models import WorkerProcess

from .process import Process

_lock = threading.Lock()
_processes: dict[str, tuple[Process, int]] = {}  # by alias, with the number of the operating-system process


def local_process(database: str | None = None) -> Process:
    """Return the worker process of this script: one per operating-system process and database, started when first used.

    Args:
        database: the alias of the database; None: that of the routers.
    """
    database = database or usual_alias()
    with _lock:
        process, pid = _processes.get(database, (None, 0))
        if process is not None and pid == os.getpid() and _is_over(process):
            _end(process)
            process = None
        if process is None or process.is_stopping or pid != os.getpid():
            process, pid = Process(database=database), os.getpid()
            _processes[database] = (process, pid)
            atexit.register(_leave, process, pid)
        return process


def stop_local_process(grace: float = 5.0) -> None:
    """Stop the worker processes of this script, if there are any; the next `local_process()` makes another.

    Args:
        grace: seconds for what still runs.
    """
    with _lock:
        for process, pid in _processes.values():
            if pid == os.getpid() and not process.has_ended:
                process.stop(grace=grace)


def _is_over(process: Process) -> bool:
    """Whether a process stops, or its row is gone: a test has emptied the tables, or it was declared dead."""
    if process.is_stopping:
        return True
    with on_database(process.state.database):
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
