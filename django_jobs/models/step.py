"""One step of a job that is a workflow: what it was, and what it gave, so that no later run does it again."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, MomentField, StrictJSONField
from .indexes import HotIndex
from .job import Job
from .managers import JobsManager


class StepKind(models.TextChoices):
    """What a handler asked its context for."""

    STEP = "step", _("step")
    ITERATE = "iterate", _("iterate")
    SLEEP = "sleep", _("sleep")
    EVENT = "event", _("event")
    CHILDREN = "children", _("children")


class JobStep(models.Model):
    """The record of a step that is done, of a loop with its cursor, or of a wait. Times are the database's.

    A step of kind `step` has a record once it is done; the others have one while they go on, without `ended_at`.
    """

    # Without a constraint in the database: a record reads the job's row anyway, and each prune of a job would look here.
    job = models.ForeignKey(
        Job,
        on_delete=models.CASCADE,
        related_name="steps",
        verbose_name=_("job"),
        db_constraint=False,
        db_index=False,
    )
    position = models.PositiveIntegerField(_("position"))
    name = ExactCharField(_("name"), max_length=220)
    kind = ExactCharField(_("kind"), max_length=10, choices=StepKind)
    # Of a loop the cursor, of an event its payload; None when the wait for it timed out. Of children a list of their results,
    # or an object that says how their batch has ended, until these are read.
    result = StrictJSONField(_("result"), null=True, blank=True)
    started_at = MomentField(_("started at"))
    ended_at = MomentField(_("ended at"), null=True, blank=True)
    # When a sleep or the wait for an event is over.
    due_at = MomentField(_("due at"), null=True, blank=True)
    event_name = ExactCharField(_("event"), max_length=200, null=True, blank=True)
    event_key = ExactCharField(_("key"), max_length=200, null=True, blank=True)
    # No foreign key: events are pruned before the jobs that they have woken.
    event_id = models.BigIntegerField(_("number of the event"), null=True, blank=True)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("step")
        verbose_name_plural = _("steps")
        ordering = ("job", "position")
        constraints = (
            models.UniqueConstraint(name="django_jobs_step_position", fields=["job", "position"]),
            models.CheckConstraint(name="django_jobs_step_kind", condition=Q(kind__in=StepKind.values)),
        )
        indexes = (
            HotIndex(
                name="django_jobs_step_waits",
                fields=["event_name", "event_key"],
                where=Q(ended_at=None, event_name__isnull=False),
                full_fields=["event_name", "event_key", "ended_at"],
            ),
        )

    def __str__(self) -> str:
        return f"{self.job_id} {self.position}: {self.name}"

    @property
    def state(self) -> str:
        """Where it stands, in a word: done, open (a loop), waiting, timed out, or failed (children)."""
        if self.ended_at is None:
            return "open" if self.kind == StepKind.ITERATE else "waiting"
        if self.kind == StepKind.CHILDREN and isinstance(self.result, dict) and "failed" in self.result:
            return "failed"
        return "timed out" if self.kind == StepKind.EVENT and self.result is None else "done"
