"""Wait for a job or a batch to finish: by looks that come ever more seldom, and on PostgreSQL by notification."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.db.models import Model

from django_jobs.db.connections import in_real_transaction, jobs_alias
from django_jobs.db.notify import FINISHED_CHANNEL, QUIET_SECONDS, Subscription, has_notifications
from django_jobs.exceptions import BatchNotFound, InvalidJob, JobNotFound
from django_jobs.models import Batch, Job
from django_jobs.models.job import TERMINAL
from django_jobs.text import shown

logger = logging.getLogger("django_jobs")

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1
# A notification may get lost, so even then it looks now and then. After one it looks again soon: what finishes within
# QUIET_SECONDS of it is not told.
NOTIFIED_PAUSE = 0.5
PAUSE_AFTER_NOTIFICATION = 2 * QUIET_SECONDS


class HandlerThreads:
    """The threads of a process that run handlers, and those of them whose handler waits for a job.

    Args:
        count: how many threads there are; when all of them wait, none is left to run what they wait for.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._waiting = 0

    @contextmanager
    def one_waits(self) -> Iterator[bool]:
        """Count this thread as one that waits until the end of the block; say whether it is the last one."""
        with self._lock:
            self._waiting += 1
            is_last = self._waiting >= self._count()
        try:
            yield is_last
        finally:
            with self._lock:
                self._waiting -= 1


# The threads among which the code that runs now is a handler; a worker sets it in the contexts of its handlers.
handler_threads: ContextVar[HandlerThreads | None] = ContextVar("django_jobs_handler_threads", default=None)


def wait(job_id: str, timeout: float | None = None) -> str:
    """Return the final status of a job once it is finished.

    Raises TimeoutError after `timeout` seconds (None waits for ever), JobNotFound when there is no such job, and InvalidJob
    when the timeout is no number, or when the job is not finished and the caller is in a transaction: what was submitted in
    it is invisible to workers until the commit, and its view of other jobs may be an old one.
    """
    return _wait(_Row(Job, job_id, JobNotFound), timeout)


def wait_for_batch(batch_id: str, timeout: float | None = None) -> str:
    """Return the status of a batch once its last member has ended; raises as `wait`, with BatchNotFound."""
    return _wait(_Row(Batch, batch_id, BatchNotFound), timeout)


class _Row(NamedTuple):
    """What is waited for."""

    model: type[Model]
    id: str
    not_found: type[JobNotFound]

    def __str__(self) -> str:
        return f"{self.not_found.what} {self.id!r}"

    def status(self) -> str:
        """Return the status as it is now."""
        rows: Any = self.model._default_manager.filter(pk=self.id)
        status: str | None = rows.values_list("status", flat=True).first()
        if status is None:
            raise self.not_found(self.id)
        return status


def _wait(row: _Row, timeout: float | None) -> str:
    deadline = _deadline(timeout)
    status = _first_look(row)
    if status in TERMINAL:
        return status
    threads = handler_threads.get()
    if threads is None:
        return _wait_for(row, status, timeout, deadline)
    with threads.one_waits() as is_last:
        if is_last:
            logger.warning(
                "a handler waits for %s, and every other thread of its worker process waits too: unless another process"
                " runs what is left of it, it waits for ever; submit what follows with depends_on or as a callback instead,"
                " or run more threads",
                row,
            )
        return _wait_for(row, status, timeout, deadline)


async def await_(job_id: str, timeout: float | None = None) -> str:
    """Return the final status of a job once it is finished, without holding a thread; raises as `wait` does."""
    return await _await(_Row(Job, job_id, JobNotFound), timeout)


async def await_batch(batch_id: str, timeout: float | None = None) -> str:
    """Return the status of a batch once its last member has ended, without holding a thread; raises as `wait_for_batch`."""
    return await _await(_Row(Batch, batch_id, BatchNotFound), timeout)


async def _await(row: _Row, timeout: float | None) -> str:
    """Wait by looks alone: a subscription would hold a thread, or a connection for each that waits."""
    deadline = _deadline(timeout)
    status = await sync_to_async(_first_look)(row)
    pause = FIRST_PAUSE
    while status not in TERMINAL:
        await asyncio.sleep(min(pause, _seconds_left(row, status, timeout, deadline)))
        pause = min(pause * 1.5, LONGEST_PAUSE)
        status = await sync_to_async(row.status)()
    return status


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout:
        raise InvalidJob(f"timeout={shown(timeout)}: give seconds, or None to wait for ever")
    return time.monotonic() + timeout


def _seconds_left(row: _Row, status: str, timeout: float | None, deadline: float | None) -> float:
    left = float("inf") if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"{row} is still {status} after {timeout} seconds")
    return left


def _first_look(row: _Row) -> str:
    """Return the status; raise InvalidJob where to wait for what is not finished would be in vain."""
    status = row.status()
    if status not in TERMINAL and in_real_transaction():
        raise InvalidJob(
            f"{row} is {status}, and a transaction is open on the database {jobs_alias()!r}: a job that was submitted"
            " in it is invisible to every worker until it commits, so this would wait in vain; wait after the block"
        )
    return status


def _wait_for(row: _Row, status: str, timeout: float | None, deadline: float | None) -> str:
    pause = FIRST_PAUSE
    subscription: Subscription | None = None
    refused = False
    try:
        while status not in TERMINAL:
            left = _seconds_left(row, status, timeout, deadline)
            if pause == LONGEST_PAUSE and subscription is None and not refused:
                # Only now: a connection of its own costs more than a few looks.
                subscription = _subscribe()
                refused = subscription is None
                if subscription is not None:
                    status = row.status()  # it may have finished before the subscription began
                    continue
            if subscription is None:
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, LONGEST_PAUSE)
            else:
                has_finished = bool(list(subscription.wait(min(pause, left))))
                pause = PAUSE_AFTER_NOTIFICATION if has_finished else NOTIFIED_PAUSE
            status = row.status()
        return status
    finally:
        if subscription is not None:
            subscription.close()


def _subscribe() -> Subscription | None:
    """Return a subscription where notifications work; None elsewhere, or when the server has no connection to spare."""
    if not has_notifications():
        return None
    try:
        return Subscription(FINISHED_CHANNEL)
    except DatabaseError:
        return None
