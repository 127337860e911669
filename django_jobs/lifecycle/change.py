"""Change: an operator gives jobs that still wait another priority or queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Job
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING
from django_jobs.names import queue_problem
from django_jobs.numbers import is_integer, rank_of

from . import slots
from .moved import Moved, key_chunks, lock_jobs


def change(ids: Iterable[str], *, priority: int | None = None, queue: str | None = None) -> Moved:
    """Give jobs that wait another priority (1 to 10), another queue, or both; the others are left.

    Raises InvalidJob for a priority or queue that cannot be.
    """
    problem = queue_problem(queue) if queue is not None else None
    if problem is None and priority is not None and not is_integer(priority, 1, 10):
        problem = f"priority {priority!r}: give an integer from 1 to 10"
    if problem:
        raise InvalidJob(problem)
    changes: dict[str, Any] = {}
    if priority is not None:
        changes["rank"] = rank_of(priority)
    if queue is not None:
        changes["queue"] = queue
    return sum((_change(chunk, changes) for chunk in key_chunks(ids)), Moved([], {}))


@transactional
def _change(ids: Sequence[str], changes: dict[str, Any]) -> Moved:
    jobs = lock_jobs(ids)
    done = [job.pk for job in jobs.values() if job.status in WAITING]
    slots.leave(jobs[pk] for pk in done)  # a job that is held back asks anew, in its new order or queue
    Job.objects.filter(pk__in=done).update(**changes, pending_limits=0, updated_at=DbNow())
    for queue in {changes.get("queue", jobs[pk].queue) for pk in done}:
        notify_work(queue, is_old=True)
    return Moved.of(ids, jobs, done, "; only a waiting job can be changed")
