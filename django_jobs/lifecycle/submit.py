"""Submit: write jobs with plain INSERTs on the caller's own connection, inside the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, connections
from django.db.models import QuerySet
from django.db.models.base import ModelState

from django_jobs import signals
from django_jobs.arguments import Arguments
from django_jobs.db.connections import jobs_alias, jobs_connection, jobs_databases
from django_jobs.db.dialects import INSERT_COLUMNS, dialect
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import database_now, retried, transactional
from django_jobs.encryption import MARK, encrypted
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, handler_problem, registry, unknown_job_type
from django_jobs.ids import new_id
from django_jobs.models import Job, JobStatus
from django_jobs.models.job import LIVE
from django_jobs.payloads import decode, encode_payload
from django_jobs.propagation import with_trace
from django_jobs.submission import (
    EMPTY,
    NO_KEYS,
    Keys,
    NewJob,
    Submission,
    Template,
    check_submission,
    resolve,
)

from . import dependencies, members, slots, turns
from .active_limits import active_limits
from .moved import in_chunks

logger = logging.getLogger("django_jobs")

MAX_CLASHES = 20
LOOKUP_CHUNK = 1000
_OF_ONE_JOB = ("job_id", "unique_key", "depends_on")
_ID, _JOB_TYPE, _QUEUE, _PAYLOAD, _RANK, _STATUS = map(
    INSERT_COLUMNS.index, ("id", "job_type", "queue", "payload", "rank", "status")
)
_SCHEDULED_AT, _AVAILABLE_AT, _OPEN_EDGES, _LIMIT_KEY, _QUEUE_LIMIT_KEY, _PENDING_LIMITS = map(
    INSERT_COLUMNS.index,
    ("scheduled_at", "available_at", "pending_dependencies", "limit_key", "queue_limit_key", "pending_limits"),
)
_FAIR_KEY = INSERT_COLUMNS.index("fair_key")
# Every column of a job that nobody has claimed yet; those whose default is made anew for each job are always filled in.
_UNTOUCHED = {field.attname: field.get_default() for field in Job._meta.concrete_fields}
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
    draft = _draft(job_type, payload, options, handlers, rank=rank, any_type=any_type)
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
    draft = _draft(job_type, payload, options, registry, rank=rank)
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


# --- a checked submission on its way to a row


class _Shared:
    """The values that the rows of one template share, worked out once for each clock."""

    __slots__ = ("_now", "_values", "arguments", "batch_id", "member_of", "template")

    def __init__(self, template: Template, arguments: Arguments | None) -> None:
        self.template = template
        self.arguments = arguments
        self.batch_id: str | None = None
        self.member_of: str | None = None
        self._now: datetime | None = None
        self._values: list[Any] | None = None

    def enter(self, member_of: str | None, callback_of: str | None) -> None:
        """Say which batch the jobs are of; before `values` is asked."""
        self.member_of = member_of
        self.batch_id = member_of or callback_of

    def values(self, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS for a job without an id, a payload and dependencies."""
        if self._values is None or self._now != now:
            self._now, self._values = now, self._worked_out(now)
        return self._values

    def _worked_out(self, now: datetime | None) -> list[Any]:
        template, given = self.template, self.template.submission
        status, scheduled_at, available_at = "pending", None, None
        if now is not None:
            adapt = jobs_connection().ops.adapt_datetimefield_value
            due = template.scheduled_at(now)
            waits = due is not None and due > now
            status = "scheduled" if waits else "pending"
            scheduled_at = None if due is None else adapt(due)
            available_at = scheduled_at if waits else adapt(now)
        return [
            "",
            given.job_type,
            template.queue,
            "",
            template.rank,
            status,
            scheduled_at,
            available_at,
            template.max_retries,
            template.timeout_seconds,
            given.metadata,
            given.unique_key,
            given.unique_key,
            0,
            self.batch_id,
            None,
            None,
            0,
            None,
        ]


