"""One try at a job that did not complete; a clean success leaves no row."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, ExactTextField, MomentField
from .job import Job
from .managers import JobsManager


class AttemptOutcome(models.TextChoices):
    """Why an attempt did not complete its job."""

    FAILED = "failed", _("failed")
    TIMED_OUT = "timed out", _("timed out")
    CRASHED = "crashed", _("crashed")
    RELEASED = "released", _("released")
    LEASE_LOST = "lease lost", _("lease lost")
    SNOOZED = "snoozed", _("snoozed")
    CANCELLED = "cancelled", _("cancelled")
    WAITING = "waiting", _("waiting")


class Attempt(models.Model):
    """A started run that did not complete, with its reason. Times are the database's.

    Most jobs succeed at once, and a row for each would double the writes.
    """

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts", verbose_name=_("job"))
    # retry_count + 1. A release or a snooze spends no retry, so two attempts may have one number; their times differ.
    number = models.PositiveIntegerField(_("number"))
    worker_id = ExactCharField(_("worker process"), max_length=128, default="")
    release = ExactCharField(_("release"), max_length=64, default="", blank=True)
    started_at = MomentField(_("started at"), null=True)
    ended_at = MomentField(_("ended at"))
    outcome = ExactCharField(_("outcome"), max_length=10, choices=AttemptOutcome)
    exception_class = ExactCharField(_("exception class"), max_length=255, default="", blank=True)
    error = ExactTextField(_("error"), default="", blank=True)
    traceback = ExactTextField(_("traceback"), default="", blank=True)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ("id",)
        constraints = (
            models.CheckConstraint(
                name="django_jobs_attempt_outcome", condition=models.Q(outcome__in=AttemptOutcome.values)
            ),
        )

    def __str__(self) -> str:
        return f"{self.job_id} #{self.number}: {self.outcome}"
