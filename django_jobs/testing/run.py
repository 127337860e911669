"""Run jobs in the calling thread, on the test's own connection: what is due once, or until nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import connections
from django.test import TestCase

from django_jobs.db.connections import jobs_connection, on_database, open_blocks, refuses_all
from django_jobs.db.lines import NO_KEY, InLine, Line
from django_jobs.exceptions import (
    BulkFailure,
    Cancelled,
    HandlerNotFound,
    InvalidJob,
    JobNotFound,
    JobsError,
    Retry,
    Snooze,
    Waiting,
)
from django_jobs.handlers import Handler, registry, unknown_job_type
from django_jobs.lifecycle import progress
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.claim import ClaimedJob, claim_job, held_claim
from django_jobs.lifecycle.events import deliver
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import PROMOTE_BATCH, promote
from django_jobs.lifecycle.settle import settle
from django_jobs.lifecycle.slots import sweep
from django_jobs.lifecycle.turns import in_turn, serve, turns_of
from django_jobs.models import Job, Queue
from django_jobs.worker.bulk import execute_all
from django_jobs.worker.run import BulkRun, Run

from .assertions import databases_of_test, name_of
from .crash import ProcessDied
from .factory import worker_process

MOST_RUNS = 1_000
DUE_COLUMNS = ("pk", "job_type", "queue", "crash_count", "rank", "available_at", "fair_key")
STEERING = (Retry, Snooze, Cancelled, Waiting, ProcessDied)


class Due(NamedTuple):
    """A job that is ready, before it is claimed: DUE_COLUMNS of its row."""

    job_id: str
    job_type: str
    queue: str
    crash_count: int
    rank: int
    available_at: datetime
    fair_key: str | None

    def goes_with(self, first: Due) -> bool:
        """Whether it may be in the list of another one."""
        return self[1:3] == first[1:3] and not self.crash_count


def run_due(
    *, queue: str | None = None, job_type: Any = None, reraise: bool = True, using: str | None = None
) -> list[Job]:
    """Run each job that is ready or due now, once, in claim order; return them as they are afterwards.

    What these jobs submit or wake is left for the next call (or use `drain`). What they pass to `transaction.on_commit` is
    called after each. A job of a paused queue is not run.

    Args:
        queue, job_type: run only jobs of these.
        using: the alias of a database; None: each that holds jobs, one after the other.
        reraise: raise what a handler raised, once that is recorded; the jobs after it are not run then. `Retry`, `Snooze` and
            `Cancelled` only steer the job and are not raised.

    Raises HandlerNotFound for a job without a handler, and JobsError for a result that is no JSON.
    """
    ran: list[Job] = []
    for database in databases_of_test() if using is None else (using,):
        with on_database(database):
            ran += _run_due(queue, job_type, reraise)
    return ran


def _run_due(queue: str | None, job_type: Any, reraise: bool) -> list[Job]:
    while len(promote()) == PROMOTE_BATCH:
        pass
    deliver()
    sweep()  # rates may have room by now
    jobs = Job.objects.ready().exclude(queue__in=Queue.objects.paused_names())
    if queue is not None:
        jobs = jobs.filter(queue=queue)
    if job_type is not None:
        jobs = jobs.filter(job_type=name_of(job_type))
    due = _in_claim_order([Due(*row) for row in jobs.values_list(*DUE_COLUMNS)])
    ran: list[str] = []
    with worker_process() as process_id:
        while due:
            claimed, due = _claim_next(due, process_id)
            if not claimed:
                continue
            with _callbacks_after_commit():
                error = _run(claimed, process_id, ran)
            if error is not None and reraise:
                raise error
    found = Job.objects.in_bulk(ran)
    return [found[job_id] for job_id in ran if job_id in found]


def drain(
    *, queue: str | None = None, job_type: Any = None, reraise: bool = True, using: str | None = None
) -> list[Job]:
    """Run jobs until none is ready or due, those that they submit or wake included; return them in the order of their runs.

    A retry or a job for later waits until `advance_time` has made it due. The arguments are those of `run_due`. Raises
    AssertionError when there is no end to it.
    """
    ran: list[Job] = []
    while jobs := run_due(queue=queue, job_type=job_type, reraise=reraise, using=using):
        ran += jobs
        if len(ran) > MOST_RUNS:
            raise AssertionError(f"more than {MOST_RUNS} runs and no end; the last job was {ran[-1]}")
    return ran


async def arun_due(**options: Any) -> list[Job]:
    """Run due jobs from an async test; see `run_due`."""
    return await sync_to_async(run_due)(**options)


async def adrain(**options: Any) -> list[Job]:
    """Run jobs from an async test until none is due; see `drain`."""
    return await sync_to_async(drain)(**options)


@contextmanager
def _callbacks_after_commit() -> Iterator[None]:
    """Call what is given to `transaction.on_commit` although the test's transaction never commits."""
    with ExitStack() as stack:
        for alias in connections:
            if connections[alias].in_atomic_block:
                stack.enter_context(TestCase.captureOnCommitCallbacks(using=alias, execute=True))
        yield


