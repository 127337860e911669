"""Execute: one claimed job through its handler to an outcome. A straight pipeline; an error is a value at its end."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from asgiref.sync import async_to_sync
from django.db import Error, transaction

from django_jobs import signals
from django_jobs.db.connections import jobs_connection
from django_jobs.db.errors import LOCK_NOT_AVAILABLE, is_away, is_transient, sqlstate
from django_jobs.db.transactions import immediate
from django_jobs.encryption import encrypted
from django_jobs.exceptions import Cancelled, Fail, InvalidJob, JobsError, LeaseLost, Snooze, TimedOut, Waiting
from django_jobs.handlers import Handler, Registry, encrypts, payload_problems
from django_jobs.lifecycle import logs
from django_jobs.lifecycle.claim import BadPayload, ClaimedJob
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import complete_in_transaction, record_undone
from django_jobs.lifecycle.starts import record_start
from django_jobs.models import DeadLetterReason, Job
from django_jobs.payloads import encode_result
from django_jobs.propagation import traced, traced_list
from django_jobs.text import describe_exception

from . import capture
from .cleanup import release_locals
from .commit_hooks import CommitHooks
from .context import BulkContext, Context
from .run import Run

AGAIN = 5
OutcomesOf = Callable[[Run, Handler, Registry, str], list[Outcome]]  # calls a handler
NO_KEYWORDS: dict[str, Any] = {}


class BadResult(Fail):
    """A result that is not JSON; a retry would repeat the handler's effects."""


class BrokenTransaction(Fail):
    """An atomic handler committed or rolled back the transaction that was to make its effects happen once."""


def execute(run: Run, handler: Handler, handlers: Registry, process_id: str) -> Outcome:
    """Run a handler and return the outcome; nothing is left to settle when the job was completed in its transaction, or lost."""
    announce_start(run, process_id)
    if run.job.rated and (outcome := not_started(run.job, run.lent)) is not None:
        return outcome
    try:
        if handler.atomic:
            return run_atomic(run, handler, handlers, process_id, _outcome_in_transaction)[0]
        result = call(run, handler, process_id)
        if run.steps is not None:
            run.steps.flush()
            run.steps.end()
        return as_completed(run.job, handler, result)
    except BaseException as error:  # a handler may raise anything: SystemExit and KeyboardInterrupt fail a job too
        cause = readable(error)
        if run.steps is not None:
            run.steps.flush()
            cause = run.steps.error_after(cause)
        return failure(run, handler, handlers, cause)


def announce_start(run: Run, process_id: str) -> None:
    """Tell that the handler of a job, or of a list of jobs, is about to run."""
    if signals.job_started.receivers and signals.job_started.has_listeners(Job):
        for job in run.jobs:
            signals.announce(signals.job_started, job.id, worker_id=process_id)


def wait_to_start(job: ClaimedJob) -> None:
    """Wait for the moment before which a job must not start: it was claimed that little early."""
    if (seconds := job.not_before - time.monotonic()) > 0:
        time.sleep(seconds)


def not_started(job: ClaimedJob, lent: Callable[[], AbstractContextManager[None]] = nullcontext) -> Outcome | None:
    """Record the start of a job for the rates that count it, once it may start; return the outcome of one that may not at all."""
    wait_to_start(job)
    try:
        with lent():
            return None if record_start(job.id, job.fence, job.rated) else Outcome.lost(job)
    except Error as error:
        return Outcome.released(job, f"the database went away before the handler started: {error}")


def call(run: Run, handler: Handler, process_id: str) -> Any:
    """Call the handler in a context of its own, so that language, time zone and context variables do not leak."""
    arguments, keywords = arguments_of(run, handler, process_id)
    function = traced(run.job, handler) if run.handler is None else traced_list(run.jobs, handler)
    if handler.is_async:
        function = async_to_sync(function)
    context = contextvars.copy_context()
    if handler.log_level is not None or capture.site_level is not None:
        context.run(capture.begin, run, handler)
    sessions = run.sessions
    if sessions is not None:
        sessions.lend()
    try:
        run.arm()
        return context.run(function, *arguments, **keywords)
    finally:
        run.disarm()
        if sessions is not None:
            sessions.take_back()


