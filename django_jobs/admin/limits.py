"""Limits: how many jobs run under each and how many wait, and the form that sets one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from django_jobs import stats
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.limits import KEEP, Keep, reset_limit, set_limit
from django_jobs.models import Limit

from .operations import OperatingAdmin
from .paging import REFRESH_SECONDS

MOST_ROWS = 200


@admin.register(Limit)
class LimitAdmin(OperatingAdmin):
    """One page with every limit: its numbers, and the values of its key under which jobs run or wait."""

    def get_urls(self) -> list[Any]:
        switch = self.admin_site.admin_view(self.set_view)
        return [path("set/", switch, name="django_jobs_limit_set"), *super().get_urls()]

    @method_decorator(require_safe)
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self.require(request, "view_limit")
        found = stats.limit_stats()
        context = {
            "limits": sorted(found, key=lambda one: -one.waiting)[:MOST_ROWS],
            "left_out": max(0, len(found) - MOST_ROWS),
            "queues_with_keys": stats.key_stats()[:MOST_ROWS],
            "may_set": self.may(request, "change_limit"),
            "set_url": self.url("limit_set"),
            "refresh": REFRESH_SECONDS,
        }
        return self.page(request, "limits.html", _("Limits"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        self.require(request, "view_limit")
        return HttpResponseRedirect(self.list_url("limit"))

    @method_decorator(require_POST)
    def set_view(self, request: HttpRequest) -> HttpResponse:
        """Set or reset a limit: POST `limit`, and `concurrency` and `rate` (empty: any number; missing: as it is) or `reset`."""
        self.require(request, "change_limit")
        name = request.POST.get("limit", "")
        try:
            if "reset" in request.POST:
                reset_limit(name)
                text = _("Reset limit %(name)s to what the code says.")
            else:
                set_limit(name, concurrency=_concurrency(request), rate=_rate(request))
                text = _("Set limit %(name)s; it holds within seconds.")
        except InvalidJob as error:
            messages.error(request, str(error))
        else:
            message = text % {"name": name}
            messages.success(request, message)
            self.write_log(request, [(name, name)], message)
        return HttpResponseRedirect(self.list_url("limit"))


def _concurrency(request: HttpRequest) -> int | Keep | None:
    given = request.POST.get("concurrency")
    if given is None:
        return KEEP
    text = given.strip()
    if text and not (text.isascii() and text.isdecimal()):
        raise InvalidJob(_("Give a number of jobs, or nothing for any number."))
    return int(text) if text else None


def _rate(request: HttpRequest) -> str | Keep | None:
    given = request.POST.get("rate")
    return KEEP if given is None else given.strip() or None
