"""The operator's ticket for a job that ended badly for a cause of its own."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .doors import DeadLetterDoors
from .fields import ExactCharField, ExactTextField
from .indexes import HotIndex
from .job import Job


class DeadLetterReason(models.TextChoices):
    """Why the job was given up."""

    RETRIES_EXHAUSTED = "retries exhausted", _("retries exhausted")
    CRASH_LOOP = "crash loop", _("crash loop")
    NO_HANDLER = "no handler", _("no handler")
    BAD_RESULT = "bad result", _("bad result")
    FAILED_BY_HANDLER = "failed by handler", _("failed by handler")
    TIMEOUT = "timeout", _("timeout")


class DeadLetterQuerySet(models.QuerySet["DeadLetter"]):
    """Questions about dead letters; none of these changes a row."""

    def open(self) -> DeadLetterQuerySet:
        """Keep the letters that nobody has acknowledged or replayed."""
        return self.filter(acknowledged_at__isnull=True, replayed_at__isnull=True)

    def acknowledged(self) -> DeadLetterQuerySet:
        """Keep the letters that an operator closed."""
        return self.filter(acknowledged_at__isnull=False)

    def replayed(self) -> DeadLetterQuerySet:
        """Keep the letters whose job was run again."""
        return self.filter(replayed_at__isnull=False)


class DeadLetter(DeadLetterDoors, models.Model):
    """One death of one job. Kept until it is acknowledged or replayed; a job that dies again gets a new letter."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="dead_letters", verbose_name=_("job"))
    reason = ExactCharField(_("reason"), max_length=20, choices=DeadLetterReason)
    error = ExactTextField(_("error"), default="", blank=True)
    traceback = ExactTextField(_("traceback"), default="", blank=True)
    fingerprint = ExactCharField(_("fingerprint"), max_length=64, default="", db_index=True)
    died_at = models.DateTimeField(_("died at"), db_index=True)
    acknowledged_at = models.DateTimeField(_("acknowledged at"), null=True, blank=True)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("acknowledged by"),
    )
    note = ExactTextField(_("note"), default="", blank=True)
    replayed_at = models.DateTimeField(_("replayed at"), null=True, blank=True)
    replayed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("replayed by"),
    )

    objects = DeadLetterQuerySet.as_manager()

    class Meta:
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        ordering = ("-id",)
        permissions = (
            ("replay_deadletter", _("Can replay dead letters")),
            ("acknowledge_deadletter", _("Can acknowledge dead letters")),
        )
        constraints = (
            models.CheckConstraint(
                name="django_jobs_deadletter_reason", condition=Q(reason__in=DeadLetterReason.values)
            ),
        )
        indexes = (
            HotIndex(
                name="django_jobs_letter_open",
                fields=["died_at", "fingerprint", "id"],
                where=Q(acknowledged_at=None, replayed_at=None),
                full_fields=["acknowledged_at", "replayed_at", "died_at", "fingerprint"],
            ),
        )

    def __str__(self) -> str:
        return f"{self.job_id}: {self.reason}"

    @property
    def is_open(self) -> bool:
        """Whether the letter still waits for an operator."""
        return self.acknowledged_at is None and self.replayed_at is None
