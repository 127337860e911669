"""Template tags of the console: times as people read them."""

from __future__ import annotations

from datetime import datetime

from django import template

from django_jobs.admin import widgets

register = template.Library()


@register.simple_tag
def moment(when: datetime | None, now: datetime | None = None) -> str:
    """Show a time; with `now`, how long ago it was."""
    return widgets.moment(when, now)
