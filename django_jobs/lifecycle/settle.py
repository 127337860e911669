"""Settle: record how runs ended, fenced, many in one transaction. A settle whose fence has moved writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.db import DataError, IntegrityError, connections
from django.db.models import F

from django_jobs import signals
from django_jobs.models import (
    Attempt,
    AttemptOutcome,
    DeadLetter,
    DeadLetterReason,
    Job,
    JobStatus,
)
from django_jobs.models.job import ENDED_BADLY

from .events import announce, forget, tell_completed
from .outcome import ClaimedJob, Completed, Outcome
from .sql import dialect
from .transactions import DbNow, jobs_alias, run_transaction
from .wake import settle_dependents, wake_dependents

logger = logging.getLogger("django_jobs")
REFUSED = (DataError, IntegrityError)


def settle(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> set[str]:
    """Settle runs in one transaction and return the ids that were lost: somebody else had moved their fence.

    Dependents are woken in the same transaction. When the database refuses one member for good, the members are settled one
    by one and the refused one is dead (`bad result`).
    """
    using = alias or jobs_alias()
    try:
        lost = run_transaction(lambda: _settle_all(completed, outcomes, process_id, using), using)
    except REFUSED as error:
        if len(completed) + len(outcomes) == 1:
            raise
        logger.warning("the database refused a batch of %d results, settling one by one: %s", len(completed), error)
        lost = _settle_apart(completed, outcomes, process_id, using)
    forget([(outcome.job.id, outcome.job.fence) for outcome in outcomes])
    if lost:
        forget([(done.id, done.fence) for done in completed if done.id in lost])
        logger.warning("dropped the late result of %s: another worker has taken the job since", ", ".join(sorted(lost)))
    return lost


def settle_again(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> set[str]:
    """Settle after an attempt whose reply was lost: what has moved since may well be our own commit.

    A job that our settle completed has the next fence and is completed; one that we ended otherwise has the next fence and
    our attempt. Anything else is left to `settle`, which writes it or reports it lost.
    """
    using = alias or jobs_alias()
    rows = {
        row[0]: row[1:]
        for row in Job.objects.using(using)
        .filter(pk__in=[done.id for done in completed] + [outcome.job.id for outcome in outcomes])
        .values_list("pk", "fence", "status")
    }
    undone = [done for done in completed if rows.get(done.id) != (done.fence + 1, JobStatus.COMPLETED)]
    tell_completed([(done.id, done.fence) for done in completed if done not in undone], using)
    left = [
        outcome
        for outcome in outcomes
        if rows.get(outcome.job.id) != (outcome.job.fence + 1, outcome.status)
        or not Attempt.objects.using(using)
        .filter(job_id=outcome.job.id, number=outcome.job.attempt, worker_id=process_id, outcome=outcome.attempt)
        .exists()
    ]
    return settle(undone, left, process_id, using) if undone or left else set()


def settle_in_transaction(done: Completed, alias: str) -> bool:
    """Complete one job inside the handler's own transaction; return False when its lease was lost."""
    if not dialect(connections[alias]).complete(connections[alias], [done]):
        return False
    wake_dependents([done.id], alias)
    tell_completed([(done.id, done.fence)], alias)
    return True


def _settle_all(completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, using: str) -> set[str]:
    lost: set[str] = set()
    connection = connections[using]
    if completed:
        settled = dialect(connection).complete(connection, completed)
        wake_dependents(sorted(settled), using)
        tell_completed([(done.id, done.fence) for done in completed if done.id in settled], using)
        if len(settled) != len(completed):
            lost.update(done.id for done in completed if done.id not in settled)
        if signals.job_completed.has_listeners(Job):
            for done in completed:
                if done.id in settled:
                    announce(signals.job_completed, done.id, using, worker_id=process_id, result=done.result)
    for outcome in sorted(outcomes, key=lambda one: one.job.id):
        if not settle_one(outcome, process_id, using):
            lost.add(outcome.job.id)
    return lost