@dataclass(slots=True)
class _Draft:
    """One job to be written; `open_edges` is filled in from the graph."""

    shared: _Shared
    id: str
    payload: str
    keys: Keys = NO_KEYS
    open_edges: int = 0

    @property
    def template(self) -> Template:
        """What it has in common with the others of a batch that differ in their payload alone."""
        return self.shared.template

    @property
    def submission(self) -> Submission:
        """The checked call that it came from."""
        return self.shared.template.submission

    def another(self, payload: Any) -> _Draft:
        """Return a draft that differs in its payload alone; raise InvalidJob for what is wrong with that."""
        encoded = EMPTY if payload is None else encode_payload(payload)
        _refuse_misfit(self.shared.arguments, payload)
        return _Draft(self.shared, new_id(), encoded, self.template.keys(payload))

    def values(self, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS; without `now` the database fills in its own clock and the job is pending at once."""
        values = self.shared.values(now).copy()
        is_new = self.template.encrypts and not self.payload.startswith(MARK)  # and not carried from another row
        payload = encrypted(self.payload) if is_new else self.payload
        values[_ID], values[_PAYLOAD], values[_OPEN_EDGES] = self.id, payload, self.open_edges
        if self.keys is not NO_KEYS:
            values[_LIMIT_KEY], values[_QUEUE_LIMIT_KEY], values[_FAIR_KEY] = self.keys
        return values

    def as_job(self, values: Sequence[Any], created_at: datetime, now: datetime | None = None) -> Job:
        """Return the job as the row just written would be read; `now` is what `values()` was given.

        Filled in without the constructor, which costs ten times as much.
        """
        template, given = self.template, self.submission
        status = JobStatus(values[_STATUS])
        scheduled_at = None if now is None else template.scheduled_at(now)
        job = Job.__new__(Job)
        job.__dict__ = _UNTOUCHED | {
            "_state": _saved(),
            "_depends_on": given.depends_on,
            "id": self.id,
            "job_type": given.job_type,
            "queue": template.queue,
            "payload": decode(self.payload),
            "rank": template.rank,
            "status": status,
            "scheduled_at": scheduled_at,
            "available_at": (scheduled_at if status is JobStatus.SCHEDULED else now) or created_at,
            "created_at": created_at,
            "updated_at": created_at,
            "max_retries": template.max_retries,
            "timeout_seconds": template.timeout_seconds,
            "metadata": decode(given.metadata),
            "unique_key": given.unique_key,
            "unique_lock": given.unique_key,
            "pending_dependencies": self.open_edges,
            "batch_id": self.shared.batch_id,
        }
        if self.keys is not NO_KEYS:
            job.__dict__.update(self.keys._asdict())
        if values[_PENDING_LIMITS]:
            turn = values[_SCHEDULED_AT]
            job.__dict__.update(pending_limits=1, scheduled_at=turn and dialect().to_datetime(turn))
        return job


def _saved() -> ModelState:
    state = ModelState()
    state.adding = False
    state.db = jobs_alias()
    return state


def _draft(
    job_type: Any,
    payload: Any,
    options: Mapping[str, Any],
    handlers: Registry,
    *,
    rank: int | None = None,
    any_type: bool = False,
    any_payload: bool = False,
) -> _Draft:
    """Check a submission and fill in what it leaves open; raise InvalidJob with all its problems, an unknown type among them."""
    try:
        submission = check_submission(job_type, payload, options)
    except InvalidJob as error:
        unknown = None if any_type else handler_problem(job_type, handlers)
        raise InvalidJob(*([unknown] if unknown else []), *error.problems) from None
    handler = handlers.find(job_type)
    if handler is None and not any_type:
        raise InvalidJob(unknown_job_type(job_type, handlers.job_types()))
    arguments = None if handler is None or any_payload else handler.arguments
    _refuse_misfit(arguments, payload)
    if submission.depends_on:
        _refuse_elsewhere(options["depends_on"])
    template = resolve(with_trace(submission), handler, handlers, rank=rank)
    keys = template.keys(payload)
    return _Draft(_Shared(template, arguments), submission.job_id or new_id(), submission.payload, keys)


def _refuse_misfit(arguments: Arguments | None, payload: Any) -> None:
    if arguments is not None and (problems := arguments.problems(payload or {})):
        raise InvalidJob(*problems)


def _refuse_elsewhere(depends_on: Any) -> None:
    """Raise InvalidJob for a dependency that is a job of another one of the site's databases."""
    if not isinstance(depends_on, list | tuple | set | frozenset | QuerySet):
        return
    here = jobs_alias()
    for job in depends_on:
        there = job._state.db if isinstance(job, Job) else None
        if there not in (None, here) and there in jobs_databases():
            raise InvalidJob(f"depends_on: job {job.pk!r} is in the database {there!r}, and this one is for {here!r}")


# --- one job


def _insert(draft: _Draft) -> Job | None:
    """Write the row in one statement; None when its id or unique key is taken."""
    values = draft.values(None)
    created_at = _insert_values(values)
    return None if created_at is None else draft.as_job(values, created_at)


@retried
def _insert_values(values: Sequence[Any]) -> datetime | None:
    return dialect().insert_job(values)


@transactional
def _insert_after_a_look(draft: _Draft) -> Job | None:
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


def _check_batch(new_jobs: Sequence[NewJob], any_type: bool) -> list[_Draft]:
    """Check every item, naming the index of each that is refused."""
    problems: list[str] = []
    drafts: list[_Draft] = []
    seen: dict[str, int] = {}
    alike: dict[Hashable, _Draft] = {}
    for index, new in enumerate(new_jobs):
        if not isinstance(new, NewJob):
            problems.append(f"item {index}: give NewJob(…), not {type(new).__name__}")
            continue
        key = _likeness(new)
        try:
            if key in alike:
                draft = alike[key].another(new.payload)
            else:
                draft = _draft(
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
def _insert_batch(drafts: Sequence[_Draft]) -> list[Job]:
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


def _hold_back(drafts: Sequence[_Draft], rows: Sequence[list[Any]], now: datetime) -> list[slots.SlotRow]:
    """Hold back those of a batch, in their rows, that cannot run beside the others; return their slots."""
    limits = active_limits()
    ready = {
        draft.id: row
        for draft, row in zip(drafts, rows, strict=True)
        if draft.template.is_limited
        and draft.submission.unique_key is None
        and row[_STATUS] == JobStatus.PENDING
        and not draft.submission.depends_on  # it may fail at once by a dependency that ended badly
    }
    scopes = (
        (
            job_id,
            row[_QUEUE],
            row[_RANK],
            limits.scopes(row[_JOB_TYPE], row[_QUEUE], row[_LIMIT_KEY], row[_QUEUE_LIMIT_KEY]),
            row[_FAIR_KEY],
        )
        for job_id, row in ready.items()
    )
    held = slots.held_at_submit(scopes)
    adapt = jobs_connection().ops.adapt_datetimefield_value
    for job_id, one in held.items():
        ready[job_id][_PENDING_LIMITS] = 1
        if one.seconds:
            ready[job_id][_SCHEDULED_AT] = adapt(now + timedelta(seconds=one.seconds))
    return [
        (job_id, one.scope, True, one.is_rated, row[_QUEUE], row[_RANK], row[_AVAILABLE_AT], row[_FAIR_KEY])
        for job_id, one in held.items()
        for row in [ready[job_id]]
    ]


def _stand_ins(drafts: Sequence[_Draft]) -> tuple[dict[str, Job], dict[str, str]]:
    """Return the live jobs that hold unique keys of a batch, and for each item that is not written the job in its place."""
    keys = {draft.id: draft.submission.unique_key for draft in drafts if draft.submission.unique_key is not None}
    if not keys:
        return {}, {}
    holders = _live_holders(sorted(set(keys.values())))
    first = {key: holder.id for key, holder in holders.items()}
    stand_ins = {job_id: place for job_id, key in keys.items() if (place := first.setdefault(key, job_id)) != job_id}
    return {holder.id: holder for holder in holders.values()}, stand_ins


def _edges_of_batch(
    drafts: Sequence[_Draft], fresh: Sequence[_Draft], stand_ins: Mapping[str, str]
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


def _refuse_taken_ids(drafts: Sequence[_Draft]) -> None:
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
