"""Something that happened, for the jobs that wait for it now and for those that will ask for it later."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .fields import DbNow, ExactCharField, MomentField, StrictJSONField
from .indexes import HotIndex
from .managers import JobsManager


class EventQuerySet(models.QuerySet["Event"]):
    """Questions about events."""

    def called(self, name: str, key: str | None) -> EventQuerySet:
        """Keep the events of a name and key; those without a key when that is None."""
        return self.filter(name=name, key__isnull=True) if key is None else self.filter(name=name, key=key)

    def kept(self) -> EventQuerySet:
        """Keep the events that a job would still get that asks for them now."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=DbNow()))

    def undelivered(self) -> EventQuerySet:
        """Keep the events after whose commit nobody has looked for waiting jobs yet."""
        return self.filter(delivered_at=None)


class Event(models.Model):
    """One event. It is for everybody: nobody consumes it."""

    name = ExactCharField(_("name"), max_length=200)
    key = ExactCharField(_("key"), max_length=200, null=True, blank=True)
    payload = StrictJSONField(_("payload"), default=dict)
    created_at = MomentField(_("created at"))
    expires_at = MomentField(_("expires at"), null=True, blank=True)  # None: kept for ever
    delivered_at = MomentField(_("delivered at"), null=True, blank=True)

    objects = JobsManager.from_queryset(EventQuerySet)()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ("-id",)
        permissions = (("send_event", _("Can send events")),)
        indexes = (
            models.Index(name="django_jobs_event_called", fields=["name", "key", "id"]),
            models.Index(name="django_jobs_event_expires", fields=["expires_at"]),
            HotIndex(
                name="django_jobs_event_new",
                fields=["id"],
                where=Q(delivered_at=None),
                full_fields=["delivered_at", "id"],
            ),
        )

    def __str__(self) -> str:
        return self.name if self.key is None else f"{self.name} {self.key}"