def _settle_apart(completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, using: str) -> set[str]:
    lost: set[str] = set()
    for done in completed:
        try:
            lost |= run_transaction(lambda done=done: _settle_all([done], [], process_id, using), using)  # type: ignore[misc]
        except REFUSED as error:
            lost |= settle_bad_result(done.id, done.fence, str(error), process_id, using)
    for outcome in outcomes:
        lost |= run_transaction(lambda one=outcome: _settle_all([], [one], process_id, using), using)  # type: ignore[misc]
    return lost


def settle_bad_result(job_id: str, fence: int, error: str, process_id: str, alias: str) -> set[str]:
    """Make a job dead whose result the database would not take; a retry would repeat its effects."""
    from .claim import claim_one

    job = claim_one(job_id, fence, process_id, alias)
    if job is None:
        return {job_id}
    outcome = Outcome(
        job=job,
        status=JobStatus.DEAD,
        attempt=AttemptOutcome.FAILED,
        letter=DeadLetterReason.BAD_RESULT,
        error=f"the database refused the result: {error:.500}",
    )
    return run_transaction(lambda: _settle_all([], [outcome], process_id, alias), alias)


def settle_one(outcome: Outcome, process_id: str, using: str) -> bool:
    """Record one run that did not complete, in the transaction that is open; return False when its fence has moved."""
    job = outcome.job
    due = DbNow() + timedelta(seconds=outcome.delay)
    changes: dict[str, object] = {
        "status": outcome.status,
        "fence": F("fence") + 1,
        "updated_at": DbNow(),
        "retry_count": F("retry_count") + int(outcome.spends_retry),
        "crash_count": F("crash_count") + int(outcome.counts_crash),
        "cancel_requested_at": None if outcome.status != JobStatus.CANCELLED else F("cancel_requested_at"),
    }
    if outcome.error:
        changes["error"] = outcome.error
    if outcome.status == JobStatus.SCHEDULED:
        changes |= {"available_at": due, "scheduled_at": due}
    elif outcome.status != JobStatus.PENDING:
        changes |= {"finished_at": DbNow(), "unique_lock": None}
    held = Job.objects.using(using).filter(pk=job.id, fence=job.fence, status=JobStatus.RUNNING)
    if held.update(**changes) != 1:
        return False
    Attempt.objects.using(using).create(
        job_id=job.id,
        number=job.attempt,
        worker_id=process_id,
        started_at=DbNow() - timedelta(seconds=outcome.seconds),
        ended_at=DbNow(),
        outcome=outcome.attempt,
        exception_class=outcome.exception_class,
        error=outcome.error,
        traceback=outcome.traceback,
    )
    if outcome.letter is not None:
        write_letter(job, outcome, outcome.letter, using)
    if outcome.status in ENDED_BADLY:
        settle_dependents([job.id], using)
    _tell(outcome, job, process_id, using)
    return True


def write_letter(job: ClaimedJob, outcome: Outcome, reason: DeadLetterReason, using: str) -> None:
    """Put a job that ended badly in front of an operator."""
    DeadLetter.objects.using(using).create(
        job_id=job.id,
        reason=reason,
        error=outcome.error,
        traceback=outcome.traceback,
        fingerprint=outcome.fingerprint,
        died_at=DbNow(),
    )


def _tell(outcome: Outcome, job: ClaimedJob, process_id: str, using: str) -> None:
    """Send the signals of a run that did not complete: failed, then what came of it."""
    if outcome.attempt in (AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT, AttemptOutcome.CRASHED):
        announce(signals.job_failed, job.id, using, error=outcome.error, worker_id=process_id)
        if outcome.status == JobStatus.SCHEDULED:
            announce_retry(job.id, using)
    if outcome.status == JobStatus.DEAD or outcome.letter is not None:
        announce(signals.job_dead, job.id, using, error=outcome.error)
    if outcome.status == JobStatus.CANCELLED:
        announce(signals.job_cancelled, job.id, using)


def announce_retry(job_id: str, using: str) -> None:
    """Send job_retried with the time at which the job runs again."""
    if signals.job_retried.has_listeners(Job):
        row = Job.objects.using(using).filter(pk=job_id).first()
        if row is not None:
            announce(signals.job_retried, row, using, next_scheduled_at=row.available_at, error=row.error)
