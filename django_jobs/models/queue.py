"""A named lane of jobs, kept as a row only where an operator or a setting said something about it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField


class Queue(models.Model):
    """A queue that somebody paused or described. Queues without a row work like any other."""

    name = ExactCharField(_("name"), max_length=64, primary_key=True)
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True)

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        ordering = ("name",)
        permissions = (("pause_queue", _("Can pause and resume queues")),)

    def __str__(self) -> str:
        return str(self.name)
