"""Settle outcomes, and keep trying while the database is away: what ran must not be lost to an outage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from django.db import Error

from django_jobs.db.connections import discard_connection
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.release import release_unlocked
from django_jobs.lifecycle.settle import Handover, not_settled, settle, settle_unlocked
from django_jobs.models import JobStatus

from .buffer import JobBuffer
from .state import WorkerState

Move = Callable[[Sequence[Outcome], str], list[Outcome]]  # settles for a process id; returns what is to be postponed
Lent = Callable[[], AbstractContextManager[None]]  # lends a connection for a block


class Source(Protocol):
    """Where outcomes wait to be settled: a buffer, or the coroutines."""

    def take_outcomes(self, now: float) -> list[Outcome] | None: ...
    def settled(self, outcomes: Iterable[Outcome], postponed: list[Outcome]) -> None: ...


class Settler:
    """Settles for a worker process, in the thread that calls.

    Args:
        expect_due: called with the seconds until the next job that was rescheduled is due.
        lent: lends the connection to settle over; by default it is the calling thread's own.
    """

    def __init__(self, state: WorkerState, expect_due: Callable[[float], None], lent: Lent = nullcontext) -> None:
        self._state = state
        self._expect_due = expect_due
        self._lent = lent

    def settle(self, source: Source, now: float, handover: Handover | None = None) -> float:
        """Settle what has ended, if it is time to and no other thread does; return the time afterwards.

        Rows that somebody else has locked are postponed, so that they do not hold up the others. The first try is made right
        here and not by `_insist`: this is the way of every job, and it is to be short. Jobs in `handover` end it.
        """
        state = self._state
        while (outcomes := source.take_outcomes(now)) is not None:
            postponed: list[Outcome] = []
            if not state.is_lost:
                try:
                    with self._lent():
                        postponed = settle_unlocked(outcomes, state.id, handover)
                    self._answered(outcomes)
                except Error as error:
                    if handover is not None:
                        handover.jobs = []
                    self._rest_after(error)
                    postponed = self._insist(settle_unlocked, outcomes)
            source.settled(outcomes, postponed)
            now = time.monotonic()
            if handover is not None and handover.jobs:
                break
        return now

    def settle_rest(self, buffer: JobBuffer) -> None:
        """Settle all that is left at a buffer, however long it takes; locked rows are waited for."""
        while (outcomes := buffer.take_rest()) is not None:
            self._insist(_settle_locked, self._insist(settle_unlocked, outcomes))
            buffer.settled(outcomes, [])

    def try_to_settle(self, buffer: JobBuffer) -> None:
        """Settle what has ended, and what was postponed a second ago, with one try each: the watchdog has more to do."""
        if (outcomes := buffer.take_outcomes(time.monotonic())) is not None:
            buffer.settled(outcomes, self._try(outcomes))
        if (outcomes := buffer.take_postponed()) is not None:
            buffer.settled(outcomes, self._try(outcomes))

    def _try(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Settle with one try; return what is to be postponed: locked rows, or all while the database is away."""
        if self._state.is_lost:
            return []
        try:
            return self._settle_left(settle_unlocked, outcomes)
        except Error as error:
            self._state.backoff.after(error)
            discard_connection()
            return outcomes

    def _insist(self, move: Move, outcomes: list[Outcome]) -> list[Outcome]:
        """Settle until the database has answered, or the lease is lost; return what is to be postponed."""
        while outcomes and not self._state.is_lost:
            try:
                return self._settle_left(move, outcomes)
            except Error as error:
                self._rest_after(error)
        return []

    def _settle_left(self, move: Move, outcomes: list[Outcome]) -> list[Outcome]:
        """Settle what is not on record as settled: an earlier try may have been committed though its reply was lost."""
        with self._lent():
            left = not_settled(outcomes, self._state.id)
            postponed = move(left, self._state.id) if left else []
        self._answered(outcomes)
        return postponed

    def _rest_after(self, error: Error) -> None:
        time.sleep(self._state.backoff.after(error))
        discard_connection()

    def release(self, buffer: JobBuffer) -> None:
        """Hand back what waits at a buffer, and what could not be handed back before; locked rows are left for the next time."""
        if jobs := buffer.take_unstarted():
            with self._lent():
                locked = {job.id for job in release_unlocked(jobs)}
            buffer.released(job for job in jobs if job.id not in locked)

    def _answered(self, outcomes: list[Outcome]) -> None:
        self._state.backoff.over()
        delays = [
            outcome.delay
            for outcome in outcomes
            if outcome.attempt is not None and outcome.status == JobStatus.SCHEDULED
        ]
        if delays:
            self._expect_due(min(delays))


def _settle_locked(outcomes: Sequence[Outcome], process_id: str) -> list[Outcome]:
    """Settle, and wait for the rows that somebody else has locked."""
    settle(outcomes, process_id)
    return []
