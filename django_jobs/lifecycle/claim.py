"""Claim: take ready jobs for running."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.lines import NO_KEY, Line
from django_jobs.db.marks import Marks
from django_jobs.db.transactions import retried, transactional
from django_jobs.exceptions import Fail, InvalidJob, JobNotFound
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.payloads import decode, encode_result
from django_jobs.text import describe_exception, shown

from . import slots, turns
from .active_limits import NO_LIMITS, ActiveLimits, active_limits, is_watched, watch

MOST_ROUNDS = 20  # of claims that find nothing but jobs to be held back; a worker looks again soon
ROUND = 500  # jobs that each of them but the first looks at
# Another claim that is open admits its jobs within two rounds. What comes first and is locked for longer is locked by the site.
ROUNDS_IN_ORDER = 2


class BadPayload(Fail):
    """A payload with which the handler cannot be called: written for another version of it, or by hand into the row."""


class ClaimedJob(NamedTuple):
    """A claimed row, in the order of the dialects' CLAIMED_COLUMNS; JSON stays text until somebody asks for it.

    6 µs a job, where a Job takes 45: that one is built only for receivers of signals.
    """

    id: str
    job_type: str
    queue: str
    payload_text: str
    fence: int
    retry_count: int
    max_retries: int
    timeout_seconds: float | None
    crash_count: int
    metadata_text: str
    rank: int
    available_at: Any
    created_at: Any = None
    batch_id: str | None = None
    is_limited: bool = False  # whether it may have slots, which its end gives on
    rated: tuple[str, ...] = ()  # the scopes whose rates count its start
    not_before: float = 0.0  # when its handler may start, by `time.monotonic`: it is claimed a moment early
    fair_key: str = NO_KEY  # where it was claimed in turn

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew at each call, so that no handler sees another one's changes.

        Raises BadPayload for what only a hand in the row can have left: no JSON, or no object.
        """
        try:
            value = decode(self.payload_text)
        except (ValueError, RecursionError) as error:
            raise BadPayload(f"the payload cannot be read: {describe_exception(error, 200)}") from None
        if type(value) is not dict:
            raise BadPayload(f"the payload is no JSON object, but {shown(value)}")
        return value

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.retry_count + 1

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[Any, ...]], *, is_limited: bool = False) -> list[ClaimedJob]:
        """Return the claims of rows as the dialects return them."""
        rest = _LIMITED if is_limited else _NO_LIMIT
        return [tuple.__new__(cls, row + rest) for row in rows]  # not `_make`, which counts first: half of its time

    @classmethod
    def of(cls, job: Job) -> ClaimedJob:
        """Return a running job's row as a claim."""
        return cls(
            job.id,
            job.job_type,
            job.queue,
            _text_of(job.payload),
            job.fence,
            job.retry_count,
            job.max_retries,
            job.timeout_seconds,
            job.crash_count,
            _text_of(job.metadata),
            job.rank,
            job.available_at,
            job.created_at,
            job.batch_id,
            (limits := active_limits()) is not NO_LIMITS,
            limits.rated(job.job_type, job.queue, job.limit_key, job.queue_limit_key),
        )


def _text_of(value: Any) -> str:
    """Return a column's value as JSON text again; what no database should hold, as readers of JSON accept it."""
    try:
        return encode_result(value)
    except InvalidJob:  # written by hand: its job is to be rescued, and to fail, all the same
        return json.dumps(value)


# The columns of a claim that its row does not have.
_NO_LIMIT = (False, (), 0.0, NO_KEY)
_LIMITED = (True, *_NO_LIMIT[1:])


def claim(
    queue: str, limit: int, process_id: str, marks: Marks | None = None, ageing: float | None = None
) -> list[ClaimedJob]:
    """Take up to `limit` ready jobs of a queue for a worker process, in claim order.

    The claim is committed when this returns. Nothing is claimed from a paused queue, or by a process without a live lease.
    Jobs that a limit does not let run now are held back, and others taken in their place. With the process's `marks` it passes
    over what an old snapshot keeps of jobs that are done. Where the queue has an `ageing` (seconds), that makes the claim order.
    """
    began = time.monotonic()
    if turns.has_keys(queue):
        return _claim_in_turn(queue, limit, process_id, ageing)
    jobs = _claim_without_turns(queue, limit, process_id, marks, ageing)
    if not jobs and turns.look_again(queue, began):
        return _claim_in_turn(queue, limit, process_id, ageing)
    return jobs


