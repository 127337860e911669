"""Threads of a worker process that cannot start, or break: at their first statement or later, as often as the test wants."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

VARIABLE = "JOBS_TEST_BREAK"
# By the beginning of the thread's name: the function of ours that it calls first of all, and the one that it repeats.
LOOPS = {
    "lease": ("django_jobs.worker.lease", "Lease"),
    "watchdog": ("django_jobs.worker.watchdog", "Watchdog"),
    "maintenance": ("django_jobs.worker.maintenance", "Maintenance"),
    "listener": ("django_jobs.worker.listener", "Listener"),
    "coroutines": ("django_jobs.worker.coroutines", "Coroutines"),
    "worker": ("django_jobs.worker.thread", "Worker"),
}
WAYS = ("cannot start", "breaks at once", "breaks later")


def broken(thread: str, way: str, count_file: Path, *, times: int = 1_000) -> dict[str, str]:
    """Return the environment of workers in which the thread fails in this way, the first `times` times.

    Each time adds a line to the file: when it was, in seconds since 1970.
    """
    assert way in WAYS
    return {VARIABLE: json.dumps([thread, way, str(count_file), times])}


def arm() -> None:
    """Change what the thread calls."""
    thread, way, count_file, times = json.loads(os.environ[VARIABLE])

    def fail(error: BaseException) -> None:
        with open(count_file, "a") as file:
            file.write(f"{time.time()}\n")
        if len(Path(count_file).read_text().splitlines()) <= times:
            raise error

    def before(owner: Any, name: str, error: Callable[[], BaseException], is_it: Callable[..., bool]) -> None:
        function = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if is_it(*args):
                fail(error())
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    def in_it(*args: Any) -> bool:
        return threading.current_thread().name.startswith(thread)

    if way == "cannot start":
        before(
            threading.Thread,
            "start",
            lambda: RuntimeError("can't start new thread"),
            lambda started: started.name.startswith(thread),
        )
    elif way == "breaks later":
        module, name = LOOPS[thread]
        before(getattr(import_module(module), name), "step", lambda: SystemExit("as the test wants"), in_it)
    elif thread == "event loop":
        before(asyncio, "set_event_loop", lambda: OSError(24, "Too many open files"), in_it)
    elif thread == "worker":
        cleanup = import_module("django_jobs.worker.cleanup")
        before(cleanup.HandlerCleanup, "begin", lambda: OSError(24, "Too many open files"), in_it)
    else:
        leases = import_module("django_jobs.lifecycle.leases")
        before(leases, "limit_waits_of_loop", lambda: RuntimeError("as the test wants"), in_it)
