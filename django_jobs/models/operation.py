"""An operation: what an operator asked for on many rows, and how far the workers have come with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .fields import DbNow, ExactCharField, ExactTextField, MomentField, StrictJSONField
from .indexes import HotIndex
from .managers import JobsManager


class OperationKind(models.TextChoices):
    """The move that is made on each of the rows."""

    REPLAY = "replay", _("replay jobs")
    RUN_NOW = "run now", _("run jobs now")
    CANCEL = "cancel", _("cancel jobs")
    CHANGE = "change", _("change priority or queue")
    DELETE = "delete", _("delete finished jobs")
    DISCARD = "discard", _("discard waiting jobs")
    REPLAY_DEAD_LETTERS = "replay dead letters", _("replay dead letters")
    ACKNOWLEDGE = "acknowledge", _("acknowledge dead letters")


class OperationState(models.TextChoices):
    """How an operation stands. Those that ended stay as they are."""

    RUNNING = "running", _("running")
    PAUSED = "paused", _("paused")
    FINISHED = "finished", _("finished")
    STOPPED = "stopped", _("stopped")
    FAILED = "failed", _("failed")


class OperationQuerySet(models.QuerySet["Operation"]):
    """Questions about operations."""

    def running(self) -> OperationQuerySet:
        """Keep the operations that workers move forward."""
        return self.filter(next_at__isnull=False)

    def due(self) -> OperationQuerySet:
        """Keep the operations whose next step is due."""
        return self.filter(next_at__lt=DbNow() + timedelta(milliseconds=1))  # SQLite's clock has no finer step


class Operation(models.Model):
    """Many rows and one move, made a step at a time by any worker; changed by `lifecycle/operations.py` only.

    The rows are those of `ids`, or those that `filters` let through. `cursor` is the key of the last one that was treated. A step
    and its place are written in one transaction: a killed worker leaves nothing half done and nothing to be done twice.
    """

    kind = ExactCharField(_("kind"), max_length=20, choices=OperationKind)
    state = ExactCharField(_("state"), max_length=8, choices=OperationState, default=OperationState.RUNNING)
    filters = StrictJSONField(_("filters"), default=dict)
    ids = StrictJSONField(_("ids"), null=True)
    options = StrictJSONField(_("options"), default=dict)
    per_second = models.FloatField(_("per second"), null=True)  # None: as fast as one worker can
    address = ExactTextField(_("filter of the list"), default="", blank=True)  # its query, for a link to it
    total = models.PositiveBigIntegerField(_("rows"), default=0)  # as counted at the beginning
    done = models.PositiveBigIntegerField(_("done"), default=0)
    skipped = models.PositiveBigIntegerField(_("left as they were"), default=0)
    cursor = ExactCharField(_("cursor"), max_length=64, default="", blank=True)
    error = ExactTextField(_("error"), default="", blank=True)
    created_at = MomentField(_("created at"))
    started_at = MomentField(_("started at"), null=True, blank=True)
    ended_at = MomentField(_("ended at"), null=True, blank=True)
    next_at = MomentField(_("next step at"), null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("by"),
    )

    objects = JobsManager.from_queryset(OperationQuerySet)()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()  # who may view jobs may view these; what it takes to begin one, it takes to stop it
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(name="django_jobs_operation_kind", condition=Q(kind__in=OperationKind.values)),
            models.CheckConstraint(
                name="django_jobs_operation_state",
                condition=Q(state="running", next_at__isnull=False)
                | Q(state__in=["paused", "finished", "stopped", "failed"], next_at=None),
            ),
            # Each step adds to them.
            models.CheckConstraint(
                name="django_jobs_operation_numbers", condition=Q(done__lte=2**62, skipped__lte=2**62, total__lte=2**62)
            ),
        )
        indexes = (
            HotIndex(
                name="django_jobs_operation_next",
                fields=["next_at"],
                where=Q(next_at__isnull=False),
                full_fields=["next_at"],
            ),
        )

    def __str__(self) -> str:
        return f"#{self.pk} {self.get_kind_display()}"

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will be done."""
        return self.ended_at is not None

    @property
    def progress(self) -> float:
        """The part of the rows that was treated, from 0 to 1; rows that came or went meanwhile make it a little wrong."""
        if self.state == OperationState.FINISHED:
            return 1.0
        return min(1.0, (self.done + self.skipped) / self.total) if self.total else 0.0

    # The moves. Each raises InvalidJob when the operation's state does not allow it, and changes nothing then.

    def pause(self) -> None:
        """Let no further step be made until `resume`."""
        from django_jobs.lifecycle.operations import pause

        self._move(pause)

    def resume(self) -> None:
        """Go on behind the last row that was treated."""
        from django_jobs.lifecycle.operations import resume

        self._move(resume)

    def stop(self) -> None:
        """End it; what was done stays done."""
        from django_jobs.lifecycle.operations import stop

        self._move(stop)

    async def apause(self) -> None:
        """Pause from async code; see `pause`."""
        await sync_to_async(self.pause)()

    async def aresume(self) -> None:
        """Resume from async code; see `resume`."""
        await sync_to_async(self.resume)()

    async def astop(self) -> None:
        """Stop from async code; see `stop`."""
        await sync_to_async(self.stop)()

    def _move(self, move: Any) -> None:
        from django_jobs.db.connections import database_of, jobs_alias

        with database_of(self):
            move(self.pk)
            self.refresh_from_db(using=jobs_alias())
