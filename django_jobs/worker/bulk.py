"""Execute a list of jobs in one call of their bulk handler, to an outcome for each: what one fails of, the others are spared."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django_jobs import signals
from django_jobs.db.connections import jobs_connection, refuses_all
from django_jobs.encryption import MARK
from django_jobs.exceptions import BulkFailure, Cancelled, EncryptionError, Fail, JobsError, LeaseLost
from django_jobs.handlers import Handler, Registry
from django_jobs.lifecycle.claim import BadPayload, ClaimedJob
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import still_held
from django_jobs.models import Job

from .cleanup import release_locals
from .executor import (
    announce_start,
    as_completed,
    call,
    execute,
    judge,
    let_go_of_log,
    not_started,
    readable,
    run_atomic,
)
from .run import BulkRun, Run


class RolledBack(JobsError):
    """Rolls back an atomic call that named the jobs that failed, in a transaction that the database lets nobody commit."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        super().__init__()


def execute_all(run: Run, handler: Handler, handlers: Registry, process_id: str) -> list[Outcome]:
    """Run a job or a list of jobs and return their outcomes; see `execute`."""
    if isinstance(run, BulkRun):
        return execute_list(run, handler, handlers, process_id)
    return [execute(run, handler, handlers, process_id)]


def execute_list(run: BulkRun, handler: Handler, handlers: Registry, process_id: str) -> list[Outcome]:
    """Run a bulk handler and return an outcome for each job; see `execute` about what is left to settle."""
    turned_away = turn_away(run, handler, handlers)
    return [*turned_away, *_execute_started(run, handler, handlers, process_id)] if run.jobs else turned_away


def turn_away(run: BulkRun, handler: Handler, handlers: Registry) -> list[Outcome]:
    """Record the starts of a list's jobs for the rates that count them, and take those off it that may not start.

    Return the outcomes of these, and of those whose payloads no key reads: the others are none the worse for them.
    """
    outcomes = [outcome for job in run.jobs if job.rated and (outcome := not_started(job, run.lent)) is not None]
    left = {outcome.job.id for outcome in outcomes}
    for job in run.jobs:
        if job.payload_text.startswith(MARK) and job.id not in left and (error := _error_of_key(job)) is not None:
            outcomes.append(Outcome.failed(job, error, handlers.job_options(handler, job.queue)))
    if outcomes:
        run.take_off({outcome.job.id for outcome in outcomes})
    return outcomes


def _error_of_key(job: ClaimedJob) -> EncryptionError | None:
    try:
        job.payload  # noqa: B018  decrypted here, and once more for the handler
    except EncryptionError as error:
        return error
    return None


def _execute_started(run: BulkRun, handler: Handler, handlers: Registry, process_id: str) -> list[Outcome]:
    announce_list(run, process_id)
    try:
        if handler.atomic:
            return run_atomic(run, handler, handlers, process_id, _outcomes_in_transaction)
        return returned(run, handler, handlers, call(run, handler, process_id))
    except RolledBack as error:
        return error.outcomes
    except BaseException as error:
        return failures(run, handler, handlers, error)


def announce_list(run: BulkRun, process_id: str) -> None:
    """Send the signals of a list's start."""
    job = run.job
    if signals.bulk_started.receivers and signals.bulk_started.has_listeners(Job):
        ids = [one.id for one in run.jobs]
        signals.send(signals.bulk_started, sender=Job, job_type=job.job_type, queue=job.queue, job_ids=ids)
    announce_start(run, process_id)


def _outcomes_in_transaction(run: Run, handler: Handler, handlers: Registry, process_id: str) -> list[Outcome]:
    """Call an atomic handler; what it did for the jobs that it names as failed is for itself to undo, by savepoints."""
    assert isinstance(run, BulkRun)
    try:
        return returned(run, handler, handlers, call(run, handler, process_id))
    except BulkFailure as error:
        outcomes = _partial(run, handler, handlers, error)
        if refuses_all(jobs_connection()):
            raise RolledBack([_undone(outcome) for outcome in outcomes]) from error
        return outcomes


