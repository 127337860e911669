"""The operator's ticket for a job that ended badly for a cause of its own."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_jobs.db.connections import database_of, jobs_alias

from .fields import ExactCharField, ExactTextField, MomentField
from .indexes import HotIndex
from .job import Job
from .managers import JobsManager


class DeadLetterReason(models.TextChoices):
    """Why the job was given up."""

    RETRIES_EXHAUSTED = "retries exhausted", _("retries exhausted")
    CRASH_LOOP = "crash loop", _("crash loop")
    NO_HANDLER = "no handler", _("no handler")
    BAD_PAYLOAD = "bad payload", _("bad payload")
    BAD_RESULT = "bad result", _("bad result")
    FAILED_BY_HANDLER = "failed by handler", _("failed by handler")
    TIMEOUT = "timeout", _("timeout")
    STEP_MISMATCH = "step mismatch", _("step mismatch")


class DeadLetterQuerySet(models.QuerySet["DeadLetter"]):
    """Questions about dead letters; none of these changes a row."""

    def open(self) -> DeadLetterQuerySet:
        """Keep the dead letters that nobody has acknowledged or replayed."""
        return self.filter(acknowledged_at__isnull=True, replayed_at__isnull=True)

    def acknowledged(self) -> DeadLetterQuerySet:
        """Keep the dead letters that an operator closed."""
        return self.filter(acknowledged_at__isnull=False)

    def replayed(self) -> DeadLetterQuerySet:
        """Keep the dead letters whose job was run again."""
        return self.filter(replayed_at__isnull=False)


class DeadLetter(models.Model):
    """One death of one job. Kept until it is acknowledged or replayed; a job that dies again gets a new one."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="dead_letters", verbose_name=_("job"))
    # The job's: with a join, the dead letters of one type would read the row of each job.
    job_type = ExactCharField(_("job type"), max_length=200, default="")
    reason = ExactCharField(_("reason"), max_length=20, choices=DeadLetterReason)
    error = ExactTextField(_("error"), default="", blank=True)
    traceback = ExactTextField(_("traceback"), default="", blank=True)
    fingerprint = ExactCharField(_("fingerprint"), max_length=64, default="", db_index=True)
    release = ExactCharField(_("release"), max_length=64, default="", blank=True)  # of the code that ran last
    died_at = MomentField(_("died at"), db_index=True)
    acknowledged_at = MomentField(_("acknowledged at"), null=True, blank=True)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("acknowledged by"),
    )
    note = ExactTextField(_("note"), default="", blank=True)
    replayed_at = MomentField(_("replayed at"), null=True, blank=True)
    replayed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("replayed by"),
    )

    objects = JobsManager.from_queryset(DeadLetterQuerySet)()

    class Meta:
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        base_manager_name = "objects"
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
                name="django_jobs_deadletter_open",
                fields=["died_at", "fingerprint", "id"],
                where=Q(acknowledged_at=None, replayed_at=None),
                full_fields=["acknowledged_at", "replayed_at", "died_at", "fingerprint"],
            ),
        )

    def __str__(self) -> str:
        return f"{self.job_id}: {self.reason}"

    @property
    def is_open(self) -> bool:
        """Whether it still waits for an operator."""
        return self.acknowledged_at is None and self.replayed_at is None

    # The moves. Each raises InvalidJob when the dead letter is closed already, and changes nothing then.

    def acknowledge(self, by: Any = None, note: str = "") -> None:
        """Close the dead letter with a note; its job stays as it is."""
        from django_jobs.lifecycle.acknowledge import acknowledge

        with database_of(self):
            acknowledge([self.pk], by=by, note=note).raise_if_left()
            self.refresh_from_db(using=jobs_alias())

    def replay(self, by: Any = None, *, from_start: bool = False) -> None:
        """Run the dead letter's job again, behind its recorded steps or from the start, and close the dead letter."""
        from django_jobs.lifecycle.replay import replay_dead_letters

        with database_of(self):
            replay_dead_letters([self.pk], by=by, from_start=from_start).raise_if_left()
            self.refresh_from_db(using=jobs_alias())

    async def aacknowledge(self, by: Any = None, note: str = "") -> None:
        """Close the dead letter from async code; see `acknowledge`."""
        await sync_to_async(self.acknowledge)(by, note)

    async def areplay(self, by: Any = None, *, from_start: bool = False) -> None:
        """Replay the job from async code; see `replay`."""
        await sync_to_async(self.replay)(by, from_start=from_start)
