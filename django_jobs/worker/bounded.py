"""Database work that must hold up neither the start nor the end of a process: a server may have fallen silent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Generic, TypeVar

from django.db import Error, connections

from django_jobs.lifecycle import leases

from .flag import Flag

T = TypeVar("T")
logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.05
RELEASE_SECONDS = 3.0  # that a process gets to hand back what it holds and to take its row away


class Work(threading.Thread, Generic[T]):
    """Does something in a thread of its own, with connections of its own; whoever waits for it may give up."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        super().__init__(name=name, daemon=True)
        self._context = copy_context()
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it; this is the thread."""
        try:
            self._result = self._context.run(self._do)
        except BaseException as error:  # for whoever waits
            self._error = error
        finally:
            connections.close_all()

    def _do(self) -> T:
        leases.limit_waits_of_loop()
        return self._work()

    def result(self) -> T:
        """Return what the work returned, or raise what it raised; call it once the thread has ended."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def do_within(seconds: float, work: Callable[[], object]) -> bool:
    """Do some work, and wait for it at most so many seconds; return whether it was done. What it leaves undone is rescued."""
    thread = Work("last work", work)
    try:
        thread.start()
        thread.join(seconds)
        if not thread.is_alive():
            thread.result()
            return True
    except (Error, RuntimeError):  # RuntimeError: the system gives no further thread
        logger.debug("the last work of this process failed; what it left is rescued", exc_info=True)
    return False


def unless(stop: Flag, work: Callable[[], T]) -> T | None:
    """Return what some work returns, or None once `stop` is set: a thread that waits for a server obeys no signal."""
    thread = Work("first work", work)
    thread.start()
    while thread.is_alive():
        if stop.is_set():
            return None
        thread.join(LOOK_SECONDS)
    return thread.result()
