"""Execute: one claimed job through its handler to an outcome. A straight pipeline; an error is a value at its end."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from typing import Any

from asgiref.sync import async_to_sync
from django.db import Error, connections, transaction

from django_jobs import signals
from django_jobs.exceptions import Cancelled, Fail, InvalidJob, LeaseLost, Snooze, TimedOut
from django_jobs.handlers import Handler, Registry, unknown_job_type
from django_jobs.lifecycle.events import announce
from django_jobs.lifecycle.outcome import ClaimedJob, Completed, Outcome
from django_jobs.lifecycle.release import record_undone
from django_jobs.lifecycle.settle import settle_in_transaction
from django_jobs.lifecycle.trace import traced
from django_jobs.lifecycle.transactions import (
    LOCK_NOT_AVAILABLE,
    immediate,
    is_away,
    is_transient,
    jobs_alias,
    sqlstate,
)
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus
from django_jobs.payloads import describe_exception, encode_result, fingerprint, format_traceback
from django_jobs.retry import decide
from django_jobs.text import exception_path

from .context import Context
from .run import Run
from .session import SessionWatch

AGAIN = 5
MAX_SNOOZE = 3660 * 86_400.0


class BrokenTransaction(Fail):
    """An atomic handler committed or rolled back the transaction that was to make its effects happen once."""


def execute(run: Run, handler: Handler, handlers: Registry, process_id: str) -> Completed | Outcome | None:
    """Run a handler and say what comes of it; None when nothing is left to settle (done in its transaction, or lost)."""
    job = run.job
    if signals.job_started.receivers and signals.job_started.has_listeners(Job):
        announce(signals.job_started, job.id, jobs_alias(), worker_id=process_id)
    try:
        if handler.atomic:
            return _run_atomic(run, handler, process_id)
        return as_completed(job, _call(run, handler, process_id))
    except BaseException as error:  # a handler may raise anything: SystemExit and KeyboardInterrupt fail a job too
        return failure(run, handler, handlers, error)


def _call(run: Run, handler: Handler, process_id: str) -> Any:
    """Call the handler in a context of its own, so that language, time zone and context variables do not leak."""
    arguments = (Context(run, process_id), run.job.payload) if handler.takes_context else (run.job.payload,)
    function = traced(run.job, handler)
    if handler.is_async:
        function = async_to_sync(function)
    context = contextvars.copy_context()
    watch = SessionWatch()
    wrappers = connections[jobs_alias()].execute_wrappers
    wrappers.append(watch)  # as Django's `execute_wrapper` does it, without its generator
    try:
        run.arm()
        return context.run(function, *arguments)
    finally:
        run.disarm()
        wrappers.pop()
        run.changed_session = watch.has_changed


def as_completed(job: ClaimedJob, result: Any) -> Completed:
    """Return what a handler returned as a result to settle; raise BadResult when it is not JSON."""
    if result is None:
        return Completed(job.id, job.fence, None)
    try:
        return Completed(job.id, job.fence, encode_result(result))
    except InvalidJob as error:
        raise BadResult(str(error)) from None


class BadResult(Fail):
    """A result that is not JSON; a retry would repeat the handler's effects."""


def _run_atomic(run: Run, handler: Handler, process_id: str) -> Outcome | None:
    """Run the handler and complete its job in one transaction; the job's row is touched last.

    A transaction that the database undid (a deadlock, a serialization failure) is run again from its beginning: nothing of it
    has happened, so no retry is spent. Each such run leaves an attempt; after AGAIN of them the next one is a failure.
    """
    undone = 0
    while True:
        started = time.monotonic()
        try:
            _run_atomic_once(run, handler, process_id)
            return None
        except Error as error:
            if run.lost or run.abandoned or run.timed_out or not is_away(error):
                raise
            if not run.has_started:
                if is_transient(error):  # a busy SQLite does not even begin
                    continue
                return _not_started(run, error)
            # A lock timeout is what the handler asked for.
            if undone == AGAIN or not is_transient(error) or sqlstate(error) == LOCK_NOT_AVAILABLE:
                raise
            told = f"the database undid its transaction, which is run again: {describe_exception(error)}"
            if not record_undone(run.job, process_id, told, time.monotonic() - started):
                raise LeaseLost(f"job {run.job.id} was taken away from this worker") from None
            undone += 1
            run.has_started = False
            time.sleep(random.uniform(0.005, 0.02) * 2**undone)  # noqa: S311  so that two that met do not meet again


def _not_started(run: Run, error: Exception) -> Outcome:
    """Hand a job back whose transaction could not even begin: that is not its failure, and spends no retry."""
    told = f"the database went away before the handler started: {error}"
    return Outcome(job=run.job, status=JobStatus.PENDING, attempt=AttemptOutcome.RELEASED, error=told)


