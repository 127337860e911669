"""A schedule, which submits a job once or again and again, and the ticks that it has made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_jobs.conf import this_site
from django_jobs.exceptions import InvalidJob, NoTimeZoneData
from django_jobs.handlers import Registry, registry
from django_jobs.rules import check, one_of
from django_jobs.scheduling.cron import UTC_NAMES, has_zone_data, zone_of
from django_jobs.scheduling.spec import OWN_OPTIONS, SUBMIT_OPTIONS, Spec, Timing, check_schedule

from .fields import DbNow, ExactCharField, ExactTextField, MomentField, PayloadField, StrictJSONField
from .indexes import HotIndex
from .job import Job
from .managers import JobsManager


class ScheduleKind(models.TextChoices):
    """How a schedule's next tick is found."""

    ONCE = "once", _("once")
    INTERVAL = "interval", _("interval")
    CRON = "cron", _("cron")


class CatchUp(models.TextChoices):
    """Which jobs are submitted for ticks that were missed, because no worker ran."""

    LATEST = "latest", _("the latest one")
    SKIP = "skip", _("none")
    ALL = "all", _("all of them")


class Overlap(models.TextChoices):
    """What a tick does while the job of the last tick is not finished."""

    ALLOW = "allow", _("submit another")
    SKIP = "skip", _("skip the tick")


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    """The queries about schedules."""

    def due(self) -> ScheduleQuerySet:
        """Keep the enabled schedules whose next tick is due by the database's clock."""
        return self.known_here().filter(enabled=True, next_run_at__lte=DbNow())

    def declared_here(self) -> ScheduleQuerySet:
        """Keep the schedules that the code of this site declares, or once did."""
        return self.filter(declared=True, site=this_site())

    def not_declared_elsewhere(self) -> ScheduleQuerySet:
        """Keep the schedules of this site's code, and those that were made at run time."""
        return self.exclude(~Q(site=this_site()), declared=True)

    def declared_elsewhere(self) -> ScheduleQuerySet:
        """Keep the schedules that the code of another site declares, or once did."""
        return self.filter(declared=True).exclude(site=this_site())

    def known_here(self) -> ScheduleQuerySet:
        """Keep the schedules whose ticks this host can find; the others are left to hosts that have time zone data."""
        return self if has_zone_data() else self.filter(~Q(kind=ScheduleKind.CRON) | Q(timezone__in=UTC_NAMES))


