"""A queue: a name that jobs share, kept as a row only where an operator or a setting said something about it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, MomentField
from .managers import JobsManager


class QueueQuerySet(models.QuerySet["Queue"]):
    """Questions about queues."""

    def paused(self) -> QueueQuerySet:
        """Keep the queues from which nothing is claimed."""
        return self.filter(paused_at__isnull=False)

    def paused_names(self) -> set[str]:
        """Return the names of the queues that are paused."""
        return set(self.paused().values_list("name", flat=True))


class Queue(models.Model):
    """A queue that somebody paused or described. Queues without a row work like any other."""

    name = ExactCharField(_("name"), max_length=64, primary_key=True)
    paused_at = MomentField(_("paused at"), null=True, blank=True)

    objects = JobsManager.from_queryset(QueueQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        ordering = ("name",)
        permissions = (("pause_queue", _("Can pause and resume queues")),)

    def __str__(self) -> str:
        return str(self.name)
