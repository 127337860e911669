"""Whose turn it was last in a line of jobs that take turns by their fair keys."""

from __future__ import annotations

from django.db import models

from .fields import ExactCharField, MomentField
from .limit import MAX_SCOPE
from .managers import JobsManager


class FairTurn(models.Model):
    """The key that was served last among the jobs of a queue and rank: those that are ready, or that wait for a limit's slots.

    It is a place in the order of the keys and no count, so nothing is owed to a key that was away.
    """

    scope = ExactCharField(max_length=MAX_SCOPE, default="")  # of the limit; empty for the ready ones
    queue = ExactCharField(max_length=64)
    rank = models.SmallIntegerField()
    key = ExactCharField(max_length=200)  # empty: those without a key
    used_at = MomentField()

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()
        constraints = (models.UniqueConstraint(name="django_jobs_fairturn_line", fields=["scope", "queue", "rank"]),)
        indexes = (models.Index(name="django_jobs_fairturn_used", fields=["used_at"]),)

    def __str__(self) -> str:
        return f"{self.scope or self.queue} {self.rank}: {self.key}"
