"""The first page of the admin's section: a proxy, because the admin lists nothing but models."""

from __future__ import annotations

from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from .job import Job


class Overview(Job):
    """All jobs at a glance. Whoever may view jobs may see it."""

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = _("overview")
        # The admin sorts the models of a section by this name: the blank, which HTML does not show, puts it first.
        verbose_name_plural = format_lazy(" {}", _("Overview"))
