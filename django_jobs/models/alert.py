"""What operators were told: one row for each cause, which says who is about to tell it and when that was done."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField, ExactTextField, MomentField
from .managers import JobsManager


class Alert(models.Model):
    """The last time that something was told. Times are the database's; the rows are forgotten after a month."""

    key = ExactCharField(_("key"), max_length=255, unique=True)  # such as `queue:mail`
    text = ExactTextField(_("text"), default="")
    claimed_at = MomentField(_("claimed at"), null=True)  # by the process that sends it now
    told_at = MomentField(_("told at"), null=True)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ("view",)
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        ordering = ("-told_at", "key")
        permissions = (("send_test_alert", _("Can send test alerts")),)

    def __str__(self) -> str:
        return str(self.key)
