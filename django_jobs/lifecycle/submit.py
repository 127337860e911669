"""Submit: write jobs with plain INSERTs on the caller's own connection, inside the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.db import connections, transaction

from django_jobs import signals
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, registry
from django_jobs.models import Job
from django_jobs.newjob import NewJob
from django_jobs.payloads import encode_payload

from . import graph
from .notify import announce_work
from .rows import Draft, draft, live_holder, live_holders, refuse_taken_ids
from .sql import dialect
from .transactions import database_now, immediate, jobs_alias, retry_transient

T = TypeVar("T")
logger = logging.getLogger("django_jobs")
_warned: set[str] = set()
CLASHES_IN_A_ROW = 20
_OF_ONE_JOB = ("job_id", "unique_key", "depends_on")


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
) -> Job:
    """Write one job and return it; with a `unique_key` that a live job holds, return that one.

    Args:
        handlers: who must know the job type.
        rank: the stored order, -100 to 100, for callers whose priorities are finer than ours.
        any_type: accept a type without a handler, for queues whose handlers live in another process.
        options: see `validation.OPTIONS`.

    Raises InvalidJob with every problem of the call; nothing is written then.
    """
    new = draft(job_type, payload, options, handlers, rank=rank, any_type=any_type)
    alias = jobs_alias()
    _warn_of_another_database(alias)
    said = new.submission
    looks_first = said.depends_on or said.delay is not None or said.scheduled_at is not None
    for _ in range(CLASHES_IN_A_ROW):
        job = _insert_after_a_look(new, alias) if looks_first else _insert(new, alias)
        if job is not None:
            return _announce(job, alias)
        if said.job_id is not None:
            refuse_taken_ids([said.job_id], alias)
        if said.unique_key is not None:
            held = live_holder(said.unique_key, alias)
            if held is not None:
                return held
        # The holder ended between the INSERT and the look: the key is free again.
    raise InvalidJob(f"unique_key {said.unique_key!r} changes hands too fast; submit again")


def submit_row(
    job_type: str, payload: Mapping[str, Any], *, rank: int, options: Mapping[str, Any]
) -> tuple[str, datetime]:
    """Write a job that starts at once and has no unique key; return its id and the time of the submit.

    No Job is built, which saves a quarter of the cost. Raises InvalidJob as `submit` does.
    """
    new = draft(job_type, payload, options, registry, rank=rank)
    alias = jobs_alias()
    _warn_of_another_database(alias)
    values, created_at = _write(new, alias)
    if created_at is None:
        raise InvalidJob(f"job_id {new.id!r} exists already")
    announce_work(new.shape.queue, alias)
    if signals.job_submitted.has_listeners(Job):
        signals.send(signals.job_submitted, sender=Job, job=new.as_job(values, created_at, alias))
    return new.id, created_at


def _insert(new: Draft, alias: str) -> Job | None:
    """Write the row in one statement; None when its id or unique key is taken."""
    values, created_at = _write(new, alias)
    return None if created_at is None else new.as_job(values, created_at, alias)


def _write(new: Draft, alias: str) -> tuple[list[Any], datetime | None]:
    connection = connections[alias]
    values = new.values(alias, None)
    insert = dialect(connection).insert_job
    if connection.in_atomic_block:
        return values, insert(connection, values)
    return values, retry_transient(lambda: insert(connection, values))


def _insert_after_a_look(new: Draft, alias: str) -> Job | None:
    """Write a job that needs the clock or its dependencies first; None when its id or unique key is taken."""

    def move() -> Job | None:
        now = database_now(alias)
        said = new.submission
        edges = graph.resolve({new.id: (said.depends_on, said.on_dependency_failure)}, frozenset(), alias)
        new.open_edges = graph.count_open(edges[new.id])
        values = new.values(alias, now)
        created_at = dialect(connections[alias]).insert_job(connections[alias], values)
        if created_at is None:
            return None
        job = new.as_job(values, created_at, alias, now)
        if graph.store(edges, alias):
            job.refresh_from_db(using=alias)
        return job

    return _joined_or_own(move, alias)


def submit_many(new_jobs: Iterable[NewJob], *, handlers: Registry = registry, any_type: bool = False) -> list[Job]:
    """Write all of the jobs in one transaction, or none; return them in the order given.

    Jobs may depend on each other by their `job_id`, forward references included. Raises InvalidJob that names the index of
    each bad item, and CycleError with the path of a cycle.
    """
    if not isinstance(new_jobs, Iterable) or isinstance(new_jobs, str | bytes | Mapping):
        raise InvalidJob(f"submit_many takes a list of NewJob(…), not {type(new_jobs).__name__}")
    drafts = _check_batch(list(new_jobs), handlers, any_type)
    if not drafts:
        return []
    alias = jobs_alias()
    _warn_of_another_database(alias)
    for left in reversed(range(CLASHES_IN_A_ROW)):
        try:
            jobs = _joined_or_own(lambda: _write_batch(drafts, alias), alias)
            break
        except _KeyTaken:
            if not left:
                raise InvalidJob("unique keys of the batch change hands too fast; submit again") from None
    for queue in {job.queue for job in jobs}:
        announce_work(queue, alias)
    for job in jobs if signals.job_submitted.has_listeners(Job) else ():
        signals.send(signals.job_submitted, sender=Job, job=job)
    return jobs


def _check_batch(new_jobs: Sequence[NewJob], handlers: Registry, any_type: bool) -> list[Draft]:
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
                one = alike[key].another("{}" if new.payload is None else encode_payload(new.payload))
            else:
                one = draft(new.job_type, new.payload, new.options, handlers, any_type=any_type)
                if key is not None:
                    alike[key] = one
        except InvalidJob as error:
            problems.extend(f"item {index}: {problem}" for problem in error.problems)
            continue
        if one.id in seen:
            problems.append(f"item {index}: job_id {one.id!r} is taken by item {seen[one.id]}")
        seen[one.id] = index
        drafts.append(one)
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


def _write_batch(drafts: Sequence[Draft], alias: str) -> list[Job]:
    """Write a checked batch: jobs without a unique key in bulk, the others one by one.

    Raises _KeyTaken when somebody else took a unique key meanwhile; nothing is written then.
    """
    connection = connections[alias]
    refuse_taken_ids([one.submission.job_id for one in drafts if one.submission.job_id is not None], alias)
    jobs, stand_ins = _stand_ins(drafts, alias)
    fresh = [one for one in drafts if one.id not in stand_ins]
    edges = _edges_of_batch(drafts, fresh, stand_ins, alias)
    for one in fresh:
        one.open_edges = graph.count_open(edges.get(one.id, ()))
    now = database_now(alias)
    rows = [one.values(alias, now) for one in fresh]
    plain = [row for one, row in zip(fresh, rows, strict=True) if one.submission.unique_key is None]
    if plain:
        dialect(connection).insert_jobs(connection, plain)
    for one, row in zip(fresh, rows, strict=True):
        if one.submission.unique_key is not None and dialect(connection).insert_job(connection, row) is None:
            raise _KeyTaken
        jobs[one.id] = one.as_job(row, now, alias)
        if one.id in edges:
            jobs[one.id].__dict__["_depends_on"] = [edge.depends_on for edge in edges[one.id]]
    changed = graph.store(edges, alias) if edges else ()
    if changed:
        jobs.update(Job.objects.using(alias).in_bulk(list(changed)))
    return [jobs[stand_ins.get(one.id, one.id)] for one in drafts]


def _stand_ins(drafts: Sequence[Draft], alias: str) -> tuple[dict[str, Job], dict[str, str]]:
    """Return the live jobs that hold unique keys of a batch, and for each item that is not written the job in its place."""
    keys = {one.id: one.submission.unique_key for one in drafts if one.submission.unique_key is not None}
    if not keys:
        return {}, {}
    holders = live_holders(sorted(set(keys.values())), alias)
    first = {key: holder.id for key, holder in holders.items()}
    stand_ins = {one: place for one, key in keys.items() if (place := first.setdefault(key, one)) != one}
    return {holder.id: holder for holder in holders.values()}, stand_ins


def _edges_of_batch(
    drafts: Sequence[Draft], fresh: Sequence[Draft], stand_ins: Mapping[str, str], alias: str
) -> graph.Edges:
    """Return the edges of a batch, with the jobs that stand in for items in the place of these."""
    said = {one.id: one.submission for one in fresh if one.submission.depends_on}
    if not said:
        return {}
    wanted = {
        job_id: (tuple(dict.fromkeys(stand_ins.get(dep, dep) for dep in one.depends_on)), one.on_dependency_failure)
        for job_id, one in said.items()
    }
    graph.refuse_cycles({job_id: depends_on for job_id, (depends_on, _) in wanted.items()}, alias)
    places = {one.id: f"item {index}: " for index, one in enumerate(drafts)}
    return graph.resolve(wanted, frozenset(one.id for one in fresh), alias, places)


def _joined_or_own(move: Callable[[], T], alias: str) -> T:
    """Run a move in the caller's transaction, under a savepoint, or in one of its own that may be run again."""
    if connections[alias].in_atomic_block:
        with transaction.atomic(using=alias):
            return move()

    def once() -> T:
        with immediate(alias), transaction.atomic(using=alias):
            return move()

    return retry_transient(once)


def _announce(job: Job, alias: str) -> Job:
    announce_work(job.queue, alias)
    if signals.job_submitted.has_listeners(Job):
        signals.send(signals.job_submitted, sender=Job, job=job)
    return job


def _warn_of_another_database(alias: str) -> None:
    """Say once that a submit is not part of a transaction that is open on another database."""
    for connection in connections.all(initialized_only=True):
        if connection.alias != alias and connection.in_atomic_block and connection.alias not in _warned:
            _warned.add(connection.alias)
            logger.warning(
                "A job was submitted inside a transaction on database %r, but jobs are kept in %r: it is written at once"
                " and stays when that transaction is rolled back. Submit in transaction.on_commit(…, using=%r), or route"
                " the job models to the same database.",
                connection.alias,
                alias,
                connection.alias,
            )
