"""Prune: delete finished jobs that are older than the site keeps them, in small batches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from django.db.models import PROTECT, RESTRICT, Exists, ForeignObjectRel, OuterRef, Q, QuerySet

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import database_now, transactional
from django_jobs.models import (
    Attempt,
    Batch,
    BatchMember,
    BatchStatus,
    DeadLetter,
    Job,
    JobDependency,
    JobLog,
    LimitSlot,
    ScheduleTick,
)
from django_jobs.models.job import LIVE, TERMINAL

from .events import prune_events
from .farewell import forget_gone
from .steps import forget

BATCH = 500


@transactional
def prune_batch(limit: int = BATCH) -> int:
    """Delete up to `limit` jobs past their retention; return how many. A dead letter keeps its job until it is closed.

    A job that a live one depends on is kept: its result may still be asked for. So are the members of a batch that has not
    finished; a finished one goes with its last member.
    """
    now = database_now()
    old = Q(pk__in=[])
    for status, days in get_settings().RETENTION.items():
        if days is not None and status in TERMINAL:
            old |= Q(status=status, finished_at__lt=now - timedelta(days=days))
    ids = list(may_go(Job.objects.filter(old)).order_by("pk").values_list("pk", flat=True)[:limit])
    deleted = len(delete_ended(ids)) if ids else 0
    days = get_settings().RETENTION.get("completed")
    if days is not None:  # of those that never had a member
        old_ones = _empty().filter(status=BatchStatus.COMPLETED, finished_at__lt=now - timedelta(days=days))
        _delete_emptied(set(old_ones.values_list("pk", flat=True)[:limit]))
    return deleted


def may_go(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Keep the jobs without which nothing is missing: no open dead letter, no live dependent, no batch that goes on, and no row
    of the site that is protected.
    """
    open_dead_letter = DeadLetter.objects.filter(job_id=OuterRef("pk")).open()
    unfinished = Batch.objects.unfinished().filter(pk=OuterRef("batch_id"))
    return jobs.filter(~Exists(open_dead_letter), ~_is_needed(), ~Exists(unfinished)).exclude(_is_protected())


def _unneeded(ids: list[str]) -> list[str]:
    return list(Job.objects.filter(~_is_needed(), pk__in=ids).order_by("pk").values_list("pk", flat=True))


def _is_needed() -> Exists:
    return Exists(JobDependency.objects.filter(depends_on_id=OuterRef("pk"), job__status__in=LIVE))


def delete_ended(ids: Sequence[str]) -> list[str]:
    """Delete finished jobs and what hangs on them by plain statements; no signal handlers, no row by row. Return which.

    The caller has a transaction.
    """
    chosen = Job.objects.filter(pk__in=ids, status__in=TERMINAL)
    batch_of = dict(chosen.order_by("pk").select_for_update().values_list("pk", "batch_id"))
    # Asked again under the lock, by a statement of its own: a submit that names one of them may just have committed.
    locked = _unneeded(list(batch_of))
    batch_ids = {batch_of[job_id] for job_id in locked if batch_of[job_id] is not None}
    JobDependency.objects.filter(Q(job_id__in=locked) | Q(depends_on_id__in=locked)).delete()
    Attempt.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    forget(locked)
    JobLog.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    DeadLetter.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    # A tick's row guards it for a while only; later the schedule's next_run_at does that alone.
    ScheduleTick.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    if batch_ids:
        BatchMember.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    LimitSlot.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    if _relations_of_site():  # what each `on_delete` says is done
        Job.objects.filter(pk__in=locked).delete()
    else:
        Job.objects.filter(pk__in=locked)._raw_delete(jobs_alias())
    _delete_emptied(batch_ids)
    return locked


def _relations_of_site() -> list[ForeignObjectRel]:
    """Return the foreign keys to jobs that models of the site have."""
    return [
        field
        for field in Job._meta.get_fields(include_hidden=True)
        if isinstance(field, ForeignObjectRel) and field.related_model._meta.app_label != Job._meta.app_label
    ]


def _is_protected() -> Q:
    """Return the condition that a model of the site refers to a job that is not to go before it."""
    condition = Q(pk__in=[])
    for relation in _relations_of_site():
        if relation.on_delete in (PROTECT, RESTRICT):
            rows = relation.related_model._base_manager.using(jobs_alias())
            condition |= Q(Exists(rows.filter(**{relation.field.name: OuterRef("pk")})))
    return condition


def _delete_emptied(batch_ids: set[str]) -> None:
    """Delete those of the batches that have finished and lost their last member, and then the batches around them."""
    while batch_ids:
        emptied = dict(_empty().filter(pk__in=batch_ids).values_list("pk", "parent_id"))
        Batch.objects.filter(pk__in=emptied)._raw_delete(jobs_alias())
        batch_ids = {parent_id for parent_id in emptied.values() if parent_id is not None}


def _empty() -> QuerySet[Batch]:
    members = BatchMember.objects.filter(batch_id=OuterRef("pk"))
    nested = Batch.objects.filter(parent_id=OuterRef("pk"))
    return Batch.objects.finished().filter(~Exists(members), ~Exists(nested)).order_by()


def prune() -> int:
    """Delete every job past its retention, every event, and what is told of processes long gone; return how many jobs."""
    forget_gone()
    while prune_events():
        pass
    total = 0
    while deleted := prune_batch():
        total += deleted
    return total
