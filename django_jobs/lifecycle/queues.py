"""Pause and resume: whether jobs of a queue are claimed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.models import Queue
from django_jobs.models.fields import DbNow


@transactional
def pause(queue: str) -> None:
    """Stop claims from a queue until it is resumed; what runs goes on."""
    Queue.objects.get_or_create(name=queue)
    Queue.objects.filter(name=queue, paused_at__isnull=True).update(paused_at=DbNow())


@transactional
def resume(queue: str) -> None:
    """Let workers claim from a queue again."""
    Queue.objects.filter(name=queue).update(paused_at=None)
    notify_work(queue, is_old=True)


@transactional
def restore_pauses(pauses: Mapping[str, datetime | None]) -> int:
    """Write the rows of queues that were paused (since when), or were once (None); return how many were changed.

    A queue that is paused here already stays as it is.
    """
    there = set(Queue.objects.filter(name__in=pauses).values_list("name", flat=True))
    missing = [Queue(name=name, paused_at=moment) for name, moment in pauses.items() if name not in there]
    Queue.objects.bulk_create(missing)
    changed = len(missing)
    for name in there:
        if pauses[name] is not None:
            changed += Queue.objects.filter(name=name, paused_at__isnull=True).update(paused_at=pauses[name])
    return changed
