"""The warm children of a worker process: started when they are needed, shared by its threads, one job at a time each.

They stay warm because a start of Django takes longer than most jobs, and are replaced now and then because handlers leak.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from django_jobs.worker.state import WorkerState

from .group import LOOK_SECONDS
from .protocol import Child

logger = logging.getLogger("django_jobs")
BOOT_SECONDS = 60.0
MAX_JOBS_PER_CHILD = 200


class ChildPool:
    """Whoever takes a child has it alone until it is given back, alive or ended."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._condition = threading.Condition()
        self._idle: list[IsolatedChild] = []
        self._number = 0
        self._booting = 0
        self._changed_at = 0.0

    def take(self, patience: float) -> IsolatedChild | None:
        """Return a child that waits for orders; None when none comes up, which is no job's fault.

        Args:
            patience: with all in use, another one is started once none was given back for so many seconds. After a kill, the
                suspects of all threads so share one start (half a second of computing) instead of making one each.
        """
        with self._condition:
            while True:
                while self._idle:
                    idle = self._idle.pop()
                    if idle.is_alive:
                        return idle
                    self._end(idle)
                if not self._number or not patience:
                    break
                if not self._booting and time.monotonic() - self._changed_at > patience:
                    break
                self._condition.wait(LOOK_SECONDS)
            self._number += 1
            self._booting += 1
        child: IsolatedChild | None = None
        try:
            child = self._start()
        finally:
            with self._condition:
                self._booting -= 1
                self._number -= child is None
                self._changed()
        return child

    def give_back(self, child: IsolatedChild) -> None:
        """Let the next one have a child; one that has ended or run enough jobs is replaced when one is needed."""
        with self._condition:
            if child.is_alive and child.jobs < MAX_JOBS_PER_CHILD:
                self._idle.append(child)
            else:
                self._end(child)
            self._changed()

    def end_idle(self) -> None:
        """End the children that nobody uses."""
        with self._condition:
            while self._idle:
                self._end(self._idle.pop())

    def _end(self, child: IsolatedChild) -> None:
        self._number -= 1
        if not child.has_ended:
            child.end(0.0)

    def _changed(self) -> None:
        self._changed_at = time.monotonic()
        self._condition.notify_all()

    def _start(self) -> IsolatedChild | None:
        try:
            child = IsolatedChild()
        except OSError:
            logger.exception("cannot start a child for isolated jobs")
            return None
        if child.answer(lambda: self._state.is_lost, BOOT_SECONDS) == "ready":
            return child
        child.end(0.0)
        logger.error("a child for isolated jobs %s before it was ready", child.how_it_ended)
        return None


class IsolatedChild(Child):
    """A child that runs one job at a time. When this process dies, the child sees the end of the line and leaves."""

    def __init__(self) -> None:
        super().__init__("--isolated")
        self.jobs = 0
        self.has_ended = False

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return not self.has_ended and self.popen.poll() is None

    def order(self, job: dict[str, Any]) -> None:
        """Give the child its next job; one that has died meanwhile does not answer."""
        self.jobs += 1
        self.line.send("run", json.dumps(job))

    def answer(self, wants_end: Callable[[], bool], seconds: float = float("inf")) -> str:
        """Wait for the child: `ready` when it has started, then what it answers to an order.

        Returns `died` at the end of the line, and `ended` when `wants_end()` says so, or after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not self.line.has_ended:
            for word, text in self.line.receive(LOOK_SECONDS):
                return "ready" if word == "hello" else text
            if wants_end() or time.monotonic() > deadline:
                return "ended"
        return "died"

    def end(self, grace: float) -> None:
        """End the child and every process that it has started: TERM, then KILL after `grace` seconds."""
        super().end(grace)
        self.has_ended = True
        self.line.close()

    @property
    def how_it_ended(self) -> str:
        """How a child ended: `exited with code 1`."""
        code = self.popen.returncode
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
