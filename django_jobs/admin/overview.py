"""The overview: queues, workers, schedules and dead letters on one page, and what needs an operator."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_safe

from django_jobs import stats
from django_jobs.db.transactions import database_now
from django_jobs.models import (
    Cause,
    DeadLetter,
    Job,
    JobStatus,
    LimitSlot,
    Operation,
    OperationState,
    Overview,
    Schedule,
    WorkerProcess,
)

from .acts import ActPages
from .causes import FoundCause, find_causes
from .charts import bars_of, chart
from .databases import database_table
from .paging import MOST_COUNTED, REFRESH_SECONDS, capped_count, count_text
from .problems import find_problems, of_operations
from .queues import queue_table
from .schedules import LATE
from .widgets import duration

MOST_CAUSES = 5
MOST_PROCESSES = 1_000
MOST_LATE = 100
MOST_MUTED = 1_000
MOST_OPERATIONS = 20


@admin.register(Overview)
class OverviewAdmin(ActPages):
    """One page; there is nothing to list."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may(request, "view_job")

    @method_decorator(require_safe)
    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        self.require(request, "view_job")
        now = database_now()
        queues = stats.queue_stats()
        floor = stats.window_floor(stats.SHORT_WINDOW)
        runs = stats.newest_runs(floor, limit=stats.SAMPLE)
        stats.add_times(queues, runs)
        newest = stats.newest_stats(now, floor)
        deploys = stats.deploys(now - timedelta(days=1))
        operations = list(_operations(now).values_list("pk", "state", "kind", "error")[:MOST_OPERATIONS])
        processes = list(WorkerProcess.objects.registered().order_by("pk")[:MOST_PROCESSES])
        state = _state(queues, processes, now)
        context = {
            **queue_table(self, request, queues, now),
            "now": now,
            "refresh": REFRESH_SECONDS,
            "state": state,
            "cards": self._cards(state, queues),
            "databases": database_table(),
            "problems": [
                *find_problems(self, queues, state, processes, now, runs),
                *of_operations(self, operations),
            ],
            "hour": chart(bars_of(newest.minutes, now, 60, timedelta(minutes=1)), _("Last hour"), deploys),
            "day": chart(bars_of(newest.minutes, now, 48, timedelta(minutes=30)), _("Last 24 hours"), deploys),
            "since": newest.since if newest.since and newest.since > now - timedelta(days=1) else None,
            "window": count_text(stats.SHORT_WINDOW, stats.SHORT_WINDOW),
            "causes": self._causes(request, now),
            "causes_url": self.url("deadletter_causes"),
            "acts_url": self.url("acts"),
            "operations_url": self.list_url("operation"),
            "operations": sum(one[1] != OperationState.FAILED for one in operations),
        }
        return self.page(request, "overview.html", _("Overview"), context)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        return self.not_found(request, object_id)

    def _cards(self, state: dict[str, Any], queues: dict[str, stats.QueueStats]) -> list[dict[str, Any]]:
        def card(label: str, value: Any, url: str = "", note: str = "", alarm: bool = False) -> dict[str, Any]:
            return {"label": label, "value": value, "url": url, "note": note, "alarm": alarm}

        def times(label: str, seconds: list[float]) -> dict[str, Any]:
            p50, p95 = (duration(stats.percentile(seconds, percent)) for percent in (50, 95))
            return card(label, p50, note=_("p95 %(span)s") % {"span": p95})

        jobs = self.list_url("job")
        has_work = state["ready"] or state["running"]
        overdue = _("%(count)s overdue") % {"count": count_text(state["overdue"])} if state["overdue"] else ""
        number = state["dead_letters"] - state["loud"]
        muted = _("%(count)s muted") % {"count": count_text(number)} if number else ""
        held_back = card(_("held back by limits"), count_text(state["held_back"]), self.list_url("limit"))
        return [
            card(_("open dead letters"), count_text(state["dead_letters"]), self.url("deadletter_causes"), muted,
                 alarm=bool(state["loud"])),
            card(_("ready"), state["ready_text"], f"{jobs}?status=pending"),
            *([held_back] if state["held_back"] else []),
            card(_("running"), state["running"], f"{jobs}?status=running"),
            card(_("scheduled"), count_text(state["scheduled"]), f"{jobs}?status=scheduled", overdue),
            card(_("worker processes alive"), state["alive"], self.list_url("workerprocess"),
                 ngettext("%(count)s thread", "%(count)s threads", state["threads"]) % {"count": state["threads"]},
                 alarm=bool(has_work and not state["alive"])),
            card(_("late schedules"), len(state["late"]), self.list_url("schedule"), alarm=bool(state["late"])),
            times(_("wait, p50"), [wait for queue in queues.values() for wait in queue.waits]),
            times(_("run, p50"), [run for queue in queues.values() for run in queue.runs]),
        ]  # fmt: skip

    def _causes(self, request: HttpRequest, now: datetime) -> list[FoundCause]:
        if not self.may(request, "view_deadletter"):
            return []
        return find_causes(now - timedelta(days=1), {"age": "24h"})[:MOST_CAUSES]


def _operations(now: datetime) -> QuerySet[Operation]:
    """Return the operations that have not ended, and those that failed within the last day, the newest first."""
    failed = Q(state=OperationState.FAILED, ended_at__gt=now - timedelta(days=1))
    return Operation.objects.filter(Q(ended_at=None) | failed).order_by("-pk")


def _state(queues: dict[str, stats.QueueStats], processes: list[WorkerProcess], now: datetime) -> dict[str, Any]:
    ready = [queue.ready for queue in queues.values()]
    alive = [process for process in processes if process.lease_expires_at and process.lease_expires_at > now]
    scheduled = Job.objects.filter(status=JobStatus.SCHEDULED)
    dead_letters = capped_count(DeadLetter.objects.open())
    muted = list(Cause.objects.muted().values_list("pk", flat=True)[:MOST_MUTED])
    loud = DeadLetter.objects.open().exclude(fingerprint__in=muted)
    late = Schedule.objects.filter(enabled=True, next_run_at__lt=now - LATE)
    return {
        "ready": sum(ready),
        "ready_text": _sum_text(ready),
        "held_back": capped_count(LimitSlot.objects.filter(waits=True)),
        "running": sum(queue.running for queue in queues.values()),
        "scheduled": capped_count(scheduled),
        "overdue": capped_count(scheduled.filter(available_at__lt=now - LATE)),  # nobody promoted them
        "dead_letters": dead_letters,
        "loud": capped_count(loud) if muted and dead_letters else dead_letters,
        "alive": len(alive),
        "threads": sum(process.threads for process in alive),
        "silent_threads": sum(process.silent_threads for process in alive),
        "late": list(late.values_list("name", flat=True)[:MOST_LATE]),
    }


def _sum_text(counts: list[int]) -> str:
    """Return as text the sum of counts of which some may have stopped at the cap."""
    total = sum(min(count, MOST_COUNTED) for count in counts)
    return count_text(total, total) + ("+" if max(counts, default=0) > MOST_COUNTED else "")
