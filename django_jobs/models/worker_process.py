"""One worker process and its lease: the proof that it lives."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.db.models import BooleanField, Case, Q, Value, When
from django.utils.translation import gettext_lazy as _

from .fields import DbNow, ExactCharField, StrictJSONField
from .managers import JobsManager


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """What one look at a process's row showed; `is_expired`: its lease had run out by the database's clock."""

    id: str
    beat: int
    is_expired: bool
    is_asked_to_stop: bool = False


class WorkerProcessQuerySet(models.QuerySet["WorkerProcess"]):
    """Questions about worker processes."""

    def alive(self) -> WorkerProcessQuerySet:
        """Keep the processes whose lease runs by the database's clock."""
        return self.filter(lease_expires_at__gt=DbNow())

    def registered(self) -> WorkerProcessQuerySet:
        """Keep the processes that nobody has declared dead."""
        return self.filter(lease_expires_at__isnull=False)

    def snapshots(self) -> list[ProcessSnapshot]:
        """Return what one look at every process shows."""
        is_expired = Case(
            When(Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=DbNow()), then=Value(True)),
            default=Value(False),
            output_field=BooleanField(),
        )
        rows = self.annotate(is_expired=is_expired).values_list("id", "beat", "is_expired", "stopping_at")
        return [
            ProcessSnapshot(process_id, beat, expired, stopping_at is not None)
            for process_id, beat, expired, stopping_at in rows
        ]


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

    objects = JobsManager.from_queryset(WorkerProcessQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("worker process")
        verbose_name_plural = _("worker processes")
        ordering = ("started_at", "id")
        permissions = (("stop_workerprocess", _("Can ask worker processes to stop")),)

    def __str__(self) -> str:
        return str(self.id)
