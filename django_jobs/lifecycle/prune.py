"""Prune: delete finished jobs that are older than the site keeps them, in small batches."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Exists, OuterRef, Q

from django_jobs.conf import get_settings
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, JobStatus, ScheduleTick
from django_jobs.models.job import LIVE

from .transactions import database_now, jobs_alias, run_transaction

BATCH = 500


def prune_batch(alias: str | None = None, limit: int = BATCH) -> int:
    """Delete up to `limit` jobs past their retention; return how many. Dead letters keep their job until they are closed.

    A job that a live one depends on is kept: its result may still be asked for.
    """
    using = alias or jobs_alias()

    def move() -> int:
        now = database_now(using)
        old = Q(pk__in=[])
        for status, days in get_settings().RETENTION.items():
            if days is not None:
                old |= Q(status=status, finished_at__lt=now - timedelta(days=days))
        open_letter = DeadLetter.objects.using(using).filter(job_id=OuterRef("pk")).open()
        needed = JobDependency.objects.using(using).filter(depends_on_id=OuterRef("pk"), job__status__in=LIVE)
        jobs = Job.objects.using(using).filter(old).filter(~Exists(open_letter), ~Exists(needed))
        ids = list(jobs.order_by("pk").values_list("pk", flat=True)[:limit])
        if ids:
            _delete(ids, using)
        return len(ids)

    return run_transaction(move, using)


def _delete(ids: list[str], using: str) -> None:
    """Delete jobs and what hangs on them by plain statements; no signal handlers, no row by row."""
    chosen = Job.objects.using(using).filter(
        pk__in=ids, status__in=(JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.DEAD, JobStatus.CANCELLED)
    )
    locked = list(chosen.order_by("pk").select_for_update().values_list("pk", flat=True))
    JobDependency.objects.using(using).filter(Q(job_id__in=locked) | Q(depends_on_id__in=locked)).delete()
    Attempt.objects.using(using).filter(job_id__in=locked)._raw_delete(using)
    DeadLetter.objects.using(using).filter(job_id__in=locked)._raw_delete(using)
    # A tick's row guards it for a while only; later the schedule's next_run_at does that alone.
    ScheduleTick.objects.using(using).filter(job_id__in=locked)._raw_delete(using)
    Job.objects.using(using).filter(pk__in=locked)._raw_delete(using)


def prune(alias: str | None = None) -> int:
    """Delete every job past its retention; return how many."""
    total = 0
    while deleted := prune_batch(alias):
        total += deleted
    return total