def arguments_of(run: Run, handler: Handler, process_id: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a handler is called with, by position and by name: the context, and its payload as it takes it."""
    payload = run.job.payload
    if handler.arguments is None:
        if handler.bulk is not None:
            return (_list_of(run, handler, process_id),), NO_KEYWORDS
        return ((Context(run, process_id, handler), payload) if handler.takes_context else (payload,)), NO_KEYWORDS
    return ((Context(run, process_id, handler),) if handler.takes_context else ()), payload


def _list_of(run: Run, handler: Handler, process_id: str) -> list[Any]:
    """Return the payloads of a list of jobs, or their contexts."""
    if not handler.takes_context:
        return [job.payload for job in run.jobs]
    return [BulkContext(member, process_id, handler) for member in run.spread()]


def as_completed(job: ClaimedJob, handler: Handler, result: Any) -> Outcome:
    """Return the outcome of a handler that returned `result`; raise BadResult when that is not JSON."""
    if result is None:
        return Outcome.completed(job)
    try:
        text = encode_result(result)
    except InvalidJob as error:
        raise BadResult(str(error)) from None
    return Outcome.completed(job, encrypted(text) if encrypts(handler) else text)


def run_atomic(
    run: Run, handler: Handler, handlers: Registry, process_id: str, outcomes_of: OutcomesOf
) -> list[Outcome]:
    """Run the handler and settle its jobs in one transaction; their rows are touched last.

    A transaction that the database undid (a deadlock, a serialization failure) is run again from its beginning: nothing of it
    has happened, so no retry is spent. Each such run leaves an attempt; after AGAIN of them the next one is a failure. Where a
    rate counts starts, the jobs wait for their next one as any others do.
    """
    undone = 0
    while True:
        started = time.monotonic()
        try:
            return _run_atomic_once(run, handler, handlers, process_id, outcomes_of)
        except Error as error:
            if run.lost or run.abandoned or run.timed_out or not is_away(error):
                raise
            if not run.has_started:
                if is_transient(error):  # a busy SQLite does not even begin
                    continue
                reason = f"the database went away before the handler started: {error}"
                return [Outcome.released(job, reason) for job in run.jobs]
            # A lock timeout is what the handler asked for.
            if undone == AGAIN or not is_transient(error) or sqlstate(error) == LOCK_NOT_AVAILABLE:
                raise
            reason = f"the database undid its transaction, which is run again: {describe_exception(error)}"
            if any(job.rated for job in run.jobs):
                return [Outcome.released(job, reason)._replace(seconds=time.monotonic() - started) for job in run.jobs]
            if not record_undone(run.jobs, process_id, reason, time.monotonic() - started):
                raise LeaseLost(f"job {run.job.id} was taken away from this worker") from None
            undone += 1
            run.has_started = False
            time.sleep(random.uniform(0.005, 0.02) * 2**undone)  # noqa: S311  so that two that met do not meet again


def _run_atomic_once(
    run: Run, handler: Handler, handlers: Registry, process_id: str, outcomes_of: OutcomesOf
) -> list[Outcome]:
    # At BEGIN, SQLite waits for the write lock; a transaction that read first would be refused at its first write.
    connection = jobs_connection()
    with immediate(connection), transaction.atomic(using=connection.alias, durable=True):
        guard = connection.savepoint() or ""  # in an atomic block it has a name
        hooks = CommitHooks(run.jobs, connection)
        outcomes = outcomes_of(run, handler, handlers, process_id)
        if run.steps is not None:  # it asked for a step, which an atomic handler has not
            run.steps.end()
        try:
            # The savepoint is gone when the handler committed, or a DDL statement did so on MariaDB.
            connection.savepoint_commit(guard)
        except Error as error:
            if is_away(error):
                raise
            raise BrokenTransaction(
                "the atomic handler committed or rolled back its transaction (a COMMIT, a ROLLBACK, or a DDL statement), so its"
                f" effects cannot be made to happen exactly once: {error}"
            ) from None
        hooks.guard()
        if run.lost or not complete_in_transaction(outcomes, process_id):
            raise LeaseLost(f"job {run.job.id} was taken away from this worker; its transaction is rolled back")
    if run.log is not None:
        logs.close(outcome.run for outcome in outcomes)
    return [outcome._replace(needs_settle=False) for outcome in outcomes]


def _outcome_in_transaction(run: Run, handler: Handler, handlers: Registry, process_id: str) -> list[Outcome]:
    return [as_completed(run.job, handler, call(run, handler, process_id))]


def readable(error: BaseException) -> BaseException:
    """Return what a handler raised, or one of ours in the place of an exception whose attributes cannot be read."""
    try:
        _ = isinstance(error, JobsError), error.__traceback__, error.__cause__, error.__context__
    except Exception:
        return JobsError(f"{type(error).__name__}: <it cannot be read>")
    return error


def failure(run: Run, handler: Handler, handlers: Registry, error: BaseException) -> Outcome:
    """Return the outcome of a handler that raised; there is nothing to settle when the job is not ours any more."""
    if isinstance(error, LeaseLost) or run.lost or run.abandoned:
        let_go_of_log(run)
        return Outcome.lost(run.job)
    outcome = judge(run, handler, handlers, error)
    release_locals(outcome.exception)
    return outcome


def let_go_of_log(run: Run) -> None:
    """Drop the log of a run that is lost; of one that was given up, whoever did so settles it, with its log."""
    if run.log is not None and not run.abandoned:
        logs.close([(run.job.id, run.job.fence)])


def judge(run: Run, handler: Handler, handlers: Registry, error: BaseException) -> Outcome:
    """Return the outcome of a run that ended in an exception, whoever ended it."""
    job, seconds = run.job, run.seconds
    if isinstance(error, Cancelled) or (run.cancel_requested and isinstance(error, asyncio.CancelledError)):
        return Outcome.cancelled(job, "cancelled while it ran", seconds)
    if isinstance(error, Snooze):
        return Outcome.snoozed(job, error.seconds, "", seconds)
    steps = run.steps
    if steps is not None and isinstance(error, Waiting):
        return Outcome.waiting(job, steps.delay, steps.waits, str(error), seconds)
    options = handlers.job_options(handler, job.queue)
    if steps is not None and error is steps.fatal:
        return Outcome.given_up(job, error, steps.reason, options, seconds)
    if isinstance(error, BadPayload):
        return Outcome.given_up(job, error, DeadLetterReason.BAD_PAYLOAD, options, seconds)
    if isinstance(error, TypeError) and (problems := payload_problems(handler, job.payload)):
        return Outcome.given_up(job, BadPayload("; ".join(problems)), DeadLetterReason.BAD_PAYLOAD, options, seconds)
    if isinstance(error, BadResult):
        return Outcome.given_up(job, error, DeadLetterReason.BAD_RESULT, options, seconds)
    if run.timed_out or isinstance(error, TimedOut):
        if not error.args and isinstance(
            error, TimedOut
        ):  # raised in the handler's thread, where a class alone can be raised
            error.args = (run.late,)
        return Outcome.timed_out(job, error, options, seconds)
    return Outcome.failed(job, error, options, seconds)
