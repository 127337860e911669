"""Cancel: a waiting job at once, a running one by asking its worker; a batch member by member."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from django.db.models import Exists, OuterRef

from django_jobs import signals
from django_jobs.db.notify import notify_finished, notify_process
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
from .moved import CHUNK, Moved, end_waiting, in_chunks, key_chunks, lock_jobs


def cancel(ids: Iterable[str]) -> Moved:
    """Cancel jobs that wait, and ask the workers of those that run; finished ones are left."""
    moved, is_left = _cancel_all(ids)
    if is_left:
        cascade_for(CASCADE_SECONDS)
    return moved


def cancel_some(ids: Iterable[str]) -> Moved:
    """Cancel jobs as `cancel` does, and leave what is behind them to the workers' next cascade."""
    return _cancel_all(ids)[0]


def _cancel_all(ids: Iterable[str]) -> tuple[Moved, bool]:
    """Cancel in chunks; say also whether jobs behind these are left to be failed."""
    moved, is_left = Moved([], {}), False
    for chunk in key_chunks(ids):
        cancelled = _cancel(chunk)
        for worker_id in cancelled.workers:
            after_commit(partial(notify_process, worker_id))
        moved += cancelled.moved
        is_left |= cancelled.is_left
        cancel_children(cancelled.scheduled)
    if moved.done:
        notify_finished()
    return moved, is_left


class _Cancelled(NamedTuple):
    """What came of a chunk: the workers of the jobs that run, the jobs that were scheduled, and whether a cascade is left."""

    moved: Moved
    workers: set[str]
    scheduled: list[str]
    is_left: bool


@transactional
def _cancel(ids: Sequence[str]) -> _Cancelled:
    jobs = lock_jobs(ids)
    running = [job for job in jobs.values() if job.status == JobStatus.RUNNING]
    Job.objects.filter(pk__in=[job.pk for job in running], cancel_requested_at=None).update(cancel_requested_at=DbNow())
    waiting = {job.pk: job.batch_id for job in jobs.values() if job.status in WAITING}
    slots.leave(jobs[pk] for pk in waiting)
    ended, is_left = _cancel_waiting(waiting)
    settle_members(ended)
    done = [*waiting, *(job.pk for job in running)]
    moved = Moved.of(ids, jobs, done, " already; only a job that is not finished can be cancelled")
    scheduled = [job.pk for job in jobs.values() if job.status == JobStatus.SCHEDULED]
    return _Cancelled(moved, {job.worker_id or "" for job in running}, scheduled, is_left)


def cancel_children(ids: Sequence[str]) -> None:
    """Cancel the children that jobs, which are cancelled now, were waiting for, or had begun to run."""
    if not ids:
        return
    waits = JobStep.objects.filter(job_id__in=ids, kind=StepKind.CHILDREN, ended_at=None)
    for batch_id in list(waits.order_by("pk").values_list("event_key", flat=True)):
        with suppress(InvalidJob, BatchNotFound):  # they have ended meanwhile
            cancel_batch(str(batch_id))


def cancel_left_children() -> None:
    """Cancel the children of jobs that are cancelled: what a process left undone that died behind the parent's end."""
    running = Batch.objects.filter(status=BatchStatus.RUNNING, awaited_by__isnull=False)
    cancelled = Job.objects.filter(pk=OuterRef("awaited_by"), status=JobStatus.CANCELLED)
    for batch_id in list(running.filter(Exists(cancelled)).order_by("pk").values_list("pk", flat=True)):
        with suppress(InvalidJob, BatchNotFound):  # they have ended meanwhile
            cancel_batch(batch_id)


def _cancel_waiting(batch_of: Mapping[str, str | None]) -> tuple[list[Ended], bool]:
    """Cancel jobs whose rows the caller has locked while they wait.

    Returns them and the dependents that failed with them, and whether there are more behind those.

    Args:
        batch_of: the batch, if any, of each of the jobs.
    """
    if not batch_of:
        return [], False
    ids = sorted(batch_of)
    end_waiting(Job.objects.filter(pk__in=ids), JobStatus.CANCELLED)
    failed, is_left = settle_dependents(ids)
    for job_id in ids:
        signals.announce(signals.job_cancelled, job_id)
    return [*(Ended(job_id, batch_of[job_id], JobStatus.CANCELLED) for job_id in ids), *failed], is_left


def cancel_as_requested(ids: Iterable[str]) -> list[Ended]:
    """Cancel those of the jobs, which wait again after a run, that somebody asked to cancel while they ran.

    Returns what ended. Call it in the transaction that made them wait, so that none of them is claimed in between.
    """
    requested = Job.objects.filter(pk__in=ids, status__in=WAITING, cancel_requested_at__isnull=False)
    batch_of = dict(requested.values_list("pk", "batch_id"))
    if batch_of:
        after_commit(lambda: cancel_children(sorted(batch_of)))
    return _cancel_waiting(batch_of)[0]


def cancel_batch(batch_id: str) -> int:
    """Cancel the members of a batch and of those nested in it, and let none be added; return how many were cancelled or asked.

    Raises BatchNotFound, and InvalidJob when the batch has finished.
    """
    _close(batch_id)
    members = OpenMember.objects.filter(batch=batch_id).order_by("-place").values_list("job_id", flat=True)
    # From the last one back: a member that depends on another is cancelled before it, and not failed by it.
    moved = sum(len(cancel(chunk).done) for chunk in in_chunks(list(members), CHUNK))
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
