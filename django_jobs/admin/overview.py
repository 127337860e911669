"""The overview: what is wrong, in ten seconds. Figures of queues, workers, schedules and dead letters on one page."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_jobs.lifecycle import figures as ask
from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import DeadLetter, Job, Overview, Schedule, WorkerProcess

from .base import ConsoleAdmin
from .charts import bars_of, chart
from .letter_groups import find_groups
from .paging import REFRESH_SECONDS, capped_count, count_text
from .widgets import lasted

LATE = timedelta(minutes=1)  # a schedule, or a due job that nobody promoted
LONG_WAIT = 300.0  # seconds that a ready job may wait before the overview calls it a problem
CAUSES = 5


@admin.register(Overview)
class OverviewAdmin(ConsoleAdmin):
    """One page; there is nothing to list."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow whoever may view jobs."""
        return self.may(request, "view_job")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the overview."""
        self.require(request, "view_job")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        context = {**self._context(request), "refresh": REFRESH_SECONDS}
        return self.page(request, "admin/django_jobs/overview.html", _("Overview"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        """Go to the overview: it has no rows of its own."""
        return self.not_found(request, object_id)

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        now = database_now()
        queues = ask.queue_figures()
        floor = ask.window_floor()
        ask.add_times(queues, floor)
        newest = ask.newest_figures(now, floor)
        workers = list(WorkerProcess.objects.values_list("lease_expires_at", "threads", "stopping_at")[:1_000])
        alive = [row for row in workers if row[0] and row[0] > now]
        letters = capped_count(DeadLetter.objects.open())
        overdue = Job.objects.filter(status="scheduled", available_at__lt=now - LATE)
        late = list(
            Schedule.objects.filter(enabled=True, next_run_at__lt=now - LATE).values_list("name", flat=True)[:100]
        )
        waits = [value for one in queues.values() for value in one.waits]
        runs = [value for one in queues.values() for value in one.runs]
        state = {
            "ready": sum(one.ready for one in queues.values()),
            "ready_text": _summed([one.ready for one in queues.values()]),
            "running": sum(one.running for one in queues.values()),
            "scheduled": capped_count(Job.objects.filter(status="scheduled")),
            "overdue": capped_count(overdue),
            "letters": letters,
            "alive": len(alive),
            "processes": len(workers),
            "threads": sum(row[1] for row in alive),
            "late": list(late[:100]),
        }
        return {
            "now": now,
            "state": state,
            "figures": self._cards(state, waits, runs),
            "problems": _problems(queues, state, now),
            "queues": [queue_row(queues[name], now) for name in sorted(queues)],
            "hour": chart(bars_of(newest.minutes, now, 60, timedelta(minutes=1)), _("Last hour")),
            "day": chart(bars_of(newest.minutes, now, 48, timedelta(minutes=30)), _("Last 24 hours")),
            "since": newest.since if newest.since and newest.since > now - timedelta(days=1) else None,
            "window": count_text(ask.WINDOW, ask.WINDOW),
            "causes": self._causes(request, now),
            "groups_url": self._url("django_jobs_deadletter_groups"),
            "jobs_url": self.list_url("job"),
            "switch_url": self._url("django_jobs_queue_switch"),
            "may_pause": self.may(request, "pause_queue"),
        }

    def _url(self, name: str) -> str:
        return reverse(f"{self.admin_site.name}:{name}")

    def _cards(self, state: dict[str, Any], waits: list[float], runs: list[float]) -> list[dict[str, Any]]:
        def card(label: str, value: Any, url: str = "", note: str = "", alarm: bool = False) -> dict[str, Any]:
            return {"label": label, "value": value, "url": url, "note": note, "alarm": alarm}

        jobs = self.list_url("job")
        idle = state["ready"] or state["running"]
        overdue = _("%(count)s overdue") % {"count": count_text(state["overdue"])} if state["overdue"] else ""
        return [
            card(_("open dead letters"), count_text(state["letters"]), self._url("django_jobs_deadletter_groups"),
                 alarm=bool(state["letters"])),
            card(_("ready"), state["ready_text"], f"{jobs}?status=pending"),
            card(_("running"), state["running"], f"{jobs}?status=running"),
            card(_("scheduled"), count_text(state["scheduled"]), f"{jobs}?status=scheduled", overdue),
            card(_("worker processes alive"), state["alive"], self.list_url("workerprocess"),
                 ngettext("%(count)s thread", "%(count)s threads", state["threads"]) % {"count": state["threads"]},
                 alarm=bool(idle and not state["alive"])),
            card(_("late schedules"), len(state["late"]), self.list_url("schedule"), alarm=bool(state["late"])),
            card(_("wait, p50"), lasted(ask.percentile(waits, 50)),
                 note=_("p95 %(span)s") % {"span": lasted(ask.percentile(waits, 95))}),
            card(_("run, p50"), lasted(ask.percentile(runs, 50)),
                 note=_("p95 %(span)s") % {"span": lasted(ask.percentile(runs, 95))}),
        ]  # fmt: skip

    def _causes(self, request: HttpRequest, now: datetime) -> list[Any]:
        if not self.may(request, "view_deadletter"):
            return []
        return find_groups(now - timedelta(days=1), {"age": "24h"})[:CAUSES]


def _summed(numbers: list[int]) -> str:
    """Write the sum of counts of which some may have stopped at the cap."""
    total = sum(min(number, ask.MOST_COUNTED) for number in numbers)
    return count_text(total, total) + ("+" if max(numbers, default=0) > ask.MOST_COUNTED else "")


def _problems(queues: dict[str, ask.QueueFigures], state: dict[str, Any], now: datetime) -> list[str]:
    """Say in sentences what needs an operator."""
    problems = []
    if (state["ready"] or state["overdue"]) and not state["alive"]:
        problems.append(_("Jobs are waiting and no worker process is alive. Start one with “manage.py runworkers”."))
    for one in queues.values():
        wait = (now - one.oldest).total_seconds() if one.oldest else 0.0
        if one.paused_at and one.ready:
            text = _("Queue %(name)s is paused, with %(count)s jobs ready.")
            problems.append(text % {"name": one.name, "count": count_text(one.ready)})
        elif wait > LONG_WAIT and state["alive"]:
            text = _("A job has been ready in queue %(name)s for %(span)s.")
            problems.append(text % {"name": one.name, "span": lasted(wait)})
    if state["late"]:
        problems.append(_("Schedules are late: %(names)s.") % {"names": ", ".join(state["late"][:5])})
    return problems


def queue_row(one: ask.QueueFigures, now: datetime) -> dict[str, Any]:
    return {
        "name": one.name,
        "paused_at": one.paused_at,
        "ready": count_text(one.ready),
        "oldest": lasted((now - one.oldest).total_seconds()) if one.oldest else "",
        "running": one.running,
        "wait": f"{lasted(ask.percentile(one.waits, 50))} / {lasted(ask.percentile(one.waits, 95))}"
        if one.waits
        else "",
        "run": f"{lasted(ask.percentile(one.runs, 50))} / {lasted(ask.percentile(one.runs, 95))}" if one.runs else "",
    }
