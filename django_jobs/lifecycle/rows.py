"""A checked submission on its way to a row: defaults filled in, values in INSERT order, and what a clash means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models.base import ModelState

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, Rules, handler_problem, unknown_job_type
from django_jobs.ids import new_id
from django_jobs.models import Job, JobStatus
from django_jobs.models.job import LIVE, rank_of
from django_jobs.payloads import decode
from django_jobs.validation import Submission, check_submission

from .sql import INSERT_COLUMNS
from .trace import with_trace

_ID, _PAYLOAD, _STATUS, _MAX_RETRIES, _TIMEOUT, _OPEN_EDGES = map(
    INSERT_COLUMNS.index, ("id", "payload", "status", "max_retries", "timeout_seconds", "pending_dependencies")
)
# Every column of a job that nobody has claimed yet; those whose default is made anew for each job are always filled in.
_UNTOUCHED = {field.attname: field.get_default() for field in Job._meta.concrete_fields}
DEFAULT_QUEUE = "default"


class Shape:
    """What the jobs of a batch that differ in their payload alone have in common, checked and worked out once."""

    __slots__ = ("_shared", "queue", "rank", "rules", "submission")

    def __init__(self, submission: Submission, queue: str, rules: Rules, rank: int) -> None:
        self.submission = submission
        self.queue = queue
        self.rules = rules
        self.rank = rank
        self._shared: tuple[tuple[str, datetime | None], list[Any]] | None = None

    def values(self, alias: str, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS for a job without an id, a payload and dependencies."""
        if self._shared is not None and self._shared[0] == (alias, now):
            return self._shared[1]
        said = self.submission
        scheduled_at = self.scheduled_at(now)
        waits = scheduled_at is not None and now is not None and scheduled_at > now
        available_at = scheduled_at if waits else now
        adapt = connections[alias].ops.adapt_datetimefield_value
        values = [
            "",
            said.job_type,
            self.queue,
            said.payload,
            self.rank,
            "scheduled" if waits else "pending",
            None if scheduled_at is None else adapt(scheduled_at),
            None if available_at is None else adapt(available_at),
            self.rules.max_retries if said.max_retries is None else said.max_retries,
            self.rules.timeout_seconds if said.timeout_seconds is None else said.timeout_seconds,
            said.metadata,
            said.unique_key,
            said.unique_key,
            0,
        ]
        self._shared = ((alias, now), values)
        return values

    def scheduled_at(self, now: datetime | None) -> datetime | None:
        """Return the time asked for, a delay being counted from `now`."""
        delay = self.submission.delay
        return self.submission.scheduled_at if delay is None or now is None else now + delay


@dataclass(slots=True)
class Draft:
    """One job to be written; `open_edges` is filled in from the graph."""

    shape: Shape
    id: str
    payload: str
    open_edges: int = 0

    @property
    def submission(self) -> Submission:
        """What was said of it."""
        return self.shape.submission

    def another(self, payload: str) -> Draft:
        """Return a draft that differs in its payload alone."""
        return Draft(self.shape, new_id(), payload)

    def values(self, alias: str, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS; without `now` the database fills in its own clock and the job is pending at once."""
        values = self.shape.values(alias, now).copy()
        values[_ID], values[_PAYLOAD], values[_OPEN_EDGES] = self.id, self.payload, self.open_edges
        return values

    def as_job(self, values: Sequence[Any], created_at: datetime, alias: str, now: datetime | None = None) -> Job:
        """Return the job as the row just written would be read; `now` is what `values()` was given.

        Filled in without the constructor, which costs ten times as much.
        """
        said = self.shape.submission
        status = JobStatus(values[_STATUS])
        scheduled_at = self.shape.scheduled_at(now or created_at)
        job = Job.__new__(Job)
        job.__dict__ = _UNTOUCHED | {
            "_state": _saved_in(alias),
            "_depends_on": said.depends_on,
            "id": self.id,
            "job_type": said.job_type,
            "queue": self.shape.queue,
            "payload": decode(self.payload),
            "rank": self.shape.rank,
            "status": status,
            "scheduled_at": scheduled_at,
            "available_at": (scheduled_at if status is JobStatus.SCHEDULED else now) or created_at,
            "created_at": created_at,
            "updated_at": created_at,
            "max_retries": values[_MAX_RETRIES],
            "timeout_seconds": values[_TIMEOUT],
            "metadata": decode(said.metadata),
            "unique_key": said.unique_key,
            "unique_lock": said.unique_key,
            "pending_dependencies": self.open_edges,
        }
        return job


def _saved_in(alias: str) -> ModelState:
    state = ModelState()
    state.adding = False
    state.db = alias
    return state


def draft(
    job_type: Any,
    payload: Any,
    options: Mapping[str, Any],
    handlers: Registry,
    *,
    rank: int | None = None,
    any_type: bool = False,
) -> Draft:
    """Check a submission and fill in what it leaves open; raise InvalidJob with all its problems, an unknown type among them."""
    try:
        submission = check_submission(job_type, payload, options)
    except InvalidJob as error:
        unknown = None if any_type else handler_problem(job_type, handlers)
        raise InvalidJob(*([unknown] if unknown else []), *error.problems) from None
    handler = handlers.find(submission.job_type)
    if handler is None and not any_type:
        raise InvalidJob(unknown_job_type(submission.job_type, handlers.job_types()))
    queue = submission.queue or (handler.queue if handler else None) or DEFAULT_QUEUE
    rules = handlers.rules(handler, queue)
    if rank is None:
        rank = rank_of(rules.priority if submission.priority is None else submission.priority)
    return Draft(Shape(with_trace(submission), queue, rules, rank), submission.job_id or new_id(), submission.payload)


def live_holder(unique_key: str, alias: str) -> Job | None:
    """Return the live job that holds a unique key, as last committed."""
    return live_holders([unique_key], alias).get(unique_key)


def live_holders(unique_keys: Sequence[str], alias: str) -> dict[str, Job]:
    """Return the live job that holds each of the unique keys that are held, as last committed."""
    holders: dict[str, Job] = {}
    for start in range(0, len(unique_keys), 1000):
        jobs = Job.objects.using(alias).filter(unique_lock__in=unique_keys[start : start + 1000], status__in=LIVE)
        if connections[alias].vendor == "mysql" and connections[alias].in_atomic_block:
            jobs = jobs.select_for_update()  # REPEATABLE READ would show the caller's old snapshot
        holders.update((str(job.unique_lock), job) for job in jobs)
    return holders


def refuse_taken_ids(ids: Sequence[str], alias: str) -> None:
    """Raise InvalidJob for each id that exists."""
    taken: list[str] = []
    for start in range(0, len(ids), 1000):
        taken += Job.objects.using(alias).filter(pk__in=ids[start : start + 1000]).values_list("pk", flat=True)
    if taken:
        raise InvalidJob(*(f"job_id {job_id!r} exists already; choose another" for job_id in sorted(taken)))
