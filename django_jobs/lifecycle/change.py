"""Change: an operator gives jobs that still wait another priority or queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob, JobsError
from django_jobs.models import Job
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING
from django_jobs.names import queue_problem
from django_jobs.numbers import is_integer, rank_of

from . import slots
from .active_limits import limit_of_queue
from .moved import Moved, in_chunks, key_chunks, lock_jobs

PAYLOADS_AT_ONCE = 50  # of up to 256 KiB each


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
    waiting = [job for job in jobs.values() if job.status in WAITING]
    keys, refused = _keys_in(changes.get("queue"), waiting)
    done = [job.pk for job in waiting if job.pk not in refused]
    slots.leave(jobs[pk] for pk in done)  # a job that is held back asks anew, in its new order or queue
    columns = {**changes, "pending_limits": 0, "updated_at": DbNow()}
    for key, coming in keys.items():
        Job.objects.filter(pk__in=coming).update(**columns, queue_limit_key=key)
    staying = set(done).difference(*keys.values())
    Job.objects.filter(pk__in=staying).update(**columns)
    for queue in {changes.get("queue", jobs[pk].queue) for pk in done}:
        notify_work(queue, is_old=True)
    moved = Moved.of(ids, jobs, done, "; only a waiting job can be changed")
    return Moved(moved.done, moved.left | refused)


def _keys_in(queue: str | None, jobs: Sequence[Job]) -> tuple[dict[str | None, list[str]], dict[str, JobsError]]:
    """Return those of the jobs that come to a queue by the key by which its limit counts them, and why one cannot come."""
    coming = [job.pk for job in jobs if queue is not None and job.queue != queue]
    limit = limit_of_queue(queue) if queue is not None and coming else None
    if limit is None or limit.key is None:
        return ({None: coming} if coming else {}), {}
    keys: dict[str | None, list[str]] = {}
    refused: dict[str, JobsError] = {}
    for chunk in in_chunks(coming, PAYLOADS_AT_ONCE):
        for pk, payload in Job.objects.filter(pk__in=chunk).values_list("pk", "payload"):
            try:
                key = limit.value_of(payload if isinstance(payload, dict) else {})
                keys.setdefault(key, []).append(pk)
            except InvalidJob as error:
                refused[pk] = InvalidJob(f"job {pk!r} cannot come to the queue {queue!r}: {error}")
    return keys, refused