def _run_atomic_once(run: Run, handler: Handler, process_id: str) -> None:
    alias = jobs_alias()
    # At BEGIN, SQLite waits for the write lock; a transaction that read first would be refused at its first write.
    with immediate(alias), transaction.atomic(using=alias, durable=True):
        guard = connections[alias].savepoint() or ""  # in an atomic block it has a name
        result = _call(run, handler, process_id)
        try:
            # The savepoint is gone when the handler committed, or a DDL statement did so on MariaDB.
            connections[alias].savepoint_commit(guard)
        except Error as error:
            if is_away(error):
                raise
            raise BrokenTransaction(
                "the atomic handler committed or rolled back its transaction (a COMMIT, a ROLLBACK, or a DDL statement), so its"
                f" effects cannot be made to happen exactly once: {error}"
            ) from None
        if run.lost or not settle_in_transaction(as_completed(run.job, result), alias):
            raise LeaseLost(f"job {run.job.id} was taken away from this worker; its transaction is rolled back")
        if signals.job_completed.has_listeners(Job):
            announce(signals.job_completed, run.job.id, alias, worker_id=process_id, result=result)


def failure(run: Run, handler: Handler, handlers: Registry, error: BaseException) -> Outcome | None:
    """Turn what a handler raised into an outcome; None when the job is not ours any more."""
    if isinstance(error, LeaseLost) or run.lost or run.abandoned:
        return None
    return judge(run, handler, handlers, error)


def judge(run: Run, handler: Handler, handlers: Registry, error: BaseException) -> Outcome:
    """Say what comes of a run that ended in an exception, whoever ended it."""
    job = run.job
    if isinstance(error, Cancelled) or (run.cancel_requested and isinstance(error, asyncio.CancelledError)):
        return Outcome(
            job=job,
            status=JobStatus.CANCELLED,
            attempt=AttemptOutcome.CANCELLED,
            error="cancelled while it ran",
            seconds=run.seconds,
        )
    if isinstance(error, Snooze) and isinstance(error.seconds, int | float) and 0 <= error.seconds <= MAX_SNOOZE:
        return Outcome(
            job=job,
            status=JobStatus.SCHEDULED,
            attempt=AttemptOutcome.SNOOZED,
            delay=float(error.seconds),
            seconds=run.seconds,
        )
    if isinstance(error, BadResult):
        return _ended(run, handler, handlers, DeadLetterReason.BAD_RESULT, error)
    rules = handlers.rules(handler, job.queue)
    decision = decide(rules.policy(job.max_retries), retry_count=job.retry_count, exception=error)
    timed_out = run.timed_out or isinstance(error, TimedOut)
    if decision.action == "retry":
        return Outcome(
            job=job,
            status=JobStatus.SCHEDULED,
            attempt=AttemptOutcome.TIMED_OUT if timed_out else AttemptOutcome.FAILED,
            delay=decision.delay_seconds,
            spends_retry=True,
            exception_class=exception_path(error),
            error=describe_exception(error),
            traceback=format_traceback(error),
            seconds=run.seconds,
        )
    reason = DeadLetterReason.TIMEOUT if timed_out else DeadLetterReason(decision.reason)
    return _ended(run, handler, handlers, reason, error)


def _ended(run: Run, handler: Handler, handlers: Registry, reason: DeadLetterReason, error: BaseException) -> Outcome:
    """Give a job up: dead with a letter, or just failed where the queue wants no letters."""
    job = run.job
    letters = handlers.rules(handler, job.queue).dead_letter
    timed_out = reason == DeadLetterReason.TIMEOUT
    return Outcome(
        job=job,
        status=JobStatus.DEAD if letters else JobStatus.FAILED,
        attempt=AttemptOutcome.TIMED_OUT if timed_out else AttemptOutcome.FAILED,
        letter=reason if letters else None,
        exception_class=exception_path(error),
        error=describe_exception(error),
        traceback=format_traceback(error),
        fingerprint=fingerprint(job.job_type, error),
        seconds=run.seconds,
    )


def no_handler(job: ClaimedJob, handlers: Registry) -> Outcome:
    """Fail a job whose type nobody registered here, with a letter, so that a deploy in the wrong order loses nothing."""
    return Outcome(
        job=job,
        status=JobStatus.FAILED,
        attempt=AttemptOutcome.FAILED,
        letter=DeadLetterReason.NO_HANDLER,
        error=unknown_job_type(job.job_type, handlers.job_types()),
        fingerprint=f"no handler {job.job_type}"[:64],
    )


def crashed(run: Run, handler: Handler, handlers: Registry, how: str) -> Outcome:
    """Count a crash against a job whose own subprocess died while it ran alone."""
    job = run.job
    crashes = job.crash_count + 1
    dead = crashes >= handlers.rules(handler, job.queue).max_crashes
    return Outcome(
        job=job,
        status=JobStatus.DEAD if dead else JobStatus.SCHEDULED,
        attempt=AttemptOutcome.CRASHED,
        counts_crash=True,
        letter=DeadLetterReason.CRASH_LOOP if dead else None,
        error=f"its process {how} (crash {crashes})",
        fingerprint=f"crash {job.job_type}"[:64] if dead else "",
        seconds=run.seconds,
    )
