"""Pause and resume: whether jobs of a queue are claimed."""

from __future__ import annotations

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