def _in_claim_order(due: list[Due]) -> list[Due]:
    """Return the jobs with those of each queue that has an ageing or keys in its order, in the places that these have."""
    for queue in {one.queue for one in due}:
        ageing = registry.job_options(None, queue).ageing
        of_queue = {one.job_id: one for one in due if one.queue == queue}
        if ageing is None and all(one.fair_key is None for one in of_queue.values()):
            continue
        waiting = (InLine(one.rank, one.available_at, one.job_id, one.fair_key or NO_KEY) for one in of_queue.values())
        in_order = in_turn(waiting, turns_of(Line(queue)), ageing)
        ours = iter([of_queue[one.id] for one in in_order])
        due = [next(ours) if one.queue == queue else one for one in due]
    return due


def _claim_next(due: list[Due], process_id: str) -> tuple[list[ClaimedJob], list[Due]]:
    """Claim the first job, with others for its call when its handler takes a list; return them, and what is left to run."""
    first = due[0]
    handler = registry.find(first.job_type)
    if handler is None or handler.bulk is None or first.crash_count:
        job = _claim(first, process_id)
        return [] if job is None else [job], due[1:]
    claimed: list[ClaimedJob] = []
    left: list[Due] = []
    for one in due:
        if len(claimed) == handler.bulk or not one.goes_with(first):
            left.append(one)
        elif (job := _claim(one, process_id)) is not None:
            claimed.append(job)
        elif claimed:  # a limit may let it in when these have run
            left.append(one)
    return claimed, left


def _claim(due: Due, process_id: str) -> ClaimedJob | None:
    try:
        if due.fair_key is not None:
            serve(Line(due.queue), [(due.rank, due.fair_key)])
        return claim_job(due.job_id, process_id)
    except (InvalidJob, JobNotFound):  # a job before it cancelled or deleted it, or a limit holds it back
        return None


def _run(jobs: list[ClaimedJob], process_id: str, ran: list[str]) -> BaseException | None:
    """Run and settle a job, or a list of them in one call; return the exception that a test gets of it, if any."""
    job = jobs[0]
    ran += [one.id for one in jobs]
    handler = registry.find(job.job_type)
    if handler is None:
        problem = unknown_job_type(job.job_type, registry.job_types())
        settle([Outcome.no_handler(job, problem)], process_id)
        return HandlerNotFound(problem)
    raised: list[BaseException] = []
    run = Run(job) if handler.bulk is None else BulkRun(jobs, handler)
    run.blocks_around = open_blocks()
    with _usable_afterwards():
        outcomes = execute_all(run, _recording(handler, raised), registry, process_id)
    if raised and isinstance(raised[0], ProcessDied):
        outcomes = [_crashed(one, handler, process_id, str(raised[0])) for one in jobs]
    for one in run.spread():
        if one.progress is not None:  # an atomic block keeps it in memory
            progress.report_progress(one.job.id, one.job.fence, *one.progress)
    if unsettled := [outcome for outcome in outcomes if outcome.needs_settle]:
        settle(unsettled, process_id)
    if bad := [outcome for outcome in unsettled if not outcome.is_completed]:
        cascade_all()
        if not raised and not bad[0].waits:
            return JobsError(bad[0].error)
    return None if not raised or _only_steers(raised[0]) else raised[0]


def _only_steers(error: BaseException) -> bool:
    named = error.errors if isinstance(error, BulkFailure) and isinstance(error.errors, Mapping) else {0: error}
    return all(isinstance(one, STEERING) for one in named.values())


def _crashed(job: ClaimedJob, handler: Handler, process_id: str, error: str) -> Outcome:
    held = held_claim(job.id, job.fence, process_id) or job  # with the crashes that its row counts now
    return Outcome.crashed(held, error, registry.job_options(handler, job.queue))


def _recording(handler: Handler, raised: list[BaseException]) -> Handler:
    """Return the handler with a function that keeps what it raises in `raised`."""
    function = handler.function

    def record(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except BaseException as error:
            raised.append(error)
            raise

    async def arecord(*arguments: Any, **keywords: Any) -> Any:
        try:
            return await function(*arguments, **keywords)
        except BaseException as error:
            raised.append(error)
            raise

    chosen: Callable[..., Any] = arecord if handler.is_async else record
    return replace(handler, function=chosen)


@contextmanager
def _usable_afterwards() -> Iterator[None]:
    """Undo a run that left the test's transaction refusing every further statement, as a database error in it may."""
    connection = jobs_connection()
    if not connection.in_atomic_block:
        yield
        return
    savepoint = connection.savepoint() or ""  # in an atomic block it has a name
    yield
    if refuses_all(connection):
        connection.needs_rollback = False
        connection.savepoint_rollback(savepoint)
    else:
        connection.savepoint_commit(savepoint)
