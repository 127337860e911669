"""Slots: which claimed jobs a limit lets run, which it holds back, and who is let in when there is room.

A running job has a slot in each of its scopes: its row says that it runs, and its LimitSlot rows say where that counts. A claim
decides under the lock of the scopes; a job that gets no slot is held back, out of the index that claims read. Whatever ends a run
lets the first one that waits in again, under the same lock and in the same transaction, and a claim decides anew. So where a slot
is free and jobs wait, the first one of each queue has been let in: no slot is reserved for a queue that nobody serves.

Where a limit has a rate, a claim counts the starts of late as well (`starts`), and the first that wait are let in when their turn
has come: `take_turns`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.limits import SLOT_COLUMNS
from django_jobs.db.dialects.words import SLOT
from django_jobs.db.lines import NO_KEY, InLine
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import after_commit, database_now, transactional
from django_jobs.limit import MOST_AT_ONCE, name_of_scope
from django_jobs.models import Job, JobStatus, LimitSlot, LimitTurn

from . import starts, turns
from .active_limits import NO_LIMITS, ActiveLimits, active_limits, is_removed
from .moved import in_chunks
from .scopes import SCOPES_PER_STATEMENT, STEP, Claimed, Scopes, Slot, Taker, go_on, next_in_one_queue, rooms_of

SCOPES_PER_SWEEP = 1_000
_SCOPED = ("job_type", "queue", "limit_key", "queue_limit_key")  # the arguments of ActiveLimits.scopes
_NOW = datetime.min  # since when jobs of one batch have waited that are ready at once


class Admitted(NamedTuple):
    """A job that may run: its scopes with a rate, and the time (`time.monotonic`) before which it must not start."""

    rated: tuple[str, ...]
    not_before: float


SlotRow = tuple[
    str, str, bool, bool, str, int, Any, str | None
]  # job id, scope, waits, starts, queue, rank, since, fair key


# --- who gets a slot


def admit(
    jobs: Sequence[Claimed], limits: ActiveLimits, process_id: str, *, overtakes: bool = False
) -> dict[str, Admitted]:
    """Give slots to jobs of one queue that a process has claimed, in claim order; hold the others back.

    Args:
        jobs: claimed jobs that a limit may hold.
        overtakes: whether they go before others that wait in the same queue and come first in claim order.

    Returns those that may run, by id. What is not the process's any more is left as it is.
    """
    keys = {job_id: of_job for job_id, *of_job in dialect().limit_keys([job.id for job in jobs], process_id)}
    ours = [job for job in jobs if job.id in keys]
    wanted = {job.id: limits.scopes(job.job_type, job.queue, *keys[job.id][:2]) for job in ours}
    fair_keys = {job_id: fair_key for job_id, (_, _, fair_key) in keys.items()}
    scopes = Scopes(limits, (scope for scopes in wanted.values() for scope in scopes))
    there = _slots_of([*wanted])  # under the lock: what is read before it may be old on MariaDB
    scopes.hand_back(slot for slots in there.values() for slot in slots)
    if ours and not overtakes:
        scopes.see_who_comes_first(ours)
    slots: dict[str, set[Slot]] = {}
    held: list[str] = []
    for job in ours:
        full = scopes.take(job, wanted[job.id])
        taken = wanted[job.id] if full is None else [full]
        slots[job.id] = {Slot(scope, full is not None, limits.rate(scope) is not None) for scope in taken}
        if full is not None:
            held.append(job.id)
    _write_slots(ours, there, slots, fair_keys)
    if held:
        dialect().undo_claim(held, pending_limits=1)
        scopes.leave_out_locked()
    scopes.serve_turns()
    scopes.let_in()
    if scopes.have_turns and held:
        _tell_turns(held)
    now = (database_now(), time.monotonic()) if scopes.not_before else None
    return {
        job_id: Admitted(
            tuple(scope for scope in wanted[job_id] if limits.rate(scope) is not None),
            _monotonic(scopes.not_before[job_id], *now) if now and job_id in scopes.not_before else 0.0,
        )
        for job_id in keys.keys() - set(held)
    }


def _monotonic(moment: datetime, now: datetime, monotonic: float) -> float:
    return monotonic + (moment - now).total_seconds()


def _tell_turns(held: Sequence[str]) -> None:
    """Write into jobs that wait for a rate when it lets the first of them start: nobody decides by that, and people see it."""
    turn = LimitTurn.objects.filter(scope=OuterRef("scope")).values("due_at")
    waits = (
        LimitSlot.objects.filter(job=OuterRef("pk"), waits=True).annotate(due_at=Subquery(turn)).values("due_at")[:1]
    )
    Job.objects.filter(pk__in=held).update(scheduled_at=Coalesce(Subquery(waits), F("scheduled_at")))


def put_back(ids: Sequence[str]) -> None:
    """Make jobs ready again that the open transaction has claimed and admitted."""
    if ids:
        dialect().undo_claim(ids, pending_limits=0)
        dialect().delete_slots(ids)


def _slots_of(ids: Sequence[str]) -> dict[str, set[Slot]]:
    """Return the slots of jobs that have some: those that were let in."""
    found: dict[str, set[Slot]] = {}
    for job_id, scope, waits, has_yet_to_start in dialect().slots_of(ids) if ids else ():
        found.setdefault(job_id, set()).add(Slot(scope, waits, has_yet_to_start))
    return found


def _write_slots(
    jobs: Iterable[Claimed],
    there: Mapping[str, set[Slot]],
    wanted: Mapping[str, set[Slot]],
    fair_keys: Mapping[str, str | None],
) -> None:
    """Write the slots of jobs, whose rows the caller has locked, where they are other ones than are there."""
    changed = [job for job in jobs if there.get(job.id, set()) != wanted[job.id]]
    if old := [job.id for job in changed if job.id in there]:
        dialect().delete_slots(old)
    insert_slots(
        (job.id, *slot, job.queue, job.rank, job.available_at, fair_keys[job.id])
        for job in changed
        for slot in wanted[job.id]
    )


def insert_slots(rows: Iterable[SlotRow]) -> None:
    """Write slots."""
    values = [
        (job_id, scope, int(waits), int(has_yet_to_start), *rest, _text(available), int(key is not None), key or NO_KEY)
        for job_id, scope, waits, has_yet_to_start, *rest, available, key in rows
    ]
    if values:
        dialect().insert_rows(SLOT, SLOT_COLUMNS, values)


def _text(moment: datetime | str) -> str:
    """Return a time as `insert_rows` takes it: text, in UTC, without its zone."""
    if isinstance(moment, str):
        return moment
    return str(moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None))


def may_run(job: Job) -> bool:
    """Say whether there are slots for a waiting job now, as far as that can be said without a lock."""
    limits = active_limits()
    rooms = rooms_of(limits, limits.scopes(job.job_type, job.queue, job.limit_key, job.queue_limit_key))
    return all(room.left > 0 for room in rooms.values())


class Held(NamedTuple):
    """A job that is held back from its submit: where, and after how many seconds it can start by a rate, at the earliest."""

    scope: str
    seconds: int
    is_rated: bool


def held_at_submit(jobs: Iterable[tuple[str, str, int, Sequence[str], str | None]]) -> dict[str, Held]:
    """Return which ready jobs of a batch are held back from the start: those behind as many as may run.

    Given are id, queue, rank, scopes and fair key. The first ones of each scope and queue are not, so that nobody waits beside a
    free slot; to claim a hundred thousand others only to hold them back would take half a minute. A job of two scopes is not,
    either.
    """
    limits = active_limits()
    by_scope: dict[tuple[str, str], list[InLine]] = {}
    for job_id, queue, rank, scopes, key in jobs:
        if len(scopes) == 1:
            by_scope.setdefault((scopes[0], queue), []).append(InLine(rank, _NOW, job_id, key or NO_KEY))
    held: dict[str, Held] = {}
    for (scope, _), some in by_scope.items():
        rate, most = limits.rate(scope), limits.most_at_once(scope)
        for place, job in enumerate(turns.in_turn(some, {}, None)[most:], most):
            seconds = 0 if rate is None else place // rate.number * rate.seconds
            held[job.id] = Held(scope, seconds, rate is not None)
    return held


# --- who is next


def give_on(ids: Collection[str], taker: Taker | None = None) -> list[tuple[Any, ...]]:
    """Delete the slots of jobs that do not run any more, and let in who is next, or claim that for a `taker`.

    Call it last in the transaction that has locked and moved the jobs: it locks their scopes until the end. Returns the rows of
    the jobs that were claimed.
    """
    deleted = dialect().delete_slots([*ids]) if ids else set()
    limits = active_limits()
    # Where there is a rate alone, the end of a run that has started makes no room.
    scopes = {scope for scope, starts in deleted if starts or limits.concurrency(scope) != MOST_AT_ONCE}
    known = sorted(scope for scope in scopes if limits.concurrency(scope) is not None)
    if not known:
        return []
    found = next_in_one_queue(limits, known)
    if found is None:
        return Scopes(limits, known).let_in(taker)
    return go_on(found, taker, limits, {scope: len(jobs) for (scope, _), jobs in found.items()})


@transactional
def let_in(names: Collection[str]) -> None:
    """Let in who is next in these scopes."""
    scopes = Scopes(active_limits(), names)
    scopes.leave_out_locked()
    scopes.let_in()


def leave(jobs: Iterable[Job]) -> None:
    """Take jobs, which wait and whose rows the caller has locked, out of their scopes; others are let in after the commit.

    The caller sets their `pending_limits` to 0.
    """
    limits = active_limits()
    concerned = [job for job in jobs if limits is not NO_LIMITS or job.pending_limits]
    if concerned:
        scopes = {scope for scope, _ in dialect().delete_slots([job.pk for job in concerned])}
        # A ready one may have no slot yet, and others of its submit wait behind it: they count on its claim.
        ready = (job for job in concerned if job.status == JobStatus.PENDING and not job.pending_limits)
        for job in ready:
            scopes.update(limits.scopes(job.job_type, job.queue, job.limit_key, job.queue_limit_key))
        if scopes:
            after_commit(lambda: let_in(scopes))


# --- turns


def take_turns() -> float | None:
    """Let in whose turn has come by a rate; return the seconds until the next turn, None when nobody waits for one."""
    seconds = starts.seconds_until_turn()
    if seconds is None or seconds > 0:
        return seconds
    scopes = starts.take_due_turns()
    if not scopes:  # other processes are at it; what is overdue for long is of limits that only they know
        return starts.EARLY_SECONDS if seconds > -starts.OVERDUE_SECONDS else starts.AGAIN_SECONDS
    let_in(scopes)
    return starts.seconds_until_turn()


# --- the safety net


def sweep(after: str = "", most: int | None = None) -> str:
    """Let in who waits in a scope without a reason, scope by scope; return the last one that was looked at, "" at the end.

    What settles, rescues, releases and cancels lets others in by itself. This is for rows that were deleted, and for limits
    that were raised or removed.
    """
    scopes: list[str] = []
    scope = dialect().next_waited_for(after)
    while scope is not None and (most is None or len(scopes) < most):
        scopes.append(scope)
        scope = dialect().next_waited_for(scope)
    for chunk in in_chunks(scopes, SCOPES_PER_STATEMENT):
        _sweep(chunk)
    return scopes[-1] if scope is not None else ""


def _sweep(scopes: Sequence[str]) -> None:
    limits = active_limits()
    known: list[str] = []
    for scope in scopes:
        most, rate = limits.concurrency(scope), limits.rate(scope)
        is_lifted = most == MOST_AT_ONCE and rate is None
        if is_lifted or (most is None and is_removed(name_of_scope(scope))):
            while _free(scope):
                pass
        elif most is not None:
            known.append(scope)
    starts.forget_turns(starts.without_rate(scopes, limits))
    if known:
        let_in(known)


@transactional
def _free(scope: str) -> int:
    """Make some jobs ready that wait in a scope whose limit was removed or lifted; return how many there were."""
    waiting = Job.objects.filter(slots__scope=scope, slots__waits=True, pending_limits=1)
    queues = dict(waiting.values_list("pk", "queue")[:STEP])
    freed = len(dialect().let_in(sorted(queues))) if queues else 0
    for queue in set(queues.values()):
        notify_work(queue)
    return freed


def count_running() -> None:
    """Give slots to jobs that run without: processes without these limits have claimed them, or by numbers of before.

    A sweep lets others in after them.
    """
    limits = active_limits()
    if limits is NO_LIMITS:
        return
    for chunk in in_chunks(dialect().running_of([*limits.types], [*limits.queues]), STEP):
        missing = _without_slots({job_id: of_job for job_id, *of_job in chunk})
        if uncounted := [job_id for job_id, scopes in missing.items() if scopes]:
            _count(uncounted)


@transactional
def _count(ids: Sequence[str]) -> None:
    """Give slots to those of the jobs that run and have none; those that somebody has locked are counted the next time."""
    free = Job.objects.filter(pk__in=ids, status=JobStatus.RUNNING).select_for_update(skip_locked=True)
    jobs = {job.pk: job for job in free.only(*_SCOPED, "rank", "available_at", "fair_key")}
    missing = _without_slots({pk: [getattr(job, name) for name in _SCOPED] for pk, job in jobs.items()})
    insert_slots(
        (pk, scope, False, False, job.queue, job.rank, job.available_at, job.fair_key)
        for pk, job in jobs.items()
        for scope in missing[pk]
    )


def _without_slots(jobs: Mapping[str, Sequence[Any]]) -> dict[str, set[str]]:
    """Return for each of the jobs, given with its values of _SCOPED, the scopes in which it needs a slot and has none."""
    limits, there = active_limits(), _slots_of([*jobs])
    return {
        job_id: {*limits.scopes(*of_job)} - {slot.scope for slot in there.get(job_id, ())}
        for job_id, of_job in jobs.items()
    }
