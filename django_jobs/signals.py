"""Django signals about jobs, sent after the row is committed; sender is `Job`, keyword `job`, and what the event adds."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.dispatch import Signal

from .db.transactions import after_commit

# The receivers are cached per sender: on the hot path "is anybody listening?" is asked for every job.
job_submitted = Signal(use_caching=True)  # job: a new row was written
job_started = Signal(use_caching=True)  # job, worker_id: its handler is about to run
bulk_started = Signal(use_caching=True)  # job_type, queue, job_ids: a bulk handler is about to run with these jobs
job_completed = Signal(use_caching=True)  # job, worker_id, result: its handler returned and that was recorded
job_failed = Signal(use_caching=True)  # job, error, exception: an attempt failed, or a dependency did
job_retried = Signal(use_caching=True)  # job, next_scheduled_at, error, exception: it will be tried again
job_dead = Signal(use_caching=True)  # job, error, exception: no tries are left
job_cancelled = Signal(use_caching=True)  # job: it will not run any more
job_rescued = Signal(use_caching=True)  # job, worker_id: it was taken back from a dead process
job_replayed = Signal(use_caching=True)  # job: an operator runs it again
dead_letter_acknowledged = Signal(use_caching=True)  # job, dead_letter, note: an operator closed its dead letter


def send(signal: Signal, *, sender: type, **arguments: Any) -> None:
    """Send a signal so that no receiver can break the job.

    What a receiver raises is logged by Django itself (logger `django.dispatch`) and goes no further. Costs next to
    nothing without receivers; whoever would build `arguments` only for this asks `signal.has_listeners(sender)` first.
    """
    if signal.has_listeners(sender):
        signal.send_robust(sender, **arguments)


def announce(signal: Signal, job: Any, **arguments: Any) -> None:
    """Send a signal about one job, given as a Job or an id, once the transaction that is open now, if any, has committed.

    The row of an id is read then, and only if somebody listens.
    """
    sender = apps.get_model("django_jobs", "Job")
    if not signal.has_listeners(sender):
        return

    def send_it() -> None:
        found = sender.objects.filter(pk=job).first() if isinstance(job, str) else job
        if found is not None:
            send(signal, sender=sender, job=found, **arguments)

    after_commit(send_it)
