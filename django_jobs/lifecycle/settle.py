"""Settle: record how runs ended, fenced, many in one transaction. A settle whose fence has moved writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from django.db import DatabaseError, DataError, IntegrityError

from django_jobs import signals
from django_jobs.conf import this_release
from django_jobs.db.dialects import dialect
from django_jobs.db.errors import is_lock_timeout
from django_jobs.db.notify import notify_finished, notify_work
from django_jobs.db.transactions import after_commit, lock_wait, retried, transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Attempt, AttemptOutcome, DeadLetter, DeadLetterReason, Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY, WAITING
from django_jobs.text import describe_exception, scrub

from . import logs, scopes, slots, starts, turns
from .batches import settle_members
from .cancel import cancel_as_requested, cancel_children
from .claim import ClaimedJob, claim_freed, held_claim
from .dependents import dependents_of, settle_dependents, wake_dependents
from .members import Ended, held_by_others
from .outcome import FAILURES, Outcome
from .steps import put_to_wait
from .told import tell_of_retries

logger = logging.getLogger("django_jobs")

REFUSED = (DataError, IntegrityError)
LOCK_WAIT_SECONDS = 0.5
MOST_TOGETHER = 1000  # jobs of a statement, of a list of a bulk handler that is settled in its own transaction
_OF_ENDED = (signals.job_failed, signals.job_retried, signals.job_dead, signals.job_cancelled)


class Handover:
    """The jobs that a worker thread runs next, out of what its settle freed: claimed in the same transaction.

    So the next link of a chain, and the next jobs that waited for a limit, need neither a commit nor a notification nor a look of
    their own.

    Args:
        takes: says whether the thread runs jobs of a queue now.
        most: how many jobs that waited for a limit.
    """

    def __init__(self, takes: Callable[[str], bool], most: int = 1) -> None:
        self.takes = takes
        self.most = most
        self.jobs: list[ClaimedJob] = []

    def claim(self, freed: Mapping[str, Collection[str]], process_id: str) -> None:
        """Claim one job of the first queue that the thread takes, unless it has some."""
        queue = next(filter(self.takes, freed), None) if not self.jobs else None
        if queue is not None and (job := claim_freed(queue, process_id)) is not None:
            self.jobs = [job]

    def give_on(self, ids: Collection[str], process_id: str) -> None:
        """Give the slots of jobs on, and claim who is next in the queues that the thread takes."""
        taker = scopes.Taker(process_id, self._takes_from, self.most)
        self.jobs = ClaimedJob.of_rows(slots.give_on(ids, taker), is_limited=True)

    def _takes_from(self, queue: str) -> bool:
        return self.takes(queue) and not turns.has_keys(queue)


def settle(outcomes: Sequence[Outcome], process_id: str) -> set[str]:
    """Settle runs in one transaction and return the ids that were lost: somebody else had moved their fence.

    Dependents are woken in the same transaction. When the database refuses one member for good, the members are settled one
    by one and the refused one is dead (`bad result`).
    """
    try:
        lost = _settle(outcomes, process_id)
    except REFUSED as error:
        _log_refused(outcomes, error)
        lost = {job_id for outcome in outcomes for job_id in _settle_alone(outcome, process_id)}
    _after_settle(outcomes, lost)
    return lost


def settle_unlocked(outcomes: Sequence[Outcome], process_id: str, handover: Handover | None = None) -> list[Outcome]:
    """Settle the runs whose rows, and whose dependents' rows, nobody else has locked for long; return the others.

    A long transaction of the site that submits a dependent holds such a lock: it must not hold up the rest of a batch. With a
    `handover`, which is empty after an error, the next job to run is claimed as well.
    """
    locked: list[Outcome] = []
    with lock_wait(LOCK_WAIT_SECONDS):
        try:
            lost = _settle(outcomes, process_id, handover)
        except DatabaseError as error:
            if handover is not None:
                handover.jobs = []
            locked, lost = _settle_some(outcomes, process_id, error)
    _after_settle([outcome for outcome in outcomes if outcome not in locked], lost)
    return locked


def _settle_some(outcomes: Sequence[Outcome], process_id: str, error: DatabaseError) -> tuple[list[Outcome], set[str]]:
    """Settle what can be settled of a batch that failed; return what is locked, and the ids that were lost."""
    if not is_lock_timeout(error):
        return _settle_each(outcomes, process_id, error)
    locked: list[Outcome] = []
    lost: set[str] = set()
    by_batch: dict[str | None, list[Outcome]] = {}
    for outcome in outcomes:
        by_batch.setdefault(outcome.job.batch_id, []).append(outcome)
    for batch_id, group in by_batch.items():
        try:
            left, gone = _settle_free(group, process_id)
        except DatabaseError as failure:
            # A batch's row is locked by whoever adds members to it, and then by a long transaction of the site.
            if batch_id is not None and is_lock_timeout(failure):
                left, gone = group, set()
            else:
                left, gone = _settle_each(group, process_id, failure)
        locked += left
        lost |= gone
    return locked, lost


def _settle_each(outcomes: Sequence[Outcome], process_id: str, error: DatabaseError) -> tuple[list[Outcome], set[str]]:
    """Settle one by one what the database refused together; return as `_settle_some`."""
    if isinstance(error, REFUSED):
        _log_refused(outcomes, error)
    elif not is_lock_timeout(error):
        raise error
    locked: list[Outcome] = []
    lost: set[str] = set()
    for outcome in outcomes:
        try:
            lost |= _settle_alone(outcome, process_id)
        except DatabaseError as failure:
            if not is_lock_timeout(failure):
                raise
            locked.append(outcome)
    return locked, lost


@transactional
def _settle_free(outcomes: Sequence[Outcome], process_id: str) -> tuple[list[Outcome], set[str]]:
    """Take the locks that are to be had at once, and settle what needs no other; return what is left as `_settle_some`."""
    # The database says which rows are locked; to halve the batch until they are alone took a statement for each half.
    free = dialect().lock_free_jobs([outcome.job.id for outcome in outcomes])
    dependents = dependents_of(sorted(free))
    wanted = {job_id for waiting in dependents.values() for job_id in waiting} - free
    unlocked = free | (dialect().lock_free_jobs(sorted(wanted)) if wanted else set())
    free = {job_id for job_id in free if unlocked.issuperset(dependents.get(job_id, ()))}
    if members := [outcome.job.id for outcome in outcomes if outcome.job.batch_id is not None]:
        free -= held_by_others(members)
    lost = _settle([outcome for outcome in outcomes if outcome.job.id in free], process_id)
    return [outcome for outcome in outcomes if outcome.job.id not in free], lost


def settle_again(outcomes: Sequence[Outcome], process_id: str) -> set[str]:
    """Settle after an attempt whose reply was lost: what has moved since may well be our own commit."""
    left = not_settled(outcomes, process_id)
    return settle(left, process_id) if left else set()


def not_settled(outcomes: Sequence[Outcome], process_id: str) -> list[Outcome]:
    """Return the runs that are not on record as settled.

    A job that our settle completed has the next fence and is completed; one that we ended otherwise has the next fence and
    our attempt. Anything else is left to `settle`, which writes it or reports it lost.
    """
    rows = Job.objects.filter(pk__in=[outcome.job.id for outcome in outcomes]).values_list("pk", "fence", "status")
    stands = {job_id: (fence, status) for job_id, fence, status in rows}
    left = [
        outcome
        for outcome in outcomes
        if stands.get(outcome.job.id) != (outcome.job.fence + 1, outcome.status)
        or not (outcome.is_completed or _has_attempt(outcome, process_id))
    ]
    _call_back_completed(outcome for outcome in outcomes if outcome.is_completed and outcome not in left)
    if logs.open_logs:
        logs.close(outcome.run for outcome in outcomes if outcome not in left)
    return left


def _has_attempt(outcome: Outcome, process_id: str) -> bool:
    attempts = Attempt.objects.filter(job_id=outcome.job.id, number=outcome.job.attempt, worker_id=process_id)
    return attempts.filter(outcome=outcome.attempt).exists()


def complete_in_transaction(outcomes: Sequence[Outcome], process_id: str) -> bool:
    """Settle the jobs of a run inside the handler's own transaction; return False when the lease of one was lost."""
    for start in range(0, len(outcomes), MOST_TOGETHER):
        if _settle_here(outcomes[start : start + MOST_TOGETHER], process_id):
            return False
    notify_finished()
    return True


