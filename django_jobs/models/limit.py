"""Limits as they are kept: their numbers, the slots of the jobs that run or wait under them, and the starts that rates count."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, MomentField
from .job import Job
from .managers import JobsManager

MAX_NAME = 210
MAX_SCOPE = 411  # a name, a blank and the value of a key


class LimitQuerySet(models.QuerySet["Limit"]):
    """Questions about limits."""

    def in_use(self) -> LimitQuerySet:
        """Keep the limits that the code declares."""
        return self.filter(declared=True)


class Limit(models.Model):
    """The numbers of one limit. Its name is "type:…", "queue:…" or, where the code names it, "name:…".

    Workers write the rows of the limits that their code declares; an operator's number wins until it is reset.
    """

    name = ExactCharField(_("name"), max_length=MAX_NAME, primary_key=True)
    key = ExactCharField(_("key"), max_length=200, default="", blank=True)
    concurrency = models.PositiveIntegerField(_("at once"), null=True, blank=True)
    rate = ExactCharField(_("rate"), max_length=24, null=True, blank=True)
    declared = models.BooleanField(_("declared in code"), default=True, editable=False)
    site = ExactCharField(_("declared by the site"), max_length=64, default="", blank=True, editable=False)
    set_at = MomentField(_("set by an operator at"), null=True, blank=True, editable=False)
    set_concurrency = models.PositiveIntegerField(_("at once, as an operator says"), null=True, blank=True)

    set_rate = ExactCharField(_("rate, as an operator says"), max_length=24, null=True, blank=True)

    objects = JobsManager.from_queryset(LimitQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("limit")
        verbose_name_plural = _("limits")
        ordering = ("name",)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def is_set(self) -> bool:
        """Whether an operator's numbers hold in place of the code's."""
        return self.set_at is not None

    @property
    def concurrency_now(self) -> int | None:
        """The number of jobs that may run at once, as an operator has set it or else the code; None: any number."""
        return self.set_concurrency if self.is_set else self.concurrency

    @property
    def rate_now(self) -> str | None:
        """How many may start in a time, such as "100/m", as an operator has set it or else the code; None: any number."""
        return self.set_rate if self.is_set else self.rate  # type: ignore[no-any-return]


class LimitSlot(models.Model):
    """A job in a scope, which is a limit for one value of its key: it holds a slot there while it runs, or waits for one.

    How many slots are taken is counted from the rows whose job runs, so a slot ends with the run, however that ends. A job that
    is held back has one row, which says where it waits. Jobs without a limit have none.
    """

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="slots")
    scope = ExactCharField(max_length=MAX_SCOPE)
    waits = models.BooleanField()
    # Whether a start is still to come that a rate counts. Until then the job counts as if it started this very moment.
    starts = models.BooleanField()
    # As in the job's row, for the order in which those that wait are let in.
    queue = ExactCharField(max_length=64)
    rank = models.SmallIntegerField()
    available_at = MomentField()
    # Its fair key; apart from that whether it has one, so that one look tells who waits without.
    keyed = models.BooleanField(default=False)
    fair_key = ExactCharField(max_length=200, default="")

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()
        constraints = (models.UniqueConstraint(name="django_jobs_limitslot_job", fields=["job", "scope"]),)
        indexes = (
            models.Index(
                name="django_jobs_limitslot_order",
                fields=["scope", "waits", "keyed", "queue", "rank", "fair_key", "available_at", "job"],
            ),
        )

    def __str__(self) -> str:
        return f"{self.scope}: {self.job_id}"


class LimitStart(models.Model):
    """A handler's start in a scope that has a rate. It outlives its job, which may be deleted while the start still counts."""

    scope = ExactCharField(max_length=MAX_SCOPE)
    run = ExactCharField(max_length=90)  # the job's id and its fence
    started_at = MomentField()  # the latest moment at which the handler can have begun
    expires_at = MomentField()

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()
        indexes = (
            models.Index(name="django_jobs_limitstart_window", fields=["scope", "started_at"]),
            models.Index(name="django_jobs_limitstart_expiry", fields=["expires_at"]),
        )

    def __str__(self) -> str:
        return f"{self.scope} at {self.started_at}"


class LimitTurn(models.Model):
    """When the first job that waits in a scope for its rate may start, at the earliest."""

    scope = ExactCharField(max_length=MAX_SCOPE, primary_key=True)
    due_at = MomentField()

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()
        indexes = (models.Index(name="django_jobs_limitturn_due", fields=["due_at"]),)

    def __str__(self) -> str:
        return f"{self.scope} at {self.due_at}"


class LimitLock(models.Model):
    """A row to lock: who has it decides who gets the slots of some scopes, where a database has no locks without rows."""

    id = models.SmallIntegerField(primary_key=True)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.id)
