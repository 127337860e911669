"""Settle: record how runs ended, fenced, many in one transaction. A settle whose fence has moved writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from django.db import DataError, IntegrityError, connections

from django_jobs import signals
from django_jobs.models import (
    Attempt,
    AttemptOutcome,
    DeadLetterReason,
    Job,
    JobStatus,
)

from .ended import settle_ended
from .events import announce, forget, tell_completed
from .notify import announce_finished
from .outcome import Completed, Outcome, Results
from .sql import dialect
from .transactions import do_for_free, jobs_alias, run_transaction
from .wake import wake_dependents

logger = logging.getLogger("django_jobs")
REFUSED = (DataError, IntegrityError)


def settle(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> set[str]:
    """Settle runs in one transaction and return the ids that were lost: somebody else had moved their fence.

    Dependents are woken in the same transaction. When the database refuses one member for good, the members are settled one
    by one and the refused one is dead (`bad result`).
    """
    return _settle_batch(completed, outcomes, process_id, alias or jobs_alias(), None)


def _settle_batch(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, using: str, lock_wait: float | None
) -> set[str]:
    try:
        lost = run_transaction(lambda: _settle_all(completed, outcomes, process_id, using), using, lock_wait=lock_wait)
    except REFUSED as error:
        number = len(completed) + len(outcomes)
        if lock_wait is not None and number > 1:
            raise
        logger.warning("the database refused a batch of %d results, settling one by one: %s", number, error)
        lost = _settle_apart(completed, outcomes, process_id, using)
    announce_finished(using)
    forget([(outcome.job.id, outcome.job.fence) for outcome in outcomes])
    if lost:
        forget([(done.id, done.fence) for done in completed if done.id in lost])
        logger.warning("dropped the late result of %s: another worker has taken the job since", ", ".join(sorted(lost)))
    return lost


def settle_free(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> Results:
    """Settle the runs whose rows, and whose dependents' rows, nobody else has locked; return the others.

    A long transaction of the site that submits a dependent holds such a lock: it must not hold up the rest of a batch.
    """

    def move(runs: Sequence[Completed | Outcome], lock_wait: float) -> None:
        _settle_batch(*_sorted_out(runs), process_id, alias or jobs_alias(), lock_wait)

    # A single run that the database refuses ends as `bad result`.
    return _sorted_out(do_for_free(move, [*completed, *outcomes], also=REFUSED))


def _sorted_out(runs: Iterable[Completed | Outcome]) -> Results:
    completed: list[Completed] = []
    outcomes: list[Outcome] = []
    for run in runs:
        if isinstance(run, Completed):
            completed.append(run)
        else:
            outcomes.append(run)
    return completed, outcomes


def settle_again(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> set[str]:
    """Settle after an attempt whose reply was lost: what has moved since may well be our own commit."""
    undone, left = not_settled(completed, outcomes, process_id, alias)
    return settle(undone, left, process_id, alias) if undone or left else set()


def not_settled(
    completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, alias: str | None = None
) -> Results:
    """Return the runs that are not on record as settled.

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
    tell_completed(((done.id, done.fence) for done in completed if done not in undone), using)
    left = [
        outcome
        for outcome in outcomes
        if rows.get(outcome.job.id) != (outcome.job.fence + 1, outcome.status)
        or not Attempt.objects.using(using)
        .filter(job_id=outcome.job.id, number=outcome.job.attempt, worker_id=process_id, outcome=outcome.attempt)
        .exists()
    ]
    return undone, left


def settle_in_transaction(done: Completed, alias: str) -> bool:
    """Complete one job inside the handler's own transaction; return False when its lease was lost."""
    if not dialect(connections[alias]).complete(connections[alias], [done]):
        return False
    wake_dependents([done.id], alias)
    tell_completed([(done.id, done.fence)], alias)
    announce_finished(alias)
    return True


def _settle_all(completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, using: str) -> set[str]:
    lost: set[str] = set()
    connection = connections[using]
    if completed:
        settled = dialect(connection).complete(connection, completed)
        wake_dependents(sorted(settled), using)
        tell_completed(((done.id, done.fence) for done in completed if done.id in settled), using)
        if len(settled) != len(completed):
            lost.update(done.id for done in completed if done.id not in settled)
        if signals.job_completed.has_listeners(Job):
            for done in completed:
                if done.id in settled:
                    announce(signals.job_completed, done.id, using, worker_id=process_id, result=done.result)
    return lost | settle_ended(outcomes, process_id, using)


def _settle_apart(completed: Sequence[Completed], outcomes: Sequence[Outcome], process_id: str, using: str) -> set[str]:
    lost: set[str] = set()
    for done in completed:
        try:
            lost |= run_transaction(lambda done=done: _settle_all([done], [], process_id, using), using)  # type: ignore[misc]
        except REFUSED as error:
            lost |= settle_bad_result(done.id, done.fence, str(error), process_id, using)
    for outcome in outcomes:
        try:
            lost |= run_transaction(lambda one=outcome: _settle_all([], [one], process_id, using), using)  # type: ignore[misc]
        except REFUSED:
            logger.exception(
                "the database refused what is told of a run of job %s; that much is left out", outcome.job.id
            )
            plain = replace(outcome, error="the database refused the error's text", exception_class="", traceback="")
            lost |= run_transaction(lambda one=plain: _settle_all([], [one], process_id, using), using)  # type: ignore[misc]
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
