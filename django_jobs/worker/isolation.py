"""Isolation: run a job alone in a subprocess that can be killed. The child settles its own job; we watch over it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django_jobs.conf import get_settings
from django_jobs.exceptions import Cancelled, TimedOut
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.outcome import Completed, Outcome
from django_jobs.models import AttemptOutcome, JobStatus

from .executor import crashed, execute, failure
from .run import Run

if TYPE_CHECKING:
    from .process import Process

logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.1
BOOT_SECONDS = 60.0
NOT_STARTED_SECONDS = 5.0
MAX_JOBS_PER_CHILD = 200


class Isolation:
    """A worker thread's own subprocess: started with its first isolated job, kept for the next ones, never shared."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._child: Child | None = None
        self.is_busy = False

    def run_alone(self, run: Run, handler: Handler, handlers: Registry) -> Completed | Outcome | None:
        """Run a job in the subprocess; None when the child has settled it.

        A job whose handler the child does not know (one that a script registered) runs in this process.
        """
        self.is_busy = True
        try:
            return self._run_alone(run, handler, handlers)
        finally:
            self.is_busy = False

    def _run_alone(self, run: Run, handler: Handler, handlers: Registry) -> Completed | Outcome | None:
        child = self._ready_child()
        if child is None:
            return Outcome(
                job=run.job,
                status=JobStatus.SCHEDULED,
                attempt=AttemptOutcome.RELEASED,
                delay=NOT_STARTED_SECONDS,
                error="no subprocess could be started to run it in",
            )
        run.started = time.monotonic()
        run.deadline = None if run.job.timeout_seconds is None else run.started + run.job.timeout_seconds
        child.send({"id": run.job.id, "fence": run.job.fence, "process_id": self._process.id})
        answer = child.answer(lambda: self._wants_end(run))
        if answer == "settled":
            return None
        if answer == "unknown":
            return execute(run, handler, handlers, self._process.id)
        self._child = None
        how = child.end(get_settings().TIMEOUT_GRACE_SECONDS if answer == "ended" else 0.0)
        if run.timed_out:
            return failure(
                run,
                handler,
                handlers,
                TimedOut(f"timed out after {run.job.timeout_seconds} seconds; its process was ended"),
            )
        if run.cancel_requested:
            return failure(run, handler, handlers, Cancelled())
        if run.lost or self._process.is_lost:
            return None
        return crashed(run, handler, handlers, how)

    def close(self) -> None:
        """End the subprocess."""
        child, self._child = self._child, None
        if child is not None:
            child.end(0.0)

    def _ready_child(self) -> Child | None:
        """Return a subprocess that waits for orders; None when none comes up, which is no job's fault."""
        if self._child is not None and (self._child.jobs >= MAX_JOBS_PER_CHILD or not self._child.is_alive):
            self.close()
        if self._child is None:
            try:
                self._child = Child()
            except OSError:
                logger.exception("cannot start a subprocess for isolated jobs")
                return None
            if self._child.answer(lambda: self._process.is_lost, BOOT_SECONDS) != "ready":
                child, self._child = self._child, None
                logger.error("a subprocess for isolated jobs %s before it was ready", child.end(0.0))
        return self._child

    def _wants_end(self, run: Run) -> bool:
        if run.deadline is not None and time.monotonic() > run.deadline:
            run.timed_out = True
        return run.timed_out or run.cancel_requested or run.lost or run.abandoned or self._process.is_lost


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

    @property
    def is_alive(self) -> bool:
        """Whether the subprocess still runs."""
        return self._popen.poll() is None

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
