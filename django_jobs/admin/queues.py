"""Queues: what waits and runs in each, and the switch that pauses it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.translation import gettext as _

from django_jobs.lifecycle import figures as ask
from django_jobs.lifecycle import processes
from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import Queue
from django_jobs.names import queue_problem

from .filters import queue_names
from .operate import OperatingAdmin
from .overview import queue_row
from .paging import REFRESH_SECONDS


@admin.register(Queue)
class QueueAdmin(OperatingAdmin):
    """One page with every known queue, whether it has a row or not."""

    def get_urls(self) -> list[Any]:
        """Add the address that pauses and resumes."""
        view = self.admin_site.admin_view(self.switch_view)
        return [path("switch/", view, name="django_jobs_queue_switch"), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show all queues."""
        self.require(request, "view_queue")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        now = database_now()
        queues = ask.queue_figures(queue_names(request))
        ask.add_times(queues, ask.window_floor())
        context = {
            "now": now,
            "queues": [queue_row(queues[name], now) for name in sorted(queues)],
            "may_pause": self.may(request, "pause_queue"),
            "switch_url": reverse(f"{self.admin_site.name}:django_jobs_queue_switch"),
            "jobs_url": self.list_url("job"),
            "refresh": REFRESH_SECONDS,
        }
        return self.page(request, "admin/django_jobs/queues.html", _("Queues"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        """Go to the page of all queues."""
        self.require(request, "view_queue")
        return HttpResponseRedirect(self.list_url("queue"))

    def switch_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume a queue: POST `queue` and `switch` (pause or resume)."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self.require(request, "pause_queue")
        name, switch = request.POST.get("queue", ""), request.POST.get("switch", "")
        problem = queue_problem(name) if not Queue.objects.filter(pk=name.replace("\x00", "")).exists() else None
        if problem:
            messages.error(request, problem)
        elif switch == "pause":
            processes.pause(name)
            text = _("Paused queue %(name)s: what runs goes on, nothing more is started.")
            self._done(request, name, text % {"name": name})
        elif switch == "resume":
            processes.resume(name)
            self._done(request, name, _("Resumed queue %(name)s.") % {"name": name})
        back = "overview" if request.POST.get("back") == "overview" else "queue"
        return HttpResponseRedirect(self.list_url(back))

    def _done(self, request: HttpRequest, name: str, message: str) -> None:
        messages.success(request, message)
        self.write_log(request, [(name, name)], message)
