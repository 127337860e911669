"""Settle results, and keep trying while the database is away: what ran must not be lost to an outage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from django.db import Error

from django_jobs.lifecycle import processes
from django_jobs.lifecycle.outcome import Completed, Outcome
from django_jobs.lifecycle.settle import settle, settle_again
from django_jobs.models import JobStatus

if TYPE_CHECKING:
    from .process import Process
    from .tray import Tray


def settle_tray(process: Process, tray: Tray, now: float, *, all_of_them: bool = False) -> float:
    """Settle what was done at a tray, if it is time to and nobody else is at it; return the time after that."""
    while (results := tray.take_results(now, all_of_them=all_of_them)) is not None:
        settle_results(process, *results)
        tray.settled(*results)
        now = time.monotonic()
    return now


def settle_results(process: Process, completed: list[Completed], outcomes: list[Outcome]) -> None:
    """Settle results of a process until the database has answered, or the lease is lost."""
    if process.is_lost or not (completed or outcomes):
        return
    attempt = settle
    while not process.is_lost:
        try:
            attempt(completed, outcomes, process.id)
        except Error as error:
            # The reply may have been lost after the commit, so the next try reads back what it finds moved.
            attempt = settle_again
            time.sleep(process.trouble.after(error))
            processes.discard_connection()
        else:
            process.trouble.over()
            break
    delays = [outcome.delay for outcome in outcomes if outcome.status == JobStatus.SCHEDULED]
    if delays:
        process.maintenance.expect_due(min(delays))
