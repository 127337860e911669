"""System checks: what would bite later is named by `manage.py check`, each with its mend."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.db import router

from django_jobs.conf import NAME, parse

_IDS = {"shape": "django_jobs.E001", "key": "django_jobs.E002", "value": "django_jobs.E003"}


@register("django_jobs")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report every problem of the DJANGO_JOBS setting: E001 no dict, E002 unknown key, E003 wrong value."""
    _, problems = parse(getattr(settings, NAME, {}))
    return [Error(problem.message, hint=problem.hint, id=_IDS[problem.kind]) for problem in problems]


@register("django_jobs")
def check_use_tz(**kwargs: Any) -> list[CheckMessage]:
    """Report E004 when USE_TZ is off: a naive time is ambiguous one hour a year."""
    if settings.USE_TZ:
        return []
    hint = "Set USE_TZ = True; TIME_ZONE may be any zone."
    return [Error("django_jobs needs aware datetimes, and USE_TZ is False.", hint=hint, id="django_jobs.E004")]


@register("django_jobs")
def check_database_time_zone(**kwargs: Any) -> list[CheckMessage]:
    """Report E005 when the jobs database keeps local times: its clock, which decides what is due, is asked in UTC."""
    alias = router.db_for_write(apps.get_model("django_jobs", "Job"))
    zone = settings.DATABASES[alias].get("TIME_ZONE")
    if zone in (None, "UTC"):
        return []
    message = f"The jobs are in the database {alias!r}, which has TIME_ZONE {zone!r}; django_jobs needs UTC."
    hint = f"Remove TIME_ZONE from DATABASES[{alias!r}], or route django_jobs to another database."
    return [Error(message, hint=hint, id="django_jobs.E005")]