def _undone(outcome: Outcome) -> Outcome:
    if not outcome.is_completed:
        return outcome
    return Outcome.released(
        outcome.job, "its list was rolled back, because another job of it left the transaction broken"
    )


def returned(run: BulkRun, handler: Handler, handlers: Registry, results: Any) -> list[Outcome]:
    """Return the outcomes of a call that returned; raise JobsError for what is neither None nor a result for each job."""
    jobs = run.jobs
    if results is None:
        return [Outcome.completed(job) for job in jobs]
    if not isinstance(results, list | tuple):
        raise JobsError(
            f"a bulk handler returns None or a list of {len(jobs)} results, one for each job, not {type(results).__name__}"
        )
    if len(results) != len(jobs):
        raise JobsError(f"the bulk handler returned {len(results)} results for {len(jobs)} jobs")
    return [_completed(run, number, handler, handlers, result) for number, result in enumerate(results)]


def _completed(run: BulkRun, number: int, handler: Handler, handlers: Registry, result: Any) -> Outcome:
    try:
        return as_completed(run.jobs[number], handler, result)
    except Fail as error:
        return judge(run.spread()[number], handler, handlers, error)


def failures(run: BulkRun, handler: Handler, handlers: Registry, error: BaseException) -> list[Outcome]:
    """Return the outcomes of a call that raised: of the jobs that it names, or of all."""
    error = readable(error)
    if run.lost or run.abandoned:
        let_go_of_log(run)
        return [Outcome.lost(job) for job in run.jobs]
    if isinstance(error, LeaseLost):
        return without_lost(run, still_held(run.jobs))
    if isinstance(error, BadPayload):
        return [_unreadable(member, handler, handlers) for member in run.spread()]
    if isinstance(error, BulkFailure):
        try:
            return _partial(run, handler, handlers, error)
        except JobsError as problem:
            problem.__cause__ = error
            error = problem
    asked = sum(member.cancel_requested for member in run.members)
    if isinstance(error, Cancelled) and 0 < asked < len(run.jobs):
        return [_stopped(member, handler, handlers, error) for member in run.members]
    outcomes = judge_all(run, handler, handlers, error)
    release_locals(error)
    return outcomes


def judge_all(run: Run, handler: Handler, handlers: Registry, error: BaseException) -> list[Outcome]:
    """Return the outcome of each job of a run that ended in an exception, whoever ended it."""
    for member in run.spread():
        member.timed_out |= run.timed_out
        member.cancel_requested |= run.cancel_requested
    return [judge(member, handler, handlers, error) for member in run.spread()]


def _partial(run: BulkRun, handler: Handler, handlers: Registry, failure: BulkFailure) -> list[Outcome]:
    """Return the outcomes of a call that names the jobs that failed; raise JobsError when it names others."""
    outcomes = [Outcome.completed(job) for job in run.jobs]
    for number, error in failure.by_index(len(run.jobs)).items():
        member = run.spread()[number]
        is_lost = isinstance(error, LeaseLost)
        outcomes[number] = Outcome.lost(member.job) if is_lost else judge(member, handler, handlers, error)
        release_locals(error)
    return outcomes


def _unreadable(member: Run, handler: Handler, handlers: Registry) -> Outcome:
    """Return the outcome of a job of a list that ended because the payload of one of its jobs cannot be read."""
    try:
        _ = member.job.payload
    except BadPayload as error:
        return judge(member, handler, handlers, error)
    return Outcome.released(member.job, "its list stopped, because the payload of another job of it cannot be read")


def _stopped(member: Run, handler: Handler, handlers: Registry, error: BaseException) -> Outcome:
    """Return the outcome of a job of a list that ended because somebody asked to cancel some of its jobs."""
    if member.cancel_requested:
        return judge(member, handler, handlers, error)
    return Outcome.released(member.job, "its list stopped, because another job of it was cancelled")


def without_lost(run: BulkRun, held: Collection[str]) -> list[Outcome]:
    """Hand back the jobs that are held of a list of which another worker took some: whatever the call did, it stopped halfway."""
    return [
        Outcome.released(job, "its list stopped, because another job of it was taken away from this worker")
        if job.id in held
        else Outcome.lost(job)
        for job in run.jobs
    ]
