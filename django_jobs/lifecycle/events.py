"""Send signals after the row is written, and build the Job for them only when somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
        for job in Job.objects.using(alias).filter(pk__in=ids):
            announce(signals.job_failed, job, alias, error=job.error)


# What this process does once a run of its own is known to be recorded; by job and fence, so that no later run is meant.
_on_completion: dict[tuple[str, int], Callable[[], None]] = {}


def on_completion(job_id: str, fence: int, callback: Callable[[], None]) -> None:
    """Call back once when this run, which is about to return, has been recorded as completed; never when it is not."""
    _on_completion[job_id, fence] = callback


def tell_completed(runs: Iterable[tuple[str, int]], alias: str) -> None:
    """Call back for runs that are completed once the open transaction, if any, has committed."""
    if _on_completion:
        for run in runs:
            if run in _on_completion:
                transaction.on_commit(partial(_call_back, run), using=alias, robust=True)


def forget(runs: Iterable[tuple[str, int]]) -> None:
    """Drop the callbacks of runs that ended otherwise."""
    if _on_completion:
        for run in runs:
            _on_completion.pop(run, None)


def _call_back(run: tuple[str, int]) -> None:
    callback = _on_completion.pop(run, None)
    if callback is not None:
        callback()