def _claim_without_turns(
    queue: str, limit: int, process_id: str, marks: Marks | None, ageing: float | None
) -> list[ClaimedJob]:
    limits = active_limits()
    if limits is NO_LIMITS:
        if ageing is not None:
            return _claim_aged(queue, limit, process_id, marks, ageing)
        return _claim(queue, limit, process_id, marks)
    if ageing is None and not is_watched(queue):
        jobs = _claim_unwatched(queue, limit, process_id, limits, marks)
        if jobs or not is_watched(queue):
            return jobs
    for looked_at, overtakes in _rounds(limit):
        found, jobs = _claim_within_limits(queue, limit, looked_at, process_id, limits, marks, ageing, overtakes)
        if jobs or not found:
            return jobs
        if turns.look(queue):  # those that were let in, in place of the ones held back, have keys
            return _claim_in_turn(queue, limit, process_id, ageing)
    return []


def _rounds(limit: int) -> Iterator[tuple[int, bool]]:
    """Yield for each round of a claim at how many jobs it looks, and whether it overtakes those that come first."""
    for number in range(MOST_ROUNDS):
        yield max(limit, ROUND) if number else limit, number >= ROUNDS_IN_ORDER


def _claim_in_turn(queue: str, limit: int, process_id: str, ageing: float | None) -> list[ClaimedJob]:
    """Claim from a queue where some jobs have a fair key; those without one are taken as those of one more key."""
    for looked_at, overtakes in _rounds(limit):
        goes_on, jobs = _claim_round_in_turn(queue, limit, looked_at, process_id, ageing, overtakes)
        if jobs or not goes_on:
            return jobs
    return []


@transactional
def _claim_round_in_turn(
    queue: str, limit: int, looked_at: int, process_id: str, ageing: float | None, overtakes: bool
) -> tuple[bool, list[ClaimedJob]]:
    """Return whether another round may find more, and up to `limit` jobs that may run, out of the first ones in turn."""
    limits = active_limits()
    dialect().lock_turns(queue)
    line = Line(queue)
    waiting = turns.first_in_turn(line, looked_at, ageing)
    if not waiting:
        return False, []
    place = {job.id: number for number, job in enumerate(waiting)}
    rows = dialect().claim_jobs(queue, [*place], process_id)
    jobs = [
        job._replace(fair_key=waiting[place[job.id]].key)
        for job in sorted(ClaimedJob.of_rows(rows), key=lambda job: place[job.id])
    ]
    admitted = jobs if limits is NO_LIMITS else _admitted(jobs, process_id, limits, overtakes=overtakes)
    kept, left = admitted[:limit], admitted[limit:]
    slots.put_back([job.id for job in left])
    # Whom a limit has held back has had its turn; whom we put back has not.
    last = place[kept[-1].id] if kept else len(waiting)
    turns.serve(line, [(job.rank, job.fair_key) for job in jobs if place[job.id] <= last])
    # Those who are first may all be locked by a transaction of the site: look once at who comes behind them.
    return bool(jobs) or looked_at < ROUND, kept


@retried
def _claim(queue: str, limit: int, process_id: str, marks: Marks | None) -> list[ClaimedJob]:
    return _taken(queue, limit, process_id, marks)


def _taken(
    queue: str, limit: int, process_id: str, marks: Marks | None, ageing: float | None = None
) -> list[ClaimedJob]:
    speaker = dialect()
    if ageing is not None:
        rows = speaker.claim_aged(queue, limit, process_id, ageing)
    elif marks is None or not speaker.counts_reads:
        rows = speaker.claim(queue, limit, process_id)
    else:
        is_limited = active_limits() is not NO_LIMITS
        rows = marks.of(queue).claim(speaker, queue, limit, process_id, is_limited=is_limited)
    return ClaimedJob.of_rows(rows)


