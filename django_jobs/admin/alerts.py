"""Alerts: who is told, what was told last, and a button that sends a test."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from django_jobs.alerts.tell import tell_test
from django_jobs.conf import AlertSettings, get_settings
from django_jobs.db.transactions import database_now
from django_jobs.models import Alert

from .operations import OperatingAdmin
from .widgets import duration

MOST_ROWS = 200


@admin.register(Alert)
class AlertAdmin(OperatingAdmin):
    """One page with what was told in the last month."""

    def get_urls(self) -> list[Any]:
        test = self.admin_site.admin_view(self.test_view)
        return [path("test/", test, name="django_jobs_alert_test"), *super().get_urls()]

    @method_decorator(require_safe)
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self.require(request, "view_alert")
        alerts = get_settings().ALERTS
        context = {
            "told": Alert.objects.filter(told_at__isnull=False).order_by("-told_at", "key")[:MOST_ROWS],
            "now": database_now(),
            "is_set": alerts is not None,
            "ways": _ways(alerts) if alerts is not None else [],
            "queue_wait": duration(alerts.queue_wait) if alerts is not None and alerts.queue_wait else "",
            "may_test": alerts is not None and self.may(request, "send_test_alert"),
            "test_url": self.url("alert_test"),
        }
        return self.page(request, "alerts.html", _("Alerts"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        self.require(request, "view_alert")
        return HttpResponseRedirect(self.list_url("alert"))

    @method_decorator(require_POST)
    def test_view(self, request: HttpRequest) -> HttpResponse:
        """Send a test alert to all whom the setting names, and say what came of it."""
        self.require(request, "send_test_alert")
        alerts = get_settings().ALERTS
        if alerts is not None:
            for way, problem in tell_test(alerts).problems.items():
                if problem:
                    messages.error(request, _("Not sent by %(way)s: %(problem)s") % {"way": way, "problem": problem})
                else:
                    messages.success(request, _("Sent a test alert by %(way)s.") % {"way": way})
            self.write_log(request, [(None, _("test alert"))], _("Sent a test alert."))
        return HttpResponseRedirect(self.list_url("alert"))


def _ways(alerts: AlertSettings) -> list[str]:
    """Return whom alerts are sent to. The address of a webhook is a secret but for its host."""
    host = [str(urlsplit(alerts.webhook).hostname)] if alerts.webhook is not None else []
    return [*alerts.email, *host]
