"""Template tags of the console."""

from __future__ import annotations

from django import template

from django_jobs.admin.widgets import moment

register = template.Library()
register.simple_tag(moment)
