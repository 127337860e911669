"""What operators change on a job that waits or ended badly: its priority, its queue, its payload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import Job, JobStatus
from django_jobs.models.job import ENDED_BADLY, rank_of
from django_jobs.names import queue_problem
from django_jobs.payloads import encode_payload
from django_jobs.values import is_integer

from .bulk import Tally
from .notify import announce_work
from .replay import replay
from .transactions import DbNow, jobs_alias, run_transaction

CHUNK = 500


def change_many(
    ids: Sequence[str], *, priority: int | None = None, queue: str | None = None, alias: str | None = None
) -> Tally:
    """Give jobs that still wait another priority (1 to 10), another queue, or both; leave the others.

    Raises InvalidJob for a priority or queue that cannot be.
    """
    problem = queue_problem(queue) if queue is not None else None
    if problem is None and priority is not None and not is_integer(priority, 1, 10):
        problem = f"priority {priority!r}: give an integer from 1 to 10"
    if problem:
        raise InvalidJob(problem)
    using = alias or jobs_alias()
    changes: dict[str, Any] = {}
    if priority is not None:
        changes["rank"] = rank_of(priority)
    if queue is not None:
        changes["queue"] = queue
    ordered = sorted(ids)
    tally = Tally()
    for start in range(0, len(ordered), CHUNK):
        tally += _change(ordered[start : start + CHUNK], changes, using)
    return tally


def _change(ids: Sequence[str], changes: dict[str, Any], using: str) -> Tally:
    """Change the rows by compare-and-set on the states that wait: a job that is claimed meanwhile keeps what it has."""

    def move() -> Tally:
        waiting = Job.objects.using(using).filter(pk__in=ids, status__in=(JobStatus.PENDING, JobStatus.SCHEDULED))
        locked = list(waiting.order_by("pk").select_for_update().values_list("pk", flat=True))
        Job.objects.using(using).filter(pk__in=locked).update(**changes, updated_at=DbNow())
        if locked and "queue" in changes:
            announce_work(changes["queue"], using)
        return Tally(len(locked), len(ids) - len(locked))

    return run_transaction(move, using)


def replay_edited(job_id: str, payload: dict[str, Any], *, by: Any = None, alias: str | None = None) -> None:
    """Replay a job with another payload, in one transaction.

    Raises JobNotFound, and InvalidJob for a payload that cannot be stored, or when the job cannot be replayed.
    """
    using = alias or jobs_alias()
    encode_payload(payload)

    def move() -> None:
        job = Job.objects.using(using).filter(pk=job_id).select_for_update().only("status").first()
        if job is None:
            raise JobNotFound(job_id)
        if job.status not in ENDED_BADLY:
            raise InvalidJob(f"job {job_id!r} is {job.status}; only a dead, failed or cancelled job can be replayed")
        Job.objects.using(using).filter(pk=job_id).update(payload=payload)
        replay(job_id, by=by, alias=using)

    run_transaction(move, using)
