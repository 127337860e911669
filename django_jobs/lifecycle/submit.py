"""Submit: write jobs with plain INSERTs on the caller's own connection, inside the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, connections

from django_jobs import signals
from django_jobs.db.connections import jobs_alias, jobs_connection, jobs_databases
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import database_now, retried, transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, registry
from django_jobs.models import Job, JobStatus
from django_jobs.models.job import LIVE
from django_jobs.submission import NewJob

from . import dependencies, members, slots, turns
from .active_limits import active_limits
from .draft import (
    AVAILABLE_AT,
    FAIR_KEY,
    JOB_TYPE,
    LIMIT_KEY,
    PENDING_LIMITS,
    QUEUE,
    QUEUE_LIMIT_KEY,
    RANK,
    SCHEDULED_AT,
    STATUS,
    Draft,
    checked_draft,
)
from .moved import in_chunks

logger = logging.getLogger("django_jobs")

MAX_CLASHES = 20
LOOKUP_CHUNK = 1000
_OF_ONE_JOB = ("job_id", "unique_key", "depends_on")
_warned: set[str] = set()


class _KeyTaken(Exception):
    """Somebody took a unique key between our look and our INSERT."""


def submit(
    job_type: str,
    payload: Mapping[str, Any] | None = None,
    *,
    handlers: Registry = registry,
    rank: int | None = None,
    any_type: bool = False,
    options: Mapping[str, Any],
    member_of: str | None = None,
    callback_of: str | None = None,
) -> Job:
    """Write one job and return it; with a `unique_key` that a live job holds, return that one.

    Args:
        handlers: who must know the job type.
        rank: the stored order, -100 to 100, for callers whose priorities are finer than ours.
        any_type: accept a type without a handler, for queues whose handlers live in another process.
        options: see `submission.OPTIONS`.
        member_of: the batch that it becomes a member of; callback_of: the batch that it tells of, and is no member of.

    Raises InvalidJob with every problem of the call; nothing is written then.
    """
    draft = checked_draft(job_type, payload, options, handlers, rank=rank, any_type=any_type)
    if member_of is not None or callback_of is not None:
        draft.shared.enter(member_of, callback_of)
    _warn_of_another_database()
    given = draft.submission
    needs_a_look = given.depends_on or given.delay is not None or given.scheduled_at is not None or member_of
    for _ in range(MAX_CLASHES):
        job = _insert_after_a_look(draft) if needs_a_look else _insert(draft)
        if job is not None:
            _announce([job])
            return job
        if given.job_id is not None:
            _refuse_taken_ids([draft])
        if given.unique_key is not None and (holder := _live_holders([given.unique_key]).get(given.unique_key)):
            return holder
        # The holder ended between the INSERT and the look: the key is free again.
    raise InvalidJob(f"unique_key {given.unique_key!r} changes hands too fast; submit again")


def submit_row(
    job_type: str, payload: Mapping[str, Any], *, rank: int, options: Mapping[str, Any]
) -> tuple[str, datetime]:
    """Write a job that starts at once and has no unique key; return its id and the time of the submit.

    No Job is built, which saves a quarter of the cost. Raises InvalidJob as `submit` does.
    """
    draft = checked_draft(job_type, payload, options, registry, rank=rank)
    _warn_of_another_database()
    values = draft.values(None)
    created_at = _insert_values(values)
    if created_at is None:
        raise InvalidJob(f"job_id {draft.id!r} exists already")
    notify_work(draft.template.queue)
    if draft.keys.fair_key is not None:
        turns.expect_keys(draft.template.queue)
    if signals.job_submitted.has_listeners(Job):
        signals.send(signals.job_submitted, sender=Job, job=draft.as_job(values, created_at))
    return draft.id, created_at


def submit_many(new_jobs: Iterable[NewJob], *, any_type: bool = False, member_of: str | None = None) -> list[Job]:
    """Write all of the jobs in one transaction, or none; return them in the order given.

    Jobs may depend on each other by their `job_id`, forward references included. Raises InvalidJob that names the index of
    each bad item, and CycleError with the path of a cycle.

    Args:
        any_type: accept a type without a handler, and a payload that does not fit the one here: the jobs may be meant for
            a process with other code.
        member_of: the batch that they become members of.
    """
    if not isinstance(new_jobs, Iterable) or isinstance(new_jobs, str | bytes | Mapping):
        raise InvalidJob(f"submit_many takes a list of NewJob(…), not {type(new_jobs).__name__}")
    drafts = _check_batch(list(new_jobs), any_type)
    if not drafts:
        return []
    if member_of is not None:
        for draft in drafts:
            draft.shared.enter(member_of, None)
    _warn_of_another_database()
    for left in reversed(range(MAX_CLASHES)):
        try:
            jobs = _insert_batch(drafts)
            break
        except _KeyTaken:
            if not left:
                raise InvalidJob("unique keys of the batch change hands too fast; submit again") from None
        except IntegrityError:
            _refuse_taken_ids(drafts)  # somebody else's submit has committed meanwhile
            raise
    _announce(jobs)
    return jobs


def _announce(jobs: Sequence[Job]) -> None:
    for queue in {job.queue for job in jobs}:
        notify_work(queue)
    for queue in {job.queue for job in jobs if job.fair_key is not None}:
        turns.expect_keys(queue)
    if signals.job_submitted.has_listeners(Job):
        for job in jobs:
            signals.send(signals.job_submitted, sender=Job, job=job)


# --- one job


def _insert(draft: Draft) -> Job | None:
    """Write the row in one statement; None when its id or unique key is taken."""
    values = draft.values(None)
    created_at = _insert_values(values)
    return None if created_at is None else draft.as_job(values, created_at)


@retried
def _insert_values(values: Sequence[Any]) -> datetime | None:
    return dialect().insert_job(values)


@transactional
def _insert_after_a_look(draft: Draft) -> Job | None:
    """Write a job that needs the clock or its dependencies first; None when its id or unique key is taken."""
    now = database_now()
    given = draft.submission
    edges = dependencies.resolve({draft.id: (given.depends_on, given.on_dependency_failure)}, frozenset())
    draft.open_edges = dependencies.count_open(edges[draft.id])
    batch_id = draft.shared.member_of
    if batch_id is not None:
        members.join(batch_id)
    values = draft.values(now)
    created_at = dialect().insert_job(values)
    if created_at is None:
        return None
    job = draft.as_job(values, created_at, now)
    if dependencies.store(edges):
        job.refresh_from_db(using=jobs_alias())
    if batch_id is not None:
        members.add(batch_id, [job])
    return job


# --- a batch


def _check_batch(new_jobs: Sequence[NewJob], any_type: bool) -> list[Draft]:
    """Check every item, naming the index of each that is refused."""
    problems: list[str] = []
    drafts: list[Draft] = []
    seen: dict[str, int] = {}
    alike: dict[Hashable, Draft] = {}
    for index, new in enumerate(new_jobs):
        if not isinstance(new, NewJob):
            problems.append(f"item {index}: give NewJob(…), not {type(new).__name__}")
            continue
        key = _likeness(new)
        try:
            if key in alike:
                draft = alike[key].another(new.payload)
            else:
                draft = checked_draft(
                    new.job_type, new.payload, new.options, registry, any_type=any_type, any_payload=any_type
                )
                if key is not None:
                    alike[key] = draft
        except InvalidJob as error:
            problems.extend(f"item {index}: {problem}" for problem in error.problems)
            continue
        if draft.id in seen:
            problems.append(f"item {index}: job_id {draft.id!r} is taken by item {seen[draft.id]}")
        seen[draft.id] = index
        drafts.append(draft)
    if problems:
        raise InvalidJob(*problems)
    return drafts


def _likeness(new: NewJob) -> Hashable:
    """Return a key that is equal for new jobs that differ in their payload alone; None when it has to be checked by itself."""
    options = new.options
    if not options:
        return new.job_type if type(new.job_type) is str else None
    if not options.keys().isdisjoint(_OF_ONE_JOB):
        return None
    # With the types: 1, True and 1.0 are equal, and not equally good.
    key = (new.job_type, *options.items(), type(new.job_type), *map(type, options.values()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


@transactional
def _insert_batch(drafts: Sequence[Draft]) -> list[Job]:
    """Write a checked batch: jobs without a unique key in bulk, the others one by one.

    Raises _KeyTaken when somebody else took a unique key meanwhile; nothing is written then.
    """
    _refuse_taken_ids(drafts)
    jobs, stand_ins = _stand_ins(drafts)
    fresh = [draft for draft in drafts if draft.id not in stand_ins]
    edges = _edges_of_batch(drafts, fresh, stand_ins)
    for draft in fresh:
        draft.open_edges = dependencies.count_open(edges.get(draft.id, ()))
    batch_id = drafts[0].shared.member_of
    if batch_id is not None:
        members.join(batch_id)
    now = database_now()
    rows = [draft.values(now) for draft in fresh]
    held = _hold_back(fresh, rows, now) if any(draft.template.is_limited for draft in fresh) else []
    plain = [row for draft, row in zip(fresh, rows, strict=True) if draft.submission.unique_key is None]
    if plain:
        dialect().insert_jobs(plain)
    if held:
        slots.insert_slots(held)
    for draft, row in zip(fresh, rows, strict=True):
        if draft.submission.unique_key is not None and dialect().insert_job(row) is None:
            raise _KeyTaken
        jobs[draft.id] = draft.as_job(row, now, now)
        if draft.id in edges:
            jobs[draft.id].__dict__["_depends_on"] = [edge.depends_on for edge in edges[draft.id]]
    changed = dependencies.store(edges) if edges else ()
    if changed:
        jobs.update(Job.objects.in_bulk([one.job_id for one in changed]))
    if batch_id is not None:
        members.add(batch_id, [jobs[draft.id] for draft in fresh])
    return [jobs[stand_ins.get(draft.id, draft.id)] for draft in drafts]


def _hold_back(drafts: Sequence[Draft], rows: Sequence[list[Any]], now: datetime) -> list[slots.SlotRow]:
    """Hold back those of a batch, in their rows, that cannot run beside the others; return their slots."""
    limits = active_limits()
    ready = {
        draft.id: row
        for draft, row in zip(drafts, rows, strict=True)
        if draft.template.is_limited
        and draft.submission.unique_key is None
        and row[STATUS] == JobStatus.PENDING
        and not draft.submission.depends_on  # it may fail at once by a dependency that ended badly
    }
    scopes = (
        (
            job_id,
            row[QUEUE],
            row[RANK],
            limits.scopes(row[JOB_TYPE], row[QUEUE], row[LIMIT_KEY], row[QUEUE_LIMIT_KEY]),
            row[FAIR_KEY],
        )
        for job_id, row in ready.items()
    )
    held = slots.held_at_submit(scopes)
    adapt = jobs_connection().ops.adapt_datetimefield_value
    for job_id, one in held.items():
        ready[job_id][PENDING_LIMITS] = 1
        if one.seconds:
            ready[job_id][SCHEDULED_AT] = adapt(now + timedelta(seconds=one.seconds))
    return [
        (job_id, one.scope, True, one.is_rated, row[QUEUE], row[RANK], row[AVAILABLE_AT], row[FAIR_KEY])
        for job_id, one in held.items()
        for row in [ready[job_id]]
    ]


def _stand_ins(drafts: Sequence[Draft]) -> tuple[dict[str, Job], dict[str, str]]:
    """Return the live jobs that hold unique keys of a batch, and for each item that is not written the job in its place."""
    keys = {draft.id: draft.submission.unique_key for draft in drafts if draft.submission.unique_key is not None}
    if not keys:
        return {}, {}
    holders = _live_holders(sorted(set(keys.values())))
    first = {key: holder.id for key, holder in holders.items()}
    stand_ins = {job_id: place for job_id, key in keys.items() if (place := first.setdefault(key, job_id)) != job_id}
    return {holder.id: holder for holder in holders.values()}, stand_ins


def _edges_of_batch(
    drafts: Sequence[Draft], fresh: Sequence[Draft], stand_ins: Mapping[str, str]
) -> dependencies.Edges:
    """Return the edges of a batch, with the jobs that stand in for items in the place of these."""
    waiting = {draft.id: draft.submission for draft in fresh if draft.submission.depends_on}
    if not waiting:
        return {}
    wanted = {
        job_id: (tuple(dict.fromkeys(stand_ins.get(dep, dep) for dep in given.depends_on)), given.on_dependency_failure)
        for job_id, given in waiting.items()
    }
    dependencies.refuse_cycles({job_id: depends_on for job_id, (depends_on, _) in wanted.items()})
    places = {draft.id: f"item {index}: " for index, draft in enumerate(drafts)}
    return dependencies.resolve(wanted, frozenset(draft.id for draft in fresh), places)


# --- what a clash means


def _live_holders(unique_keys: Sequence[str]) -> dict[str, Job]:
    """Return the live job that holds each of the unique keys that are held, as last committed."""
    holders: dict[str, Job] = {}
    connection = jobs_connection()
    for chunk in in_chunks(unique_keys, LOOKUP_CHUNK):
        jobs = Job.objects.filter(unique_lock__in=chunk, status__in=LIVE)
        if connection.vendor == "mysql" and connection.in_atomic_block:
            jobs = jobs.select_for_update()  # REPEATABLE READ would show the caller's old snapshot
        holders.update((str(job.unique_lock), job) for job in jobs)
    return holders


def _refuse_taken_ids(drafts: Sequence[Draft]) -> None:
    """Raise InvalidJob for each id that the caller gives and that exists."""
    ids = [draft.submission.job_id for draft in drafts if draft.submission.job_id is not None]
    taken: list[str] = []
    for chunk in in_chunks(ids, LOOKUP_CHUNK):
        taken += Job.objects.filter(pk__in=chunk).values_list("pk", flat=True)
    if taken:
        raise InvalidJob(*(f"job_id {job_id!r} exists already; choose another" for job_id in sorted(taken)))


def _warn_of_another_database() -> None:
    """Say once that a submit is not part of a transaction that is open on another database."""
    for connection in connections.all(initialized_only=True):
        if (
            connection.in_atomic_block
            and connection.alias not in _warned
            and connection.alias != (alias := jobs_alias())
            and connection.alias not in jobs_databases()
        ):
            _warned.add(connection.alias)
            logger.warning(
                "A job was submitted inside a transaction on database %r, but jobs are kept in %r: it is written at once"
                " and stays when that transaction is rolled back. Submit in transaction.on_commit(…, using=%r), or route"
                " the job models to the same database.",
                connection.alias,
                alias,
                connection.alias,
            )
