"""Send signals after the row is written, and build the Job for them only when somebody listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.dispatch import Signal

from django_jobs import signals
from django_jobs.models import Job


def announce(signal: Signal, job: str | Job, alias: str, **extra: Any) -> None:
    """Send a signal about one job once the transaction that is open now, if any, has committed."""
    if signal.has_listeners(Job):
        transaction.on_commit(lambda: _send(signal, job, alias, extra), using=alias, robust=True)


def _send(signal: Signal, job: str | Job, alias: str, extra: dict[str, Any]) -> None:
    found = job if isinstance(job, Job) else Job.objects.using(alias).filter(pk=job).first()
    if found is not None:
        signals.send(signal, sender=Job, job=found, **extra)


def failed_by_dependency(ids: Sequence[str], alias: str) -> None:
    """Send job_failed for jobs that failed because of a dependency."""
    if ids and signals.job_failed.has_listeners(Job):
        errors = Job.objects.using(alias).filter(pk__in=ids).values_list("pk", "error")
        for job_id, error in errors:
            announce(signals.job_failed, job_id, alias, error=error)
