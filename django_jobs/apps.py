"""The app's configuration: on start-up every app's `jobs` module is imported, and its `tasks` where TASKS is ours."""

from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules, import_string
from django.utils.translation import gettext_lazy as _


class DjangoJobsConfig(AppConfig):
    """Register handlers, checks, the log receivers and what `migrate` has to do."""

    name = "django_jobs"
    verbose_name = _("Background jobs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_jobs import checks, shell  # noqa: F401  importing checks and logs registers them
        from django_jobs.monitoring import logs  # noqa: F401

        shell.follow_setting()
        if find_spec("opentelemetry") and find_spec("opentelemetry.trace"):
            from django_jobs.monitoring import tracing

            tracing.connect()
        autodiscover_modules("jobs")
        post_migrate.connect(_write_declared_schedules, sender=self)
        if _is_a_task_backend():
            from django_jobs.task_backend import receivers

            receivers.connect()
            autodiscover_modules("tasks")


def _write_declared_schedules(*, using: str, **kwargs: Any) -> None:
    """Write the schedules that the code declares, after each `migrate` of the jobs' database."""
    from django_jobs.scheduling.store import sync_after_migrate

    sync_after_migrate(using)


def _is_a_task_backend() -> bool:
    """Say whether TASKS names one of our backends; a site without one may have a `tasks.py` of another library."""
    backends = getattr(settings, "TASKS", None) or {}
    return any(_is_ours(str(backend.get("BACKEND", ""))) for backend in backends.values())


def _is_ours(path: str) -> bool:
    """Say whether a class is one of our backends, or a site's own that is made of one."""
    if path.startswith("django_jobs."):
        return True
    try:
        found = import_string(path)
    except ImportError:  # Django's own check says so
        return False
    return isinstance(found, type) and any(base.__module__.startswith("django_jobs.") for base in found.__mro__)
