"""Record runs that did not complete: all of a batch in one statement a table, in the transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from django.db import connections

from django_jobs import signals
from django_jobs.models import Attempt, AttemptOutcome, DeadLetter, Job, JobStatus
from django_jobs.models.job import ENDED_BADLY

from .cancel import cancel_as_asked
from .events import announce
from .outcome import Outcome
from .sql import dialect
from .transactions import DbNow
from .wake import settle_dependents

FAILURES = (AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT, AttemptOutcome.CRASHED)


def settle_ended(outcomes: Sequence[Outcome], process_id: str, using: str) -> set[str]:
    """Move the jobs, write their attempts and letters, treat their dependents; return the ids whose fence had moved."""
    if not outcomes:
        return set()
    rows = [
        (
            one.job.id,
            one.job.fence,
            str(one.status),
            one.delay,
            int(one.spends_retry),
            int(one.counts_crash),
            one.error or None,
        )
        for one in sorted(outcomes, key=lambda one: one.job.id)
    ]
    moved = dialect(connections[using]).end(connections[using], rows)
    settled = [one for one in outcomes if one.job.id in moved]
    Attempt.objects.using(using).bulk_create(_attempt(one, process_id) for one in settled)
    letters = [_letter(one) for one in settled if one.letter is not None]
    if letters:
        DeadLetter.objects.using(using).bulk_create(letters)
    bad = sorted(one.job.id for one in settled if one.status in ENDED_BADLY)
    if bad:
        settle_dependents(bad, using)
    again = [one.job.id for one in settled if one.status in (JobStatus.SCHEDULED, JobStatus.PENDING)]
    if again:
        cancel_as_asked(again, using)
    _tell(settled, process_id, using)
    return {one.job.id for one in outcomes} - moved


def _attempt(outcome: Outcome, process_id: str) -> Attempt:
    return Attempt(
        job_id=outcome.job.id,
        number=outcome.job.attempt,
        worker_id=process_id,
        started_at=DbNow() - timedelta(seconds=outcome.seconds),
        ended_at=DbNow(),
        outcome=outcome.attempt,
        exception_class=outcome.exception_class,
        error=outcome.error,
        traceback=outcome.traceback,
    )


def _letter(outcome: Outcome) -> DeadLetter:
    assert outcome.letter is not None
    return DeadLetter(
        job_id=outcome.job.id,
        reason=outcome.letter,
        error=outcome.error,
        traceback=outcome.traceback,
        fingerprint=outcome.fingerprint,
        died_at=DbNow(),
    )


def _tell(outcomes: Sequence[Outcome], process_id: str, using: str) -> None:
    """Send the signals of runs that did not complete: failed, then what came of it. The jobs are read once for all."""
    told = [signals.job_failed, signals.job_retried, signals.job_dead, signals.job_cancelled]
    if not any(signal.has_listeners(Job) for signal in told):
        return
    jobs = Job.objects.using(using).in_bulk([one.job.id for one in outcomes])
    for one in outcomes:
        job = jobs[one.job.id]
        if one.attempt in FAILURES:
            announce(signals.job_failed, job, using, error=one.error, worker_id=process_id)
            if job.status == JobStatus.SCHEDULED:
                announce(signals.job_retried, job, using, next_scheduled_at=job.available_at, error=one.error)
        if one.status == JobStatus.DEAD or one.letter is not None:
            announce(signals.job_dead, job, using, error=one.error)
        if one.status == JobStatus.CANCELLED:
            announce(signals.job_cancelled, job, using)
