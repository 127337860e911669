"""The warm subprocesses of a worker process: started when they are needed, shared by its threads, one job at a time each."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.1
BOOT_SECONDS = 60.0
MAX_JOBS_PER_CHILD = 200


class Subprocesses:
    """Whoever takes a subprocess has it alone until it is given back, alive or ended."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._condition = threading.Condition()
        self._idle: list[Child] = []
        self._number = 0
        self._booting = 0
        self._changed_at = 0.0

    def take(self, patience: float) -> Child | None:
        """Return a subprocess that waits for orders; None when none comes up, which is no job's fault.

        Args:
            patience: with all in use, another one is started once none was given back for so many seconds.
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
        child: Child | None = None
        try:
            child = self._started()
        finally:
            with self._condition:
                self._booting -= 1
                self._number -= child is None
                self._changed()
        return child

    def give_back(self, child: Child) -> None:
        """Let the next one have a subprocess; one that has ended or run enough jobs is replaced when one is needed."""
        with self._condition:
            if child.is_alive and child.jobs < MAX_JOBS_PER_CHILD:
                self._idle.append(child)
            else:
                self._end(child)
            self._changed()

    def end_idle(self) -> None:
        """End those that nobody uses."""
        with self._condition:
            while self._idle:
                self._end(self._idle.pop())

    def _end(self, child: Child) -> None:
        self._number -= 1
        if not child.has_ended:
            child.end(0.0)

    def _changed(self) -> None:
        self._changed_at = time.monotonic()
        self._condition.notify_all()

    def _started(self) -> Child | None:
        try:
            child = Child()
        except OSError:
            logger.exception("cannot start a subprocess for isolated jobs")
            return None
        if child.answer(lambda: self._process.is_lost, BOOT_SECONDS) == "ready":
            return child
        logger.error("a subprocess for isolated jobs %s before it was ready", child.end(0.0))
        return None


class Child:
    """A subprocess in a process group of its own. When this process dies, it sees the end of its pipe and leaves."""

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._popen = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-m", "django_jobs.worker.isolated", str(orders), str(answers)],
            pass_fds=(orders, answers),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        os.close(orders)
        os.close(answers)
        self._buffer = b""
        self.jobs = 0
        self.has_ended = False

    @property
    def is_alive(self) -> bool:
        """Whether the subprocess still runs."""
        return not self.has_ended and self._popen.poll() is None

    def send(self, order: dict[str, Any]) -> None:
        """Give the child its next job."""
        self.jobs += 1
        try:
            os.write(self._orders, json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            pass  # the answer says that it died

    def answer(self, wants_end: Callable[[], bool], seconds: float = float("inf")) -> str:
        """Wait for a line of the child; `died` at the end of its pipe, `ended` when `wants_end()` says so."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._answers], [], [], LOOK_SECONDS)
            if readable:
                read = os.read(self._answers, 65_536)
                if not read:
                    return "died"
                self._buffer += read
            elif wants_end() or time.monotonic() > deadline:
                return "ended"
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def end(self, grace: float) -> str:
        """End the child and every process it started: TERM, then KILL after `grace` seconds; return how it died."""
        if grace and self.is_alive:
            self._signal(signal.SIGTERM)
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        self._signal(signal.SIGKILL)
        code = self._popen.wait()
        self.has_ended = True
        os.close(self._orders)
        os.close(self._answers)
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._popen.send_signal(number)
