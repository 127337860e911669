"""What our own log says of retries, without a Job for each: to read and build one is half of what a failed attempt costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.dispatch import Signal

from django_jobs.db.transactions import after_commit
from django_jobs.models import Job, JobStatus

from .claim import ClaimedJob

logger = logging.getLogger("django_jobs")
retries_recorded = Signal(use_caching=True)  # retries: what a transaction that has committed has recorded


class Retry(NamedTuple):
    """A job that failed and is tried again."""

    job: ClaimedJob
    retry_count: int
    next_scheduled_at: datetime
    error: str


def tell_of_retries(failed: Mapping[str, tuple[ClaimedJob, int, str]]) -> None:
    """Tell the log, after the commit, of those of these jobs that are tried again.

    Args:
        failed: by id the claim, the retries spent by now, and the error.
    """
    if not failed or not logger.isEnabledFor(logging.WARNING):
        return
    rows = Job.objects.filter(pk__in=list(failed), status=JobStatus.SCHEDULED).values_list("pk", "available_at")
    due = dict(rows)
    retries = [Retry(job, spent, due[job.id], error) for job, spent, error in failed.values() if job.id in due]
    after_commit(lambda: _send(retries))


def _send(retries: Sequence[Any]) -> None:
    retries_recorded.send_robust(Job, retries=retries)
