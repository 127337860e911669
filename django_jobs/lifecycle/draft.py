"""Drafts: submissions that were checked, on their way to a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.db.models.base import ModelState

from django_jobs.arguments import Arguments
from django_jobs.db.connections import jobs_alias, jobs_connection, jobs_databases
from django_jobs.db.dialects import INSERT_COLUMNS, dialect
from django_jobs.encryption import MARK, encrypted
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, handler_problem, unknown_job_type
from django_jobs.ids import new_id
from django_jobs.models import Job, JobStatus
from django_jobs.payloads import decode, encode_payload
from django_jobs.propagation import with_trace
from django_jobs.submission import EMPTY, NO_KEYS, Keys, Submission, Template, check_submission, resolve

ID, JOB_TYPE, QUEUE, PAYLOAD, RANK, STATUS = map(
    INSERT_COLUMNS.index, ("id", "job_type", "queue", "payload", "rank", "status")
)
SCHEDULED_AT, AVAILABLE_AT, OPEN_EDGES, LIMIT_KEY, QUEUE_LIMIT_KEY, PENDING_LIMITS = map(
    INSERT_COLUMNS.index,
    ("scheduled_at", "available_at", "pending_dependencies", "limit_key", "queue_limit_key", "pending_limits"),
)
FAIR_KEY = INSERT_COLUMNS.index("fair_key")
# Every column of a job that nobody has claimed yet; those whose default is made anew for each job are always filled in.
_UNTOUCHED = {field.attname: field.get_default() for field in Job._meta.concrete_fields}


class Shared:
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
class Draft:
    """One job to be written; `open_edges` is filled in from the graph."""

    shared: Shared
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

    def another(self, payload: Any) -> Draft:
        """Return a draft that differs in its payload alone; raise InvalidJob for what is wrong with that."""
        encoded = EMPTY if payload is None else encode_payload(payload)
        _refuse_misfit(self.shared.arguments, payload)
        return Draft(self.shared, new_id(), encoded, self.template.keys(payload))

    def values(self, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS; without `now` the database fills in its own clock and the job is pending at once."""
        values = self.shared.values(now).copy()
        is_new = self.template.encrypts and not self.payload.startswith(MARK)  # and not carried from another row
        payload = encrypted(self.payload) if is_new else self.payload
        values[ID], values[PAYLOAD], values[OPEN_EDGES] = self.id, payload, self.open_edges
        if self.keys is not NO_KEYS:
            values[LIMIT_KEY], values[QUEUE_LIMIT_KEY], values[FAIR_KEY] = self.keys
        return values

    def as_job(self, values: Sequence[Any], created_at: datetime, now: datetime | None = None) -> Job:
        """Return the job as the row just written would be read; `now` is what `values()` was given.

        Filled in without the constructor, which costs ten times as much.
        """
        template, given = self.template, self.submission
        status = JobStatus(values[STATUS])
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
        if values[PENDING_LIMITS]:
            turn = values[SCHEDULED_AT]
            job.__dict__.update(pending_limits=1, scheduled_at=turn and dialect().to_datetime(turn))
        return job


def _saved() -> ModelState:
    state = ModelState()
    state.adding = False
    state.db = jobs_alias()
    return state


def checked_draft(
    job_type: Any,
    payload: Any,
    options: Mapping[str, Any],
    handlers: Registry,
    *,
    rank: int | None = None,
    any_type: bool = False,
    any_payload: bool = False,
) -> Draft:
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
    return Draft(Shared(template, arguments), submission.job_id or new_id(), submission.payload, keys)


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
