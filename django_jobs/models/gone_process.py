"""A worker process that is no more: kept for a week, so that it can be asked what it held and how it ended."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, MomentField
from .managers import JobsManager
from .worker_process import ProcessFacts


class Ending(models.TextChoices):
    """How a worker process ended, as those who outlived it saw it."""

    LEFT = "left", _("left")
    KILLED = "killed", _("killed")  # its supervisor saw it die
    SILENT = "silent", _("silent")  # its lease ran out; other processes of its host went on
    HOST_SILENT = "host silent", _("host silent")  # and no process of its host was heard of any more
    LEASE_LOST = "lease lost", _("lease lost")  # it came back too late, and gave up


class GoneProcess(ProcessFacts):
    """What is left of a `WorkerProcess`. Nothing is claimed or rescued by these rows."""

    ended_at = MomentField(_("ended at"))
    ending = ExactCharField(_("ending"), max_length=11, choices=Ending)
    held = models.PositiveIntegerField(_("jobs taken back"), default=0)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()  # who may view worker processes may view these
        verbose_name = _("worker process that is gone")
        verbose_name_plural = _("worker processes that are gone")
        ordering = ("-ended_at",)
        constraints = (
            models.CheckConstraint(name="django_jobs_gone_ending", condition=models.Q(ending__in=Ending.values)),
            models.CheckConstraint(name="django_jobs_gone_named", condition=~models.Q(id="")),
        )