@retried
def note_error_after_commit(job: ClaimedJob, error: BaseException) -> None:
    """Keep an error that came after the commit in the `error` of the completed job, unless that has moved on since."""
    completed = Job.objects.filter(pk=job.id, fence=job.fence + 1, status=JobStatus.COMPLETED)
    completed.update(error=scrub(f"completed, then on_commit failed: {describe_exception(error)}"), updated_at=DbNow())


@transactional
def record_undone(jobs: Sequence[ClaimedJob], process_id: str, error: str, seconds: float) -> bool:
    """Record a run that the database undid and that its process starts again; False when one of its jobs is not ours any more."""
    rows = Job.objects.filter(pk__in=[job.id for job in jobs], status=JobStatus.RUNNING).order_by("pk")
    held = dict(rows.select_for_update().values_list("pk", "fence"))
    is_held = held == {job.id: job.fence for job in jobs}
    if is_held:
        write_attempts([Outcome.released(job, error)._replace(seconds=seconds) for job in jobs], process_id)
    return is_held


@retried
def still_held(jobs: Sequence[ClaimedJob]) -> set[str]:
    """Return the ids of those jobs that still run under the fence of their claim."""
    rows = Job.objects.filter(pk__in=[job.id for job in jobs], status=JobStatus.RUNNING)
    held = set(rows.values_list("pk", "fence"))
    return {job.id for job in jobs if (job.id, job.fence) in held}