def claim_freed(queue: str, process_id: str) -> ClaimedJob | None:
    """Take the first ready job of a queue in the transaction that is open and has just freed one; None where there are limits,
    or where jobs take turns.
    """
    if active_limits() is not NO_LIMITS or turns.has_keys(queue):
        return None
    rows = dialect().claim(queue, 1, process_id)
    return ClaimedJob.of_rows(rows)[0] if rows else None


_claim_aged = transactional(_taken)  # several statements: a try that fails must leave nothing claimed


@transactional
def _claim_within_limits(
    queue: str,
    limit: int,
    looked_at: int,
    process_id: str,
    limits: ActiveLimits,
    marks: Marks | None,
    ageing: float | None,
    overtakes: bool,
) -> tuple[bool, list[ClaimedJob]]:
    """Return whether there was a ready job, and up to `limit` jobs that may run, out of the first ready ones."""
    jobs = _taken(queue, looked_at, process_id, marks, ageing)
    admitted = _admitted(jobs, process_id, limits, overtakes=overtakes)
    if left := admitted[limit:]:
        slots.put_back([job.id for job in left])
        if marks is not None:
            marks.of(queue).step_back((job.rank, job.available_at, job.id) for job in left)
    return bool(jobs), admitted[:limit]


def _claim_unwatched(
    queue: str, limit: int, process_id: str, limits: ActiveLimits, marks: Marks | None
) -> list[ClaimedJob]:
    """Claim from a queue where no limited job is expected, as without limits: no transaction around one statement.

    When there is one after all, its claim has committed before it is held back, once; the queue is watched from then on.
    """
    jobs = _claim(queue, limit, process_id, marks)
    if limits.types.keys().isdisjoint([job.job_type for job in jobs]):
        return jobs
    watch(queue)
    return transactional(_admitted)(jobs, process_id, limits)


def _admitted(
    jobs: Sequence[ClaimedJob], process_id: str, limits: ActiveLimits, *, overtakes: bool = False
) -> list[ClaimedJob]:
    """Return those of the claimed jobs that may run; the others are held back."""
    limited = [job for job in jobs if limits.hold(job.job_type, job.queue)]
    if not limited:
        return list(jobs)
    left_out = {job.id for job in limited}
    admitted = slots.admit(limited, limits, process_id, overtakes=overtakes)
    return [
        job._replace(is_limited=True, **admitted[job.id]._asdict()) if job.id in admitted else job
        for job in jobs
        if job.id in admitted or job.id not in left_out
    ]


def claim_job(job_id: str, process_id: str) -> ClaimedJob:
    """Take one particular job; raise JobNotFound, and InvalidJob when it is not ready, or a limit holds it back."""
    job = _claim_job(job_id, process_id)
    if job is None:  # it is held back from now on, as any claim would have done
        limit = Job.objects.get(pk=job_id).held_back_by
        raise InvalidJob(f"job {job_id!r} is held back by the limit {limit!r}; it can be claimed when there is room")
    return job


@transactional
def _claim_job(job_id: str, process_id: str) -> ClaimedJob | None:
    ready = Job.objects.filter(pk=job_id, status=JobStatus.PENDING, pending_dependencies=0)
    claimed = ready.update(
        status=JobStatus.RUNNING,
        fence=F("fence") + 1,
        worker_id=process_id,
        started_at=DbNow(),
        updated_at=DbNow(),
        pending_limits=0,
    )
    job = Job.objects.filter(pk=job_id).first()
    if job is None:
        raise JobNotFound(job_id)
    if not claimed:
        waits = f" and waits for {job.pending_dependencies} jobs" if job.pending_dependencies else ""
        raise InvalidJob(f"job {job_id!r} is {job.status}{waits}; only a ready job can be claimed")
    claimed_job, limits = ClaimedJob.of(job), active_limits()
    if not limits.hold(job.job_type, job.queue):
        return claimed_job
    admitted = slots.admit([claimed_job], limits, process_id, overtakes=True)
    return claimed_job._replace(**admitted[job_id]._asdict()) if admitted else None


def held_claim(job_id: str, fence: int, process_id: str) -> ClaimedJob | None:
    """Return the claim of a job that a process holds under `fence`, or None when it was taken away."""
    job = Job.objects.held_under(job_id, fence).filter(worker_id=process_id).first()
    return None if job is None else ClaimedJob.of(job)
