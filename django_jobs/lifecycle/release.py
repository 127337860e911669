"""Release: hand work back. No retry is spent, and nothing is recorded for a job that is known never to have started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from django.db import DatabaseError
from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.errors import is_lock_timeout
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import lock_wait, transactional
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import LAST_FENCE

from . import slots
from .active_limits import NO_LIMITS, active_limits
from .batches import settle_members
from .cancel import cancel_as_requested
from .claim import ClaimedJob
from .leases import leave
from .outcome import Outcome
from .settle import LOCK_WAIT_SECONDS, write_attempts

SHUT_DOWN = "the worker process shut down before the job was done"
UNHELD = "the answer to the job's claim, or what came of its run, was lost on the way to or from the database"


class Held(Protocol):
    """A job that a process holds: a ClaimedJob, or a HeldJob."""

    @property
    def id(self) -> str: ...
    @property
    def fence(self) -> int: ...
    @property
    def queue(self) -> str: ...


class HeldJob(NamedTuple):
    """A running job as its row names the process that holds it."""

    id: str
    fence: int
    queue: str
    cancel_requested: bool = False


def held_jobs(process_id: str) -> list[HeldJob]:
    """Return the running jobs that name a process."""
    rows = Job.objects.held_by(process_id).values_list("pk", "fence", "queue", "cancel_requested_at")
    return [HeldJob(pk, fence, queue, requested is not None) for pk, fence, queue, requested in rows]


def release(jobs: Sequence[Held]) -> int:
    """Make claimed jobs that have not started pending again; return how many still were under the fence they are given with."""
    return _release(jobs) if jobs else 0


def release_unlocked(jobs: Sequence[Held]) -> list[Held]:
    """Release jobs as `release` does if nobody else has locked their rows for long; return the others."""
    try:
        with lock_wait(LOCK_WAIT_SECONDS):
            release(jobs)
        return []
    except DatabaseError as error:
        if not is_lock_timeout(error):
            raise
    return _release_free(jobs)


@transactional
def _release_free(jobs: Sequence[Held]) -> list[Held]:
    free = dialect().lock_free_jobs([job.id for job in jobs])
    release([job for job in jobs if job.id in free])
    return [job for job in jobs if job.id not in free]


@transactional
def _release(jobs: Sequence[Held]) -> int:
    by_fence: dict[int, list[str]] = {}
    for job in jobs:
        by_fence.setdefault(job.fence, []).append(job.id)
    released = 0
    freed: list[str] = []
    for fence, ids in sorted(by_fence.items()):
        held = Job.objects.filter(pk__in=ids, fence=fence, status=JobStatus.RUNNING)
        if active_limits() is not NO_LIMITS:
            freed += held.order_by("pk").select_for_update().values_list("pk", flat=True)
        released += held.update(status=JobStatus.PENDING, fence=F("fence") + 1, updated_at=DbNow(), started_at=None)
    settle_members(cancel_as_requested([job.id for job in jobs]))
    for queue in {job.queue for job in jobs}:
        notify_work(queue, is_old=True)
    slots.give_on(freed)
    return released


@transactional
def release_started(jobs: Sequence[ClaimedJob], process_id: str, reason: str = SHUT_DOWN) -> int:
    """Hand back jobs that have started, each with an attempt that says why; no retry is spent."""
    fences = {job.id: job.fence for job in jobs}
    rows = Job.objects.held_by(process_id).filter(pk__in=fences).order_by("pk").select_for_update()
    read = rows.values_list("pk", "fence", "started_at", DbNow())
    ran = {pk: (now - started_at).total_seconds() for pk, fence, started_at, now in read if fences[pk] == fence}
    interrupted = [job for job in jobs if job.id in ran]
    release(interrupted)
    write_attempts([Outcome.released(job, reason)._replace(seconds=ran[job.id]) for job in interrupted], process_id)
    return len(interrupted)


def release_unheld(jobs: Sequence[HeldJob], process_id: str) -> int:
    """Hand back jobs whose rows name a process that does not hold them; return how many still were under their fence.

    A claim whose answer was lost has started no run, and a run whose settle was undone by a failover has: the row does not tell
    which, so an attempt says so of both.
    """
    fences = {job.id: job.fence for job in jobs}
    named = [ClaimedJob.of(job) for job in Job.objects.held_by(process_id).filter(pk__in=fences)]
    return release_started([job for job in named if job.fence == fences[job.id]], process_id, UNHELD)


def release_process(process_id: str, jobs_done: int = 0) -> int:
    """Hand back every job of a worker process that was ended on purpose, and delete its row; return how many.

    Call it only once the process is gone, or runs nothing any more.

    Args:
        jobs_done: as the process itself has counted them; what its last beat told may be old.
    """
    released = release_started([ClaimedJob.of(job) for job in Job.objects.held_by(process_id)], process_id)
    leave(process_id, jobs_done)
    return released


def wait_again(job: Job) -> None:
    """Make a job that ran elsewhere, and is not saved here yet, wait under a fence that its old worker does not know."""
    if job.status == JobStatus.RUNNING:
        job.status = JobStatus.PENDING
        job.fence = min(job.fence + 1, LAST_FENCE)
        job.started_at = job.cancel_requested_at = None
        job.worker_id = job.progress = None
        job.progress_message = ""