def _settle_here(outcomes: Sequence[Outcome], process_id: str, handover: Handover | None = None) -> set[str]:
    """Settle runs in the transaction that is open; return the ids that were lost."""
    lost: set[str] = set()
    freed: dict[str, list[str]] = {}
    ended: list[Ended] = []
    if handover is not None:
        handover.jobs = []  # of a try that was rolled back
    completed = [outcome for outcome in outcomes if outcome.is_completed]
    if completed:
        rows = [(outcome.job.id, outcome.job.fence, outcome.result_text) for outcome in completed]
        settled = dialect().complete(rows)
        freed = wake_dependents(sorted(settled))
        won = completed
        if len(settled) != len(completed):
            lost = {outcome.job.id for outcome in completed} - settled
            won = [outcome for outcome in completed if outcome.job.id in settled]
        ended = _members(won)
        _announce_completed(won, process_id)
    if len(completed) != len(outcomes):
        others, moved = _settle_others([outcome for outcome in outcomes if not outcome.is_completed], process_id)
        lost |= others
        ended += moved
    if ended:
        settle_members(ended)
    limited = [outcome.job.id for outcome in outcomes if outcome.job.is_limited]
    if limited:
        starts.began_by_now((*outcome.run, outcome.job.rated) for outcome in outcomes if outcome.job.rated)
        if handover is None:
            slots.give_on(set(limited) - lost)
        else:
            handover.give_on(set(limited) - lost, process_id)
    if logs.open_logs:
        logs.write(outcome.run for outcome in outcomes if outcome.job.id not in lost)
    if freed:
        _hand_over(freed, process_id, handover)
    return lost


def _hand_over(freed: Mapping[str, Sequence[str]], process_id: str, handover: Handover | None) -> None:
    """Claim one of the jobs that were freed, if that is wanted, and notify of the others."""
    taken = None
    if handover is not None:
        handover.claim(freed, process_id)
        taken = handover.jobs[0] if handover.jobs else None
    for queue, ids in freed.items():
        # What was claimed may be another one, which was there before.
        if taken is None or ids != [taken.id]:
            notify_work(queue)


_settle = transactional(_settle_here)


def _announce_completed(outcomes: Sequence[Outcome], process_id: str) -> None:
    _call_back_completed(outcomes)
    if signals.job_completed.has_listeners(Job):
        for outcome in outcomes:
            signals.announce(signals.job_completed, outcome.job.id, worker_id=process_id, result=outcome.result)


