"""One worker process and its lease: the proof that it lives."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.db.models import BooleanField, Case, F, Q, Value, When
from django.utils.translation import gettext_lazy as _

from django_jobs.conf import this_site

from .fields import DbNow, ExactCharField, MomentField, StrictJSONField
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

    def at_work(self) -> WorkerProcessQuerySet:
        """Keep the processes alive of which some thread runs a job or looks for one; a heartbeat alone is no worker."""
        return self.alive().filter(Q(silent_threads=0) | Q(silent_threads__lt=F("threads")))

    def silent_threads(self) -> int:
        """Return how many threads of the processes alive neither run a job nor look for one."""
        return sum(self.alive().values_list("silent_threads", flat=True))

    def of_other_sites(self) -> WorkerProcessQuerySet:
        """Keep the processes that run the code of another site."""
        return self.exclude(site=this_site())

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


class ProcessFacts(models.Model):
    """What is known of a worker process, and is kept when it is gone."""

    id = ExactCharField(_("id"), primary_key=True, max_length=128)
    host = models.CharField(_("host"), max_length=255)
    pid = models.BigIntegerField(_("process number"))
    site = ExactCharField(_("site"), max_length=64, default="")
    release = ExactCharField(_("release"), max_length=64, default="")
    queues = StrictJSONField(_("queues"), default=list)
    threads = models.PositiveIntegerField(_("threads"), default=1)
    jobs_done = models.BigIntegerField(_("jobs done"), default=0)
    started_at = MomentField(_("started at"))
    heartbeat_at = MomentField(_("last heartbeat"))

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(self.id)


class WorkerProcess(ProcessFacts):
    """A process that may hold jobs. `lease_expires_at` is NULL once it was declared dead: no beat revives it.

    `silent_threads` neither ran a job nor looked for one at the last beat; what it had done by then, how fast since the beat
    before, and its memory were measured there, too.
    """

    silent_threads = models.PositiveIntegerField(_("silent threads"), default=0)
    jobs_per_second = models.FloatField(_("jobs a second"), default=0.0)
    memory_mb = models.PositiveIntegerField(_("memory in MB"), null=True)
    beat = models.BigIntegerField(_("beat"), default=0)
    lease_expires_at = MomentField(_("lease expires at"), null=True)
    stopping_at = MomentField(_("asked to stop at"), null=True, blank=True)

    objects = JobsManager.from_queryset(WorkerProcessQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("worker process")
        verbose_name_plural = _("worker processes")
        ordering = ("started_at", "id")
        permissions = (("stop_workerprocess", _("Can ask worker processes to stop")),)
        constraints = (
            models.CheckConstraint(
                name="django_jobs_process_numbers",
                condition=~models.Q(id="")
                & models.Q(beat__gte=0, beat__lte=2**62, threads__lte=10**6, silent_threads__lte=10**6),
            ),
        )