class Schedule(models.Model):
    """Submit `job_type` once, at an interval or by a cron expression; one tick makes exactly one job."""

    name = ExactCharField(_("name"), max_length=200, unique=True)
    job_type = ExactCharField(_("job type"), max_length=200)
    payload = PayloadField(_("payload"), default=dict, blank=True)
    kind = ExactCharField(_("kind"), max_length=8, choices=ScheduleKind)
    run_at = MomentField(_("run at"), null=True, blank=True)
    interval_seconds = models.FloatField(_("interval in seconds"), null=True, blank=True)
    cron = ExactCharField(_("cron expression"), max_length=100, default="", blank=True)
    timezone = models.CharField(_("time zone"), max_length=64, default="UTC")
    queue = ExactCharField(_("queue"), max_length=64, default="", blank=True)
    priority = models.PositiveSmallIntegerField(_("priority"), null=True, blank=True)
    max_retries = models.PositiveIntegerField(_("retries allowed"), null=True, blank=True)
    timeout_seconds = models.FloatField(_("timeout in seconds"), null=True, blank=True)
    metadata = StrictJSONField(_("metadata"), default=dict, blank=True)
    limit_key = ExactCharField(_("limit key"), max_length=200, null=True, blank=True)
    fair_key = ExactCharField(_("fair key"), max_length=200, null=True, blank=True)
    catch_up = ExactCharField(_("catch up"), max_length=6, choices=CatchUp, default=CatchUp.LATEST)
    grace_seconds = models.FloatField(_("catch-up grace in seconds"), null=True, blank=True)
    overlap = ExactCharField(_("overlap"), max_length=5, choices=Overlap, default=Overlap.ALLOW)
    jitter_seconds = models.FloatField(_("jitter in seconds"), default=0.0)
    enabled = models.BooleanField(_("enabled"), default=True)
    declared = models.BooleanField(_("declared in code"), default=False, editable=False)
    site = ExactCharField(_("declared by the site"), max_length=64, default="", blank=True, editable=False)
    next_run_at = MomentField(_("next tick"), null=True, blank=True)
    last_run_at = MomentField(_("last tick"), null=True, blank=True, editable=False)
    last_error = ExactTextField(_("last error"), default="", blank=True, editable=False)
    created_at = MomentField(_("created at"), auto_now_add=True)
    updated_at = MomentField(_("updated at"), auto_now=True)

    objects = JobsManager.from_queryset(ScheduleQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        ordering = ("name",)
        permissions = (("run_schedule", _("Can run schedules now")),)
        constraints = (
            models.CheckConstraint(name="django_jobs_schedule_kind", condition=Q(kind__in=ScheduleKind.values)),
            models.CheckConstraint(name="django_jobs_schedule_catch_up", condition=Q(catch_up__in=CatchUp.values)),
            models.CheckConstraint(name="django_jobs_schedule_overlap", condition=Q(overlap__in=Overlap.values)),
        )
        indexes = (
            HotIndex(
                name="django_jobs_schedule_due",
                fields=["next_run_at"],
                where=Q(enabled=True),
                full_fields=["enabled", "next_run_at"],
            ),
        )

    def __str__(self) -> str:
        return str(self.name)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row; after a change of its timing, or when it was enabled, with a new next tick."""
        if kwargs.get("update_fields") is None:
            self._find_next_tick()
        super().save(*args, **kwargs)
        self._saved = self._plan()

    def clean(self) -> None:
        """Raise ValidationError with every problem that `scheduling.store.create_schedule` would name."""
        try:
            self.checked(registry)
            if self.kind == ScheduleKind.CRON:
                zone_of(self.timezone)
        except InvalidJob as error:
            raise ValidationError(list(error.problems)) from None

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Schedule:
        row = super().from_db(*args, **kwargs)
        if not row.get_deferred_fields():
            row._saved = row._plan()
        return row

    @property
    def timing(self) -> Timing:
        """The columns that say when it ticks, unchecked."""
        return Timing(**{field.name: getattr(self, field.name) for field in fields(Timing)})

    def checked(self, handlers: Registry | None = None) -> Spec:
        """Return the row as a checked schedule; raise InvalidJob with every problem.

        Args:
            handlers: those among which the job type must be; None: its handler may be in another process.
        """
        check("kind", self.kind, one_of(*ScheduleKind.values))
        by_kind = {
            ScheduleKind.CRON: {"cron": self.cron},
            ScheduleKind.INTERVAL: {"every": 0 if self.interval_seconds is None else self.interval_seconds},
            ScheduleKind.ONCE: {"at": self.run_at},
        }
        options = {name: getattr(self, name) for name in (*SUBMIT_OPTIONS, *OWN_OPTIONS)}
        return check_schedule(
            self.name,
            self.job_type,
            timezone=self.timezone,
            payload=self.payload,
            handlers=handlers,
            **by_kind[ScheduleKind(self.kind)],
            **options | {"queue": self.queue or None},
        )

    def take_progress_of(self, row: Schedule) -> None:
        """Go on from where a newer reading of the same row stands: a tick may have come while this one was edited."""
        self.next_run_at, self.last_run_at, self._saved = row.next_run_at, row.last_run_at, row._plan()

    def _plan(self) -> tuple[Any, ...]:
        return (self.timing, self.enabled, self.next_run_at)

    def _find_next_tick(self) -> None:
        """Set `next_run_at` after a change in the admin or a shell, unless it was itself changed.

        The host's clock is good enough: it only chooses the first tick, which then waits for the database's clock.
        """
        timing, enabled, next_run_at = getattr(self, "_saved", (None, False, None))
        if not self.enabled:
            self.next_run_at = None
        elif self.next_run_at is None or (self.next_run_at == next_run_at and (not enabled or self.timing != timing)):
            now = timezone.now()
            try:
                self.next_run_at = self.checked().timing.first(now)
            except NoTimeZoneData:
                raise
            except InvalidJob:
                # Its tick disables it with the reason: at once, also on SQLite, whose clock counts milliseconds.
                self.next_run_at = now.replace(microsecond=now.microsecond // 1000 * 1000)


class ScheduleTick(models.Model):
    """A tick that was made; the unique pair lets it be made only once."""

    schedule = models.ForeignKey(Schedule, on_delete=models.CASCADE, related_name="ticks", verbose_name=_("schedule"))
    due_at = MomentField(_("due at"))
    job = models.ForeignKey(Job, on_delete=models.SET_NULL, null=True, related_name="+", verbose_name=_("job"))

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("schedule tick")
        verbose_name_plural = _("schedule ticks")
        constraints = (models.UniqueConstraint(fields=("schedule", "due_at"), name="django_jobs_tick_once"),)

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.due_at:%Y-%m-%d %H:%M:%S}"
