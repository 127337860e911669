"""One worker process and its lease: the proof that it lives."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import DbNow, ExactCharField, StrictJSONField


class WorkerProcessQuerySet(models.QuerySet["WorkerProcess"]):
    """Questions about worker processes."""

    def alive(self) -> WorkerProcessQuerySet:
        """Keep the processes whose lease runs by the database's clock."""
        return self.filter(lease_expires_at__gt=DbNow())


class WorkerProcess(models.Model):
    """A process that may hold jobs. `lease_expires_at` is NULL once it was declared dead: no beat revives it."""

    id = ExactCharField(_("id"), primary_key=True, max_length=128)
    host = models.CharField(_("host"), max_length=255)
    pid = models.BigIntegerField(_("process number"))
    queues = StrictJSONField(_("queues"), default=list)
    threads = models.PositiveIntegerField(_("threads"), default=1)
    started_at = models.DateTimeField(_("started at"))
    beat = models.BigIntegerField(_("beat"), default=0)
    heartbeat_at = models.DateTimeField(_("last heartbeat"))
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True)
    stopping_at = models.DateTimeField(_("asked to stop at"), null=True, blank=True)
    sessions = StrictJSONField(_("database sessions"), default=list)

    objects = WorkerProcessQuerySet.as_manager()

    class Meta:
        verbose_name = _("worker process")
        verbose_name_plural = _("worker processes")
        ordering = ("started_at", "id")
        permissions = (("stop_workerprocess", _("Can ask worker processes to stop")),)

    def __str__(self) -> str:
        return str(self.id)
