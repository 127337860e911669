"""Release: hand unrun work back. No retry is spent, and nothing is recorded for a job that never started."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from django.db.models import F

from django_jobs.models import Attempt, AttemptOutcome, Job, JobStatus

from .cancel import cancel_as_asked
from .claim import as_claimed
from .notify import announce_work
from .outcome import ClaimedJob
from .processes import leave
from .transactions import DbNow, do_for_free, jobs_alias, run_transaction


def release_free(jobs: Sequence[ClaimedJob]) -> list[ClaimedJob]:
    """Make claimed jobs that have not started pending again, if nobody else has locked their rows; return the others."""
    return do_for_free(lambda some, lock_wait: release_unstarted(some, lock_wait=lock_wait), jobs)


def release_unstarted(jobs: Sequence[ClaimedJob], alias: str | None = None, *, lock_wait: float | None = None) -> int:
    """Make claimed jobs that have not started pending again; return how many still were ours."""
    using = alias or jobs_alias()

    def move() -> int:
        fences: dict[int, list[str]] = {}
        for job in jobs:
            fences.setdefault(job.fence, []).append(job.id)
        released = sum(_back(ids, fence, using) for fence, ids in sorted(fences.items()))
        cancel_as_asked([job.id for job in jobs], using)
        return released

    released = run_transaction(move, using, lock_wait=lock_wait) if jobs else 0
    for queue in {job.queue for job in jobs}:
        announce_work(queue, using)
    return released


def release_started(jobs: Sequence[ClaimedJob], process_id: str, alias: str | None = None) -> int:
    """Hand back jobs that were interrupted by a shutdown, each with an attempt that says so; no retry is spent."""
    using = alias or jobs_alias()

    def move() -> int:
        released = [job for job in sorted(jobs) if _back([job.id], job.fence, using)]
        for job in released:
            _record(job, process_id, "the worker process shut down before the job was done", using)
        cancel_as_asked([job.id for job in released], using)
        return len(released)

    return run_transaction(move, using) if jobs else 0


def record_undone(job: ClaimedJob, process_id: str, error: str, seconds: float, alias: str | None = None) -> bool:
    """Record a run that the database undid and that its process starts again; False when the job is not ours any more."""
    using = alias or jobs_alias()

    def move() -> bool:
        held = Job.objects.using(using).filter(pk=job.id, fence=job.fence, status=JobStatus.RUNNING)
        ours = held.select_for_update().values_list("pk", flat=True).first() is not None
        if ours:
            _record(job, process_id, error, using, seconds)
        return ours

    return run_transaction(move, using)


def _record(job: ClaimedJob, process_id: str, error: str, using: str, seconds: float = 0.0) -> None:
    Attempt.objects.using(using).create(
        job_id=job.id,
        number=job.attempt,
        worker_id=process_id,
        started_at=DbNow() - timedelta(seconds=seconds),
        ended_at=DbNow(),
        outcome=AttemptOutcome.RELEASED,
        error=error,
    )


def _back(ids: Sequence[str], fence: int, using: str) -> int:
    held = Job.objects.using(using).filter(pk__in=ids, fence=fence, status=JobStatus.RUNNING)
    return held.update(status=JobStatus.PENDING, fence=F("fence") + 1, updated_at=DbNow(), started_at=None)


def release_process(process_id: str, alias: str | None = None) -> int:
    """Hand back every job of a worker process that was ended on purpose, and delete its row; return how many.

    Call it only once the process is gone, or runs nothing any more.
    """
    using = alias or jobs_alias()
    jobs = [as_claimed(job) for job in Job.objects.using(using).filter(worker_id=process_id, status=JobStatus.RUNNING)]
    released = release_started(jobs, process_id, using)
    leave(process_id, using)
    return released
