"""What operators keep about a cause of dead letters: a note, and until when it is muted."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import DbNow, ExactCharField, ExactTextField, MomentField
from .managers import JobsManager


class CauseQuerySet(models.QuerySet["Cause"]):
    """Questions about causes."""

    def muted(self) -> CauseQuerySet:
        """Keep the causes that are muted now, by the database's clock."""
        return self.filter(muted_until__gt=DbNow())

    def is_muted(self, fingerprint: str) -> bool:
        """Say whether nobody wants to hear of further dead letters of a cause for now."""
        return self.muted().filter(pk=fingerprint).exists()


class Cause(models.Model):
    """A fingerprint of dead letters that an operator has said something about; a cause without a row is as good as any.

    Muting hides nothing: a dead letter of a muted cause is written and stays open as any other. It raises no alarm and no alert.
    """

    fingerprint = ExactCharField(_("fingerprint"), primary_key=True, max_length=64)
    note = ExactTextField(_("note"), default="", blank=True)
    muted_until = MomentField(_("muted until"), null=True, blank=True)
    changed_at = MomentField(_("changed at"))
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("changed by"),
    )

    objects = JobsManager.from_queryset(CauseQuerySet)()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()  # who may view dead letters may view these, who may acknowledge them may change these
        verbose_name = _("cause")
        verbose_name_plural = _("causes")

    def __str__(self) -> str:
        return str(self.fingerprint)
