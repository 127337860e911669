"""Cancel: a waiting job at once, a running one by asking its worker; a batch member by member."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from django.db.models import F

from django_jobs import signals
from django_jobs.db.notify import notify_cascade, notify_finished, notify_process
from django_jobs.db.transactions import after_commit, transactional
from django_jobs.exceptions import BatchNotFound, InvalidJob
from django_jobs.models import Batch, BatchStatus, Job, JobStatus, JobStep, OpenMember, StepKind
from django_jobs.models.fields import DbNow
from django_jobs.models.job import WAITING

from . import slots
from .batches import finish_ended, settle_members
from .cascade import CASCADE_SECONDS, cascade_for
from .dependents import settle_dependents
from .members import Ended
from .moved import Moved, chunks, lock_jobs


def cancel(ids: Iterable[str]) -> Moved:
    """Cancel jobs that wait, and ask the workers of those that run; finished ones are left."""
    moved = cancel_some(ids)
    if moved.done:
        cascade_for(CASCADE_SECONDS)
    return moved


def cancel_some(ids: Iterable[str]) -> Moved:
    """Cancel jobs as `cancel` does, and leave what is behind them to the workers' next cascade."""
    moved = Moved([], {})
    for chunk in chunks(ids):
        cancelled, workers, scheduled = _cancel(chunk)
        for worker_id in workers:
            after_commit(partial(notify_process, worker_id))
        moved += cancelled
        cancel_children(scheduled)
    if moved.done:
        notify_finished()
        notify_cascade()
    return moved


@transactional
def _cancel(ids: Sequence[str]) -> tuple[Moved, set[str], list[str]]:
    """Cancel a chunk; return what came of it, the workers of the jobs that run, and those that were scheduled."""
    jobs = lock_jobs(ids)
    running = [job for job in jobs.values() if job.status == JobStatus.RUNNING]
    Job.objects.filter(pk__in=[job.pk for job in running], cancel_requested_at=None).update(cancel_requested_at=DbNow())
    waiting = {job.pk: job.batch_id for job in jobs.values() if job.status in WAITING}
    slots.leave(jobs[pk] for pk in waiting)
    settle_members(_cancel_waiting(waiting))
    done = [*waiting, *(job.pk for job in running)]
    moved = Moved.of(ids, jobs, done, " already; only a job that is not finished can be cancelled")
    scheduled = [job.pk for job in jobs.values() if job.status == JobStatus.SCHEDULED]
    return moved, {job.worker_id or "" for job in running}, scheduled


def cancel_children(ids: Sequence[str]) -> None:
    """Cancel the children that jobs, which are cancelled now, were waiting for, or had begun to run."""
    if not ids:
        return
    waits = JobStep.objects.filter(job_id__in=ids, kind=StepKind.CHILDREN, ended_at=None)
    for batch_id in list(waits.order_by("pk").values_list("event_key", flat=True)):
        with suppress(InvalidJob, BatchNotFound):  # they have ended meanwhile
            cancel_batch(str(batch_id))


def _cancel_waiting(batch_of: Mapping[str, str | None]) -> list[Ended]:
    """Cancel jobs whose rows the caller has locked while they wait; return them and the dependents that failed with them.

    Args:
        batch_of: the batch, if any, of each of the jobs.
    """
    if not batch_of:
        return []
    ids = sorted(batch_of)
    Job.objects.filter(pk__in=ids).update(
        status=JobStatus.CANCELLED,
        fence=F("fence") + 1,
        finished_at=DbNow(),
        updated_at=DbNow(),
        unique_lock=None,
        pending_limits=0,
    )
    failed = settle_dependents(ids)
    for job_id in ids:
        signals.announce(signals.job_cancelled, job_id)
    return [*(Ended(job_id, batch_of[job_id], JobStatus.CANCELLED) for job_id in ids), *failed]


def cancel_as_requested(ids: Iterable[str]) -> list[Ended]:
    """Cancel those of the jobs, which wait again after a run, that somebody asked to cancel while they ran.

    Returns what ended. Call it in the transaction that made them wait, so that none of them is claimed in between.
    """
    requested = Job.objects.filter(pk__in=ids, status__in=WAITING, cancel_requested_at__isnull=False)
    batch_of = dict(requested.values_list("pk", "batch_id"))
    if batch_of:
        after_commit(lambda: cancel_children(sorted(batch_of)))
    return _cancel_waiting(batch_of)


def cancel_batch(batch_id: str) -> int:
    """Cancel the members of a batch and of those nested in it, and let none be added; return how many were cancelled or asked.

    Raises BatchNotFound, and InvalidJob when the batch has finished.
    """
    _close(batch_id)
    members = OpenMember.objects.filter(batch=batch_id).order_by("place").values_list("job_id", flat=True)
    # From the last one back: a member that depends on another is cancelled before it, and not failed by it.
    moved = sum(len(cancel(chunk).done) for chunk in reversed(list(chunks(members))))
    for nested in list(Batch.objects.filter(parent=batch_id, status=BatchStatus.RUNNING).values_list("pk", flat=True)):
        with suppress(InvalidJob):  # it has finished meanwhile
            moved += cancel_batch(nested)
    finish_ended(batch_id)
    return moved


@transactional
def _close(batch_id: str) -> None:
    """Let no more members join; those whose submit is not committed yet are waited for."""
    batch = Batch.objects.select_for_update().filter(pk=batch_id).first()
    if batch is None:
        raise BatchNotFound(batch_id)
    if batch.is_finished:
        raise InvalidJob(
            f"batch {batch_id!r} is {batch.status} already; only one that has not finished can be cancelled"
        )
    Batch.objects.filter(pk=batch_id, cancel_requested_at=None).update(cancel_requested_at=DbNow())
