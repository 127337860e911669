"""Settle results, and keep trying while the database is away: what ran must not be lost to an outage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import Error

from django_jobs.lifecycle import processes
from django_jobs.lifecycle.outcome import Completed, Outcome
from django_jobs.lifecycle.settle import LOCK_WAIT_SECONDS, not_settled, settle, settle_free
from django_jobs.models import JobStatus

if TYPE_CHECKING:
    from .process import Process
    from .tray import Tray

Results = tuple[list[Completed], list[Outcome]]


def settle_tray(process: Process, tray: Tray, now: float) -> float:
    """Settle what was done at a tray, if it is time to and nobody else is at it; return the time after that."""
    while (results := tray.take_results(now)) is not None:
        tray.settled(*results, aside=settle_results(process, *results))
        now = time.monotonic()
    return now


def settle_aside(process: Process, tray: Tray) -> None:
    """Try again to settle the runs whose rows were locked, once a second."""
    if (results := tray.take_aside()) is not None:
        tray.settled(*results, aside=settle_results(process, *results, lock_wait=0.0))


def settle_rest(process: Process, tray: Tray) -> None:
    """Settle all that is left at a tray, however long it takes."""
    while (results := tray.take_rest()) is not None:
        tray.settled(*results, aside=settle_results(process, *results, lock_wait=None))


def settle_results(
    process: Process,
    completed: Sequence[Completed],
    outcomes: Sequence[Outcome],
    *,
    lock_wait: float | None = LOCK_WAIT_SECONDS,
) -> Results:
    """Settle results of a process until the database has answered, or the lease is lost.

    Returns those that were put aside because somebody else has locked their rows for longer than `lock_wait` seconds; None
    waits as long as it takes.
    """
    aside: Results = ([], [])
    if process.is_lost or not (completed or outcomes):
        return aside
    left = list(completed), list(outcomes)
    is_again = False
    while not process.is_lost:
        try:
            if is_again:
                left = not_settled(*left, process.id)
            if not (left[0] or left[1]):
                break
            if lock_wait is None:
                settle(*left, process.id)
            else:
                aside = settle_free(*left, process.id, lock_wait=lock_wait)
        except Error as error:
            # The reply may have been lost after the commit, so the next try reads back what it finds moved.
            is_again = True
            time.sleep(process.trouble.after(error))
            processes.discard_connection()
        else:
            process.trouble.over()
            break
    delays = [outcome.delay for outcome in outcomes if outcome.status == JobStatus.SCHEDULED]
    if delays:
        process.maintenance.expect_due(min(delays))
    return aside
