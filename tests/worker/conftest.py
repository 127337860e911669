"""A worker process of the test's own, in this interpreter, and handlers that are known to it alone."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from django_jobs.handlers import Registry, make_handler, make_handler_with_arguments, registry
from django_jobs.lifecycle.submit import submit
from django_jobs.models import Job
from django_jobs.worker import buffer
from django_jobs.worker.process import Process
from django_jobs.worker.run import Run
from django_jobs.worker.thread import start_workers

Handle = Callable[..., None]


class Bench:
    """Handlers, the jobs for them, and a process that runs them."""

    def __init__(self, stack: ExitStack) -> None:
        self.handlers = Registry(registry)
        self._stack = stack

    def handle(self, job_type: str, function: Callable[..., Any], **options: Any) -> None:
        """Register a handler."""
        self.handlers.replace(make_handler(function, job_type, options))

    def handle_with_arguments(self, job_type: str, function: Callable[..., Any], **options: Any) -> None:
        """Register a handler as `@job` does: it gets what its signature asks for."""
        self.handlers.replace(make_handler_with_arguments(function, job_type, options))

    def submit(self, job_type: str, payload: dict[str, Any] | None = None, **options: Any) -> Job:
        """Submit a job to it."""
        return submit(job_type, payload, handlers=self.handlers, options=options)

    def start(self, threads: int = 1, **options: Any) -> Process:
        """Start a process; it is stopped at the end of the test."""
        process = Process(threads=threads, **options)
        start_workers(process, handlers=self.handlers, poll_interval=0.05)
        self._stack.callback(lambda: process.has_ended or process.stop(grace=10))
        return process

    def run(self, *jobs: Job, threads: int = 1, timeout: float = 60) -> list[str]:
        """Run a process until the jobs are finished, and return their statuses."""
        process = self.start(threads)
        statuses = [job.wait(timeout).status for job in jobs]
        process.stop(grace=10)
        return statuses


def let_its_time_be_over(process: Process) -> Run:
    """Let the timeout of the one job or list that runs have passed, and return the run.

    For a handler that has said that it began: a short timeout may be over before that, where the machine is slow.
    """
    (run,) = [worker.slot.run for worker in process.workers() if worker.slot.run is not None]
    assert run.deadline is not None
    run.deadline = time.monotonic()
    return run


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no claim, settle or wait for a thread last so long that others step in, or what waits is handed back."""
    for name in ("PATIENCE_SECONDS", "LONGEST_WAIT_SECONDS"):
        monkeypatch.setattr(buffer, name, 3600.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)
