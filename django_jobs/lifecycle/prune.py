"""Prune: delete finished jobs that are older than the site keeps them, in small batches."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import database_now, transactional
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, ScheduleTick
from django_jobs.models.job import LIVE, TERMINAL

BATCH = 500


@transactional
def prune_batch(limit: int = BATCH) -> int:
    """Delete up to `limit` jobs past their retention; return how many. A dead letter keeps its job until it is closed.

    A job that a live one depends on is kept: its result may still be asked for.
    """
    now = database_now()
    old = Q(pk__in=[])
    for status, days in get_settings().RETENTION.items():
        if days is not None:
            old |= Q(status=status, finished_at__lt=now - timedelta(days=days))
    open_dead_letter = DeadLetter.objects.filter(job_id=OuterRef("pk")).open()
    needed = JobDependency.objects.filter(depends_on_id=OuterRef("pk"), job__status__in=LIVE)
    jobs = Job.objects.filter(old).filter(~Exists(open_dead_letter), ~Exists(needed))
    ids = list(jobs.order_by("pk").values_list("pk", flat=True)[:limit])
    if ids:
        _delete(ids)
    return len(ids)


def _delete(ids: list[str]) -> None:
    """Delete jobs and what hangs on them by plain statements; no signal handlers, no row by row."""
    chosen = Job.objects.filter(pk__in=ids, status__in=TERMINAL)
    locked = list(chosen.order_by("pk").select_for_update().values_list("pk", flat=True))
    JobDependency.objects.filter(Q(job_id__in=locked) | Q(depends_on_id__in=locked)).delete()
    Attempt.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    DeadLetter.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    # A tick's row guards it for a while only; later the schedule's next_run_at does that alone.
    ScheduleTick.objects.filter(job_id__in=locked)._raw_delete(jobs_alias())
    Job.objects.filter(pk__in=locked)._raw_delete(jobs_alias())


def prune() -> int:
    """Delete every job past its retention; return how many."""
    total = 0
    while deleted := prune_batch():
        total += deleted
    return total
