"""Queues: what waits and runs in each, and the switch that pauses it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from django_jobs import stats
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.models import Queue
from django_jobs.names import queue_problem

from .base import ConsoleAdmin
from .filters import queue_names
from .operations import OperatingAdmin
from .paging import REFRESH_SECONDS, count_text
from .widgets import duration


@admin.register(Queue)
class QueueAdmin(OperatingAdmin):
    """One page with every known queue, whether it has a row or not."""

    def get_urls(self) -> list[Any]:
        switch = self.admin_site.admin_view(self.switch_view)
        return [path("switch/", switch, name="django_jobs_queue_switch"), *super().get_urls()]

    @method_decorator(require_safe)
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self.require(request, "view_queue")
        queues = stats.queue_stats(queue_names(request))
        stats.add_times(queues, stats.newest_runs(stats.window_floor(stats.SHORT_WINDOW), limit=stats.SAMPLE))
        context = {**queue_table(self, request, queues, database_now()), "refresh": REFRESH_SECONDS}
        return self.page(request, "queues.html", _("Queues"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        self.require(request, "view_queue")
        return HttpResponseRedirect(self.list_url("queue"))

    @method_decorator(require_POST)
    def switch_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume a queue: POST `queue` and `switch` (pause or resume)."""
        self.require(request, "pause_queue")
        name, switch = request.POST.get("queue", ""), request.POST.get("switch", "")
        problem = queue_problem(name) if not Queue.objects.filter(pk=name.replace("\x00", "")).exists() else None
        if problem:
            messages.error(request, problem)
        elif switch == "pause":
            pause(name)
            text = _("Paused queue %(name)s: what runs goes on, nothing more is started.")
            self._done(request, name, text % {"name": name})
        elif switch == "resume":
            resume(name)
            self._done(request, name, _("Resumed queue %(name)s.") % {"name": name})
        back = "overview" if request.POST.get("back") == "overview" else "queue"
        return HttpResponseRedirect(self.list_url(back))

    def _done(self, request: HttpRequest, name: str, message: str) -> None:
        messages.success(request, message)
        self.write_log(request, [(name, name)], message)


def queue_table(
    page: ConsoleAdmin, request: HttpRequest, queues: dict[str, stats.QueueStats], now: datetime
) -> dict[str, Any]:
    """Return the context of `queue_table.html`."""
    return {
        "queues": [_row(queues[name], now) for name in sorted(queues)],
        "may_pause": page.may(request, "pause_queue"),
        "switch_url": page.url("queue_switch"),
        "jobs_url": page.list_url("job"),
    }


def _row(queue: stats.QueueStats, now: datetime) -> dict[str, Any]:
    return {
        "name": queue.name,
        "paused_at": queue.paused_at,
        "ready": count_text(queue.ready),
        "oldest": duration(queue.waited(now)) if queue.oldest else "",
        "running": queue.running,
        "wait": _percentiles(queue.waits),
        "run": _percentiles(queue.runs),
    }


def _percentiles(seconds: Sequence[float]) -> str:
    """Return p50 and p95 as text; empty without values."""
    return " / ".join(duration(stats.percentile(seconds, percent)) for percent in (50, 95)) if seconds else ""
