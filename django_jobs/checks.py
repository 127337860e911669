"""System checks: settings that would bite later are named by `manage.py check`, each with its mend."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from .conf import NAME, parse


@register("django_jobs")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Name every problem of the DJANGO_JOBS setting."""
    _, problems = parse(getattr(settings, NAME, {}))
    return [
        Error(problem, hint="See docs/reference/settings.md for every setting.", id="django_jobs.E001")
        for problem in problems
    ]


@register("django_jobs")
def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """Require aware datetimes kept in UTC: the database's clock decides what is due."""
    found: list[CheckMessage] = []
    if not settings.USE_TZ:
        found.append(Error("django_jobs needs USE_TZ = True.", hint="Set USE_TZ = True.", id="django_jobs.E002"))
    for alias, database in settings.DATABASES.items():
        if database.get("TIME_ZONE") not in (None, "UTC"):
            found.append(
                Error(
                    f"The database {alias!r} keeps its times in {database['TIME_ZONE']!r}.",
                    hint="Remove TIME_ZONE from the database, or keep the jobs in another one.",
                    id="django_jobs.E003",
                )
            )
    return found
