"""Settle results, and keep trying while the database is away: what ran must not be lost to an outage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import Error

from django_jobs.lifecycle import processes
from django_jobs.lifecycle.outcome import Completed, Outcome, Results
from django_jobs.lifecycle.release import release_free
from django_jobs.lifecycle.settle import not_settled, settle, settle_free
from django_jobs.models import JobStatus

from .tray import Tray

if TYPE_CHECKING:
    from .process import Process


def settle_tray(process: Process, tray: Tray, now: float) -> float:
    """Settle what was done at a tray, if it is time to and nobody else is at it; return the time after that."""
    while (results := tray.take_results(now)) is not None:
        tray.settled(*results, aside=settle_results(process, *results))
        now = time.monotonic()
    return now


def settle_rest(process: Process, tray: Tray) -> None:
    """Settle all that is left at a tray, however long it takes."""
    while (results := tray.take_rest()) is not None:
        aside = settle_results(process, *results, is_again=True)
        settle_results(process, *aside, waits=True, is_again=True)
        tray.settled(*results, aside=([], []))


def try_to_settle(process: Process, tray: Tray) -> None:
    """Settle what was done at a tray, and what was put aside a second ago, with one try: the keeper has more to do."""
    if (results := tray.take_results(time.monotonic())) is not None:
        tray.settled(*results, aside=_try(process, *results))
    if (results := tray.take_aside()) is not None:
        tray.settled(*results, aside=_try(process, *results))


def release_tray(tray: Tray) -> None:
    """Hand back what waits at a tray, and what could not be handed back before; locked rows are left for the next time."""
    if jobs := tray.take_unstarted():
        locked = {job.id for job in release_free(jobs)}
        tray.released(job for job in jobs if job.id not in locked)


def settle_results(
    process: Process,
    completed: Sequence[Completed],
    outcomes: Sequence[Outcome],
    *,
    waits: bool = False,
    is_again: bool = False,
) -> Results:
    """Settle results of a process until the database has answered, or the lease is lost.

    Returns those that are to be put aside because somebody else has locked their rows, unless it `waits` for them.
    """
    while not process.is_lost and (completed or outcomes):
        try:
            return _settle(process, completed, outcomes, waits, is_again)
        except Error as error:
            # The reply may have been lost after the commit, so the next try reads back what it finds moved.
            is_again = True
            time.sleep(process.trouble.after(error))
            processes.discard_connection()
    return [], []


def _try(process: Process, completed: Sequence[Completed], outcomes: Sequence[Outcome]) -> Results:
    """Settle results with one try, and return those that are to be put aside: locked, or all while the database is away."""
    if process.is_lost:
        return [], []
    try:
        return _settle(process, completed, outcomes, waits=False, is_again=True)
    except Error as error:
        process.trouble.after(error)
        processes.discard_connection()
        return list(completed), list(outcomes)


def _settle(
    process: Process,
    completed: Sequence[Completed],
    outcomes: Sequence[Outcome],
    waits: bool,
    is_again: bool,
) -> Results:
    left: Results = (list(completed), list(outcomes))
    if is_again:
        left = not_settled(*left, process.id)
    aside: Results = ([], [])
    if any(left) and waits:
        settle(*left, process.id)
    elif any(left):
        aside = settle_free(*left, process.id)
    process.trouble.over()
    delays = [outcome.delay for outcome in outcomes if outcome.status == JobStatus.SCHEDULED]
    if delays:
        process.maintenance.expect_due(min(delays))
    return aside
