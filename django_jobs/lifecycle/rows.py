"""A checked submission on its way to a row: defaults filled in, values in INSERT order, and what a clash means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, Rules, unknown_job_type
from django_jobs.ids import new_id
from django_jobs.models import Job, JobStatus
from django_jobs.models.job import LIVE, rank_of
from django_jobs.payloads import decode
from django_jobs.validation import Submission

from .sql import INSERT_COLUMNS
from .trace import with_trace

_AT = {name: position for position, name in enumerate(INSERT_COLUMNS)}
DEFAULT_QUEUE = "default"


@dataclass(slots=True)
class Draft:
    """A submission with its id, queue and rules; `open_edges` and `broken` are filled in from the graph."""

    submission: Submission
    id: str
    queue: str
    rules: Rules
    rank: int
    open_edges: int = 0

    def values(self, alias: str, now: datetime | None) -> list[Any]:
        """Return INSERT_COLUMNS; without `now` the database fills in its own clock and the job is pending at once."""
        said = self.submission
        scheduled_at = said.scheduled_at
        if said.delay is not None and now is not None:
            scheduled_at = now + said.delay
        waits = scheduled_at is not None and now is not None and scheduled_at > now
        available_at = scheduled_at if waits else now
        adapt = connections[alias].ops.adapt_datetimefield_value
        return [
            self.id,
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
            self.open_edges,
        ]

    def as_job(self, values: Sequence[Any], created_at: datetime, alias: str, now: datetime | None = None) -> Job:
        """Return the job as the row just written would be read; `now` is what `values()` was given."""
        said = self.submission
        scheduled_at = said.scheduled_at
        if said.delay is not None:
            scheduled_at = (now or created_at) + said.delay
        status = values[_AT["status"]]
        job = Job(
            id=self.id,
            job_type=said.job_type,
            queue=self.queue,
            payload=decode(said.payload),
            rank=self.rank,
            status=JobStatus(status),
            scheduled_at=scheduled_at,
            available_at=(scheduled_at if status == "scheduled" else now) or created_at,
            created_at=created_at,
            updated_at=created_at,
            max_retries=values[_AT["max_retries"]],
            timeout_seconds=values[_AT["timeout_seconds"]],
            metadata=decode(said.metadata),
            unique_key=said.unique_key,
            unique_lock=said.unique_key,
            pending_dependencies=self.open_edges,
        )
        job._state.adding = False
        job._state.db = alias
        job.__dict__["_depends_on"] = said.depends_on
        return job


def draft(submission: Submission, handlers: Registry, *, rank: int | None = None, any_type: bool = False) -> Draft:
    """Fill in what a submission leaves open; raise InvalidJob for a job type that nobody registered."""
    handler = handlers.find(submission.job_type)
    if handler is None and not any_type:
        raise InvalidJob(unknown_job_type(submission.job_type, handlers.job_types()))
    queue = submission.queue or (handler.queue if handler else None) or DEFAULT_QUEUE
    rules = handlers.rules(handler, queue)
    if rank is None:
        rank = rank_of(rules.priority if submission.priority is None else submission.priority)
    return Draft(with_trace(submission), submission.job_id or new_id(), queue, rules, rank)


def live_holder(unique_key: str, alias: str) -> Job | None:
    """Return the live job that holds a unique key, as last committed."""
    jobs = Job.objects.using(alias).filter(unique_lock=unique_key, status__in=LIVE)
    if connections[alias].vendor == "mysql" and connections[alias].in_atomic_block:
        jobs = jobs.select_for_update()  # REPEATABLE READ would show the caller's old snapshot
    return jobs.first()


def refuse_taken_ids(ids: Sequence[str], alias: str) -> None:
    """Raise InvalidJob for each id that exists."""
    taken: list[str] = []
    for start in range(0, len(ids), 1000):
        taken += Job.objects.using(alias).filter(pk__in=ids[start : start + 1000]).values_list("pk", flat=True)
    if taken:
        raise InvalidJob(*(f"job_id {job_id!r} exists already; choose another" for job_id in sorted(taken)))