def settle_ended(outcomes: Sequence[Outcome], process_id: str, release: str | None = None) -> set[str]:
    """Settle runs that did not complete, in the transaction that is open; return the ids whose fence had moved.

    Args:
        release: of the code that ran them; None: of this process.
    """
    lost, ended = _settle_others(outcomes, process_id, release)
    settle_members(ended)
    return lost


def _settle_others(
    outcomes: Sequence[Outcome], process_id: str, release: str | None = None
) -> tuple[set[str], list[Ended]]:
    """Settle runs that did not complete; return the ids whose fence had moved, and the jobs that ended.

    One statement a table for the whole batch: the jobs are moved, their attempts and dead letters written, their dependents
    treated.
    """
    rows = [
        (
            *outcome.run,
            str(outcome.status),
            outcome.delay,
            int(outcome.spends_retry),
            int(outcome.counts_crash),
            None if outcome.waits else outcome.error or None,  # a wait is no error of the job
        )
        for outcome in sorted(outcomes, key=lambda outcome: outcome.job.id)
    ]
    moved = dialect().end(rows)
    settled = [outcome for outcome in outcomes if outcome.job.id in moved]
    release = this_release() if release is None else release
    write_attempts(settled, process_id, release)
    if dead_letters := [_dead_letter(outcome, release) for outcome in settled if outcome.reason is not None]:
        DeadLetter.objects.bulk_create(dead_letters)
    if waits := {outcome.job.id: outcome.waits for outcome in settled if outcome.waits}:
        put_to_wait(waits)
    ended: list[Ended] = []
    if bad := sorted(outcome.job.id for outcome in settled if outcome.status in ENDED_BADLY):
        ended = _members(outcome for outcome in settled if outcome.status in ENDED_BADLY)
        ended += settle_dependents(bad).failed
    if cancelled := [outcome.job.id for outcome in settled if outcome.status == JobStatus.CANCELLED]:
        after_commit(partial(cancel_children, cancelled))
    if waiting := [outcome.job.id for outcome in settled if outcome.status in WAITING]:
        ended += cancel_as_requested(waiting)
    for queue in {outcome.job.queue for outcome in settled if outcome.status == JobStatus.PENDING}:
        notify_work(queue, is_old=True)
    _announce_ended(settled, process_id)
    return {outcome.job.id for outcome in outcomes} - moved, ended


def _members(outcomes: Iterable[Outcome]) -> list[Ended]:
    """Return those of the jobs that are of a batch."""
    return [
        Ended(job.id, job.batch_id, outcome.status) for outcome in outcomes if (job := outcome.job).batch_id is not None
    ]


def write_attempts(outcomes: Iterable[Outcome], process_id: str, release: str | None = None) -> None:
    """Record runs that did not complete, each as an attempt that ends now."""
    release = this_release() if release is None else release
    # By hand: the ORM resolves the two expressions of the database's clock for each row, 100 µs of a failed attempt.
    rows = [
        (
            outcome.job.id,
            outcome.job.attempt,
            process_id,
            outcome.seconds,
            str(outcome.attempt),
            outcome.exception_class,
            outcome.error,
            outcome.traceback,
            release,
        )
        for outcome in outcomes
    ]
    if rows:
        dialect().insert_attempts(rows)


def _dead_letter(outcome: Outcome, release: str) -> DeadLetter:
    assert outcome.reason is not None
    return DeadLetter(
        job_id=outcome.job.id,
        job_type=outcome.job.job_type,
        reason=outcome.reason,
        error=outcome.error,
        traceback=outcome.traceback,
        fingerprint=outcome.fingerprint,
        release=release,
        died_at=DbNow(),
    )


