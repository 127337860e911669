"""A job as plain values: made from the arguments of a submit, turned into a dict and back. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from django.utils import timezone

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.ids import new_id
from django_jobs.payloads import decode
from django_jobs.text import shown
from django_jobs.validation import check_submission

if TYPE_CHECKING:
    from .job import Job

DEFAULT_QUEUE = "default"


class JobValues:
    """The plain side of a job."""

    @classmethod
    def create(cls, job_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Job:
        """Check and build a job without saving it; `JobQueue.enqueue` takes it.

        The options are those of `django_jobs.submit`; `scheduled_at` may also be Unix seconds, as in `to_dict()`.
        Raises InvalidJob, a ValueError, with every problem.
        """
        from .job import JobStatus, rank_of

        said = check_submission(job_type, payload, with_moments(options))
        handler = registry.find(said.job_type)
        queue = said.queue or (handler.queue if handler else None) or DEFAULT_QUEUE
        rules = registry.rules(handler, queue)
        now = timezone.now()
        scheduled_at = said.scheduled_at if said.delay is None else now + said.delay
        waits = scheduled_at is not None and scheduled_at > now
        job = cast("type[Job]", cls)(
            id=said.job_id or new_id(),
            job_type=said.job_type,
            queue=queue,
            payload=decode(said.payload),
            metadata=decode(said.metadata),
            rank=rank_of(rules.priority if said.priority is None else said.priority),
            status=JobStatus.SCHEDULED if waits else JobStatus.PENDING,
            scheduled_at=scheduled_at,
            available_at=scheduled_at if waits and scheduled_at else now,
            created_at=now,
            updated_at=now,
            max_retries=rules.max_retries if said.max_retries is None else said.max_retries,
            timeout_seconds=rules.timeout_seconds if said.timeout_seconds is None else said.timeout_seconds,
            unique_key=said.unique_key,
            unique_lock=said.unique_key,
            pending_dependencies=len(said.depends_on),
        )
        job.__dict__["_depends_on"] = said.depends_on
        job.__dict__["_on_dependency_failure"] = said.on_dependency_failure
        return job

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Build a job, without saving it, from what `to_dict()` or an export gives; keys left out get their defaults.

        Raises InvalidJob with every problem.
        """
        from .records import Record

        return Record.from_dict(data).job

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain values under its fifteen documented keys; times are Unix seconds."""
        job = cast("Job", self)
        return {
            "job_id": job.id,
            "job_type": job.job_type,
            "queue": job.queue,
            "payload": job.payload,
            "priority": job.priority,
            "scheduled_at": unix(job.scheduled_at),
            "created_at": unix(job.created_at),
            "max_retries": job.max_retries,
            "retry_count": job.retry_count,
            "timeout_seconds": job.timeout_seconds,
            "status": str(job.status),
            "result": job.result,
            "error": job.error,
            "metadata": job.metadata,
            "depends_on": job.depends_on,
        }


def unix(moment: datetime | None) -> float | None:
    """Return a moment as Unix seconds."""
    return None if moment is None else moment.timestamp()


def moment(name: str, seconds: Any) -> datetime:
    """Return Unix seconds as an aware datetime in UTC; raise InvalidJob for what is no such number."""
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        try:
            found = datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            found = None
        if found is not None and 1970 <= found.year <= 9998:
            return found
    raise InvalidJob(f"{name}: give Unix seconds, from 1970 to the year 9998, not {shown(seconds)}")


def with_moments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return submit options whose `scheduled_at`, if it is a number, has become a datetime."""
    given = dict(options)
    if isinstance(given.get("scheduled_at"), int | float):
        given["scheduled_at"] = moment("scheduled_at", given["scheduled_at"])
    return given
