"""Run functions at the same time, each on its own database connection, and fail when one of them fails."""

import faulthandler
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.db import connections

T = TypeVar("T")
START_SECONDS = 120.0  # within which all threads have started


def run_in_threads(work: Callable[[], T] | Sequence[Callable[[], T]], count: int = 1, timeout: float = 120) -> list[T]:
    """Run one function `count` times, or each of a list of functions once, all started together; return their results.

    Each thread closes its connections. The first exception is raised anew here; threads that are still there `timeout` seconds
    after all of them had started raise an AssertionError with every thread's stack.
    """
    functions = [work] * count if callable(work) else list(work)
    barrier = threading.Barrier(len(functions) + 1)
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            barrier.wait(START_SECONDS)
            results[place] = functions[place]()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    barrier.wait(START_SECONDS)
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise AssertionError(f"threads still run after {timeout:g} s\n{_stacks()}")
    return results


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