def _announce_ended(outcomes: Sequence[Outcome], process_id: str) -> None:
    """Send the signals of runs that did not complete: failed, then what came of it. The jobs are read once for all.

    Those of jobs that are only tried again are read for listeners of the site alone.
    """
    failures = {outcome.job.id: outcome for outcome in outcomes if outcome.attempt in FAILURES}
    tell_of_retries(
        {
            job_id: (outcome.job, outcome.job.retry_count + outcome.spends_retry, outcome.error)
            for job_id, outcome in failures.items()
            if outcome.status == JobStatus.SCHEDULED
        }
    )
    told: Sequence[Outcome] = outcomes
    if not (signals.job_failed.has_listeners(Job) or signals.job_retried.has_listeners(Job)):
        told = [outcome for outcome in outcomes if outcome.reason is not None or outcome.status in ENDED_BADLY]
    if not told or not any(signal.has_listeners(Job) for signal in _OF_ENDED):
        return
    jobs = Job.objects.in_bulk([outcome.job.id for outcome in told])
    for outcome in told:
        job = jobs[outcome.job.id]
        why = {"error": outcome.error, "exception": outcome.exception}
        if outcome.job.id in failures:
            signals.announce(signals.job_failed, job, **why, worker_id=process_id)
            if job.status == JobStatus.SCHEDULED:
                signals.announce(signals.job_retried, job, **why, next_scheduled_at=job.available_at)
        if outcome.status == JobStatus.DEAD or outcome.reason is not None:
            signals.announce(signals.job_dead, job, **why)
        if outcome.status == JobStatus.CANCELLED:
            signals.announce(signals.job_cancelled, job)


def _settle_alone(outcome: Outcome, process_id: str) -> set[str]:
    """Settle one run of a batch that was refused; what the database would not take is left out."""
    try:
        return _settle([outcome], process_id)
    except REFUSED as error:
        if outcome.is_completed:
            return _settle_bad_result(outcome, str(error), process_id)
        logger.exception("the database refused what is told of a run of job %s; that much is left out", outcome.job.id)
    plain = outcome._replace(error="the database refused the error's text", exception_class="", traceback="")
    return _settle([plain], process_id)


def _settle_bad_result(outcome: Outcome, error: str, process_id: str) -> set[str]:
    """Make a job dead whose result the database would not take; a retry would repeat its effects."""
    job = held_claim(*outcome.run, process_id)
    if job is None:
        return {outcome.job.id}
    bad = Outcome(
        job,
        JobStatus.DEAD,
        AttemptOutcome.FAILED,
        reason=DeadLetterReason.BAD_RESULT,
        error=f"the database refused the result: {error:.500}",
        exception=InvalidJob(f"the database refused the result: {error:.500}"),
    )
    return _settle([bad], process_id)


def _log_refused(outcomes: Sequence[Outcome], error: Exception) -> None:
    logger.warning("the database refused a batch of %d results, settling one by one: %s", len(outcomes), error)


def _after_settle(outcomes: Sequence[Outcome], lost: set[str]) -> None:
    notify_finished()
    _forget_callbacks(outcome.run for outcome in outcomes if not outcome.is_completed or outcome.job.id in lost)
    if logs.open_logs:
        logs.close(outcome.run for outcome in outcomes)
    if lost:
        logger.warning("dropped the late result of %s: another worker has taken the job since", ", ".join(sorted(lost)))


# What this process does once a run of its own is known to be recorded; by job and fence, so that no later run is meant.
_on_completion: dict[tuple[str, int], Callable[[], None]] = {}


def on_completion(job_id: str, fence: int, callback: Callable[[], None]) -> None:
    """Call back once when this run, which is about to return, has been recorded as completed; never when it is not."""
    _on_completion[job_id, fence] = callback


def _call_back_completed(outcomes: Iterable[Outcome]) -> None:
    """Call back for runs that are completed once the open transaction, if any, has committed."""
    if _on_completion:
        for outcome in outcomes:
            if outcome.run in _on_completion:
                after_commit(partial(_call_back, outcome.run))


def _forget_callbacks(runs: Iterable[tuple[str, int]]) -> None:
    """Drop the callbacks of runs that ended otherwise."""
    if _on_completion:
        for run in runs:
            _on_completion.pop(run, None)


def _call_back(run: tuple[str, int]) -> None:
    callback = _on_completion.pop(run, None)
    if callback is not None:
        callback()
