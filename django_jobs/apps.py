"""The app's configuration: on start-up every installed app's `jobs` module is imported."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class DjangoJobsConfig(AppConfig):
    """Register handlers, checks and the log receivers."""

    name = "django_jobs"
    verbose_name = _("Background jobs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, logs  # noqa: F401  registering is what importing them does

        autodiscover_modules("jobs")
