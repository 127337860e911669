"""An app of the tests that lets a worker process signal itself at a named point of a move, as often as the test wants.

It is installed only where `JOBS_TEST_POINT` or `JOBS_TEST_BREAK` is in the environment, and changes functions in memory: no code
of the product knows of it.
"""

import json
import os
import signal
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

VARIABLE = "JOBS_TEST_POINT"
SETTLED = "after the settle commits"  # this point adds the ids of the jobs that were settled to COUNT_FILE.settled


def _always(result: Any) -> bool:
    return True


# Where a point is: a name in a module, before or after it is called, and for which results.
POINTS: dict[str, tuple[str, str, str, Callable[[Any], bool]]] = {
    "after the claim commits": ("django_jobs.worker.thread", "claim", "after", bool),
    "before the handler": ("django_jobs.worker.executor", "call", "before", _always),
    "after the handler": ("django_jobs.worker.executor", "call", "after", _always),
    "before the settle commits": ("django_jobs.lifecycle.settle", "_announce_completed", "after", _always),
    SETTLED: ("django_jobs.worker.settler", "settle_unlocked", "after", _always),
    "before an atomic job commits": ("django_jobs.worker.executor", "complete_in_transaction", "after", bool),
    "inside the wake": ("django_jobs.lifecycle.dependents", "satisfy", "after", _always),
    "inside a tick": ("django_jobs.scheduling.ticks", "_submit", "after", _always),
}


def at_point(name: str, count_file: Path, *, times: int, number: signal.Signals = signal.SIGKILL) -> dict[str, str]:
    """Return the environment of a worker whose process sends itself the signal at this point, the first `times` times.

    All processes together count: each time adds a byte to the file.
    """
    assert name in POINTS
    return {VARIABLE: json.dumps([name, str(count_file), times, int(number)])}


def arm() -> None:
    """Change the function at the point."""
    name, count_file, times, number = json.loads(os.environ[VARIABLE])
    module_name, function_name, when, counts = POINTS[name]
    module = import_module(module_name)
    function = getattr(module, function_name)

    def reach() -> None:
        with open(count_file, "ab", buffering=0) as file:
            file.write(b".")
            if file.tell() <= times:
                os.kill(os.getpid(), number)

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            reach()
        result = function(*args, **kwargs)
        if when == "after" and counts(result):
            if name == SETTLED:
                postponed = {outcome.job.id for outcome in result}
                with open(f"{count_file}.settled", "a") as file:
                    file.writelines(f"{outcome.job.id}\n" for outcome in args[0] if outcome.job.id not in postponed)
            reach()
        return result

    setattr(module, function_name, wrapped)
