"""Schedules: when each ticks next, in words too, and the buttons that enable, disable and run it now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_jobs import cron
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle import schedule as moves
from django_jobs.lifecycle.bulk import Tally
from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import Schedule
from django_jobs.models.fields import DbNow

from .masking import pretty
from .operate import OperatingAdmin, Operation, Order
from .overview import LATE
from .widgets import NOTHING, badge, code, cut, lasted, link, moment, status_badge

NEXT_TICKS = 5
LAST_TICKS = 20


def _by_name(move: Callable[[str], object]) -> Callable[[Sequence[Any], Order], Tally]:
    """Return an operation's run for a move that takes a schedule's name; a refusal leaves that schedule."""

    def run(ids: Sequence[Any], order: Order) -> Tally:
        done = 0
        for name in Schedule.objects.filter(pk__in=ids).order_by("pk").values_list("name", flat=True):
            try:
                move(name)
            except JobsError:
                continue
            done += 1
        return Tally(done, len(ids) - done)

    return run


RUN_NOW = Operation(
    title=gettext_lazy("Run schedules now"),
    permission="run_schedule",
    run=_by_name(moves.run_schedule_now),
    done=ngettext_lazy(
        "Submitted the job of %(count)s schedule.", "Submitted the jobs of %(count)s schedules.", "number"
    ),
    help=gettext_lazy("Each submits its job at once; its next tick stays as it is."),
)
ENABLE = Operation(
    title=gettext_lazy("Enable schedules"),
    permission="change_schedule",
    run=_by_name(moves.enable),
    done=ngettext_lazy("Enabled %(count)s schedule.", "Enabled %(count)s schedules.", "number"),
    help=gettext_lazy("They tick again from now on; what was missed is not caught up."),
)
DISABLE = Operation(
    title=gettext_lazy("Disable schedules"),
    permission="change_schedule",
    run=_by_name(moves.disable),
    done=ngettext_lazy("Disabled %(count)s schedule.", "Disabled %(count)s schedules.", "number"),
    help=gettext_lazy("They do not tick until they are enabled again."),
)


@admin.register(Schedule)
class ScheduleAdmin(OperatingAdmin):
    """The list of schedules and the page of one."""

    list_display = ("schedule", "state", "timing", "next_tick", "last_tick")
    list_filter = ("enabled", "kind")
    search_fields = ("name", "job_type")
    search_help_text = gettext_lazy("Search by name or job type.")
    actions = ("run_selected", "enable_selected", "disable_selected")
    change_list_template = "admin/django_jobs/plain_list.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Schedule]:
        """Return schedules, each with the database's time."""
        return super().get_queryset(request).annotate(asked_at=DbNow())  # type: ignore[no-any-return]

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may run schedules now."""
        return self.may(request, "run_schedule")

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may enable and disable schedules."""
        return self.may(request, "change_schedule")

    @admin.action(description=gettext_lazy("Run now"), permissions=["run"])
    def run_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Submit the schedules' jobs at once."""
        return self.operate(request, queryset, RUN_NOW)

    @admin.action(description=gettext_lazy("Enable"), permissions=["switch"])
    def enable_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Let the schedules tick again."""
        return self.operate(request, queryset, ENABLE)

    @admin.action(description=gettext_lazy("Disable"), permissions=["switch"])
    def disable_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Stop the schedules from ticking."""
        return self.operate(request, queryset, DISABLE)

    @admin.display(description=gettext_lazy("schedule"))
    def schedule(self, obj: Any) -> str:
        """Link to the schedule's page, and name the job type that it submits."""
        page = link(self.object_url("schedule", obj.pk), code(obj.name, 64))
        return format_html('{}<br><span class="jobs-quiet">{}</span>', page, code(obj.job_type, 80))

    @admin.display(description=gettext_lazy("state"))
    def state(self, obj: Any) -> str:
        """Show whether it ticks, and whether it is late."""
        return state_badge(obj, obj.asked_at)

    @admin.display(description=gettext_lazy("when"))
    def timing(self, obj: Any) -> str:
        """Say in words when it ticks, or why it does no more."""
        if obj.last_error:
            return format_html("<bdi>{}</bdi><br>{}", description(obj), code(obj.last_error))
        return format_html("<bdi>{}</bdi>", description(obj))

    @admin.display(description=gettext_lazy("next tick"))
    def next_tick(self, obj: Any) -> str:
        """Show in how long."""
        return moment(obj.next_run_at, obj.asked_at) if obj.enabled else NOTHING

    @admin.display(description=gettext_lazy("last tick"))
    def last_tick(self, obj: Any) -> str:
        """Show how long ago."""
        return moment(obj.last_run_at, obj.asked_at)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one schedule: its next ticks, and the jobs that the last ones made."""
        self.require(request, "view_schedule")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        key = unquote(object_id)
        row = Schedule.objects.filter(pk=key).first() if key.isdecimal() and len(key) < 19 else None
        if row is None:
            return self.not_found(request, object_id)
        now = database_now()
        may_see = self.may(request, "view_payload")
        context = {
            "original": row,
            "object_id": row.pk,
            "change": True,
            "row": row,
            "now": now,
            "state": state_badge(row, now),
            "description": description(row),
            "error": cut(row.last_error, 5_000),
            "facts": _facts(row),
            "next_ticks": next_ticks(row),
            "ticks": self._ticks(row),
            "may_see": may_see,
            "payload": pretty(row.payload) if may_see else "",
            "may_run": self.may(request, "run_schedule"),
            "may_switch": self.may(request, "change_schedule"),
            "list_url": self.list_url("schedule"),
            "jobs_url": self.list_url("job"),
            "history_url": reverse(f"{self.admin_site.name}:django_jobs_schedule_history", args=(row.pk,)),
        }
        return self.page(request, "admin/django_jobs/schedule_page.html", cut(row.name, 64), context)

    def _ticks(self, row: Schedule) -> list[dict[str, Any]]:
        ticks = row.ticks.select_related("job").order_by("-due_at").only(
            "due_at", "schedule_id", "job__id", "job__status", "job__cancel_requested_at"
        )  # fmt: skip
        return [
            {
                "due_at": tick.due_at,
                "job": tick.job,
                "url": self.object_url("job", tick.job.pk) if tick.job else "",
                "status": status_badge(tick.job) if tick.job else "",
            }
            for tick in ticks[:LAST_TICKS]
        ]


def state_badge(row: Any, now: datetime) -> str:
    """Show whether a schedule ticks, and whether it is late."""
    if not row.enabled:
        return badge("disabled", _("disabled"))
    if row.next_run_at and row.next_run_at < now - LATE:
        return badge("late", _("late"))
    return badge("enabled", _("enabled"))


def description(row: Any) -> str:
    """Say in words when a schedule ticks; a broken row shows what it holds."""
    if row.kind == "interval":
        return _("every %(span)s") % {"span": lasted(row.interval_seconds)}
    if row.kind == "once":
        return _("once, at %(time)s") % {"time": f"{row.run_at:%Y-%m-%d %H:%M:%S} UTC" if row.run_at else NOTHING}
    try:
        words = cron.describe(row.cron)
    except (JobsError, ValueError):
        words = ""
    return cut(f"{words} ({row.cron}) {row.timezone}" if words else f"{row.cron} {row.timezone}", 200)


def next_ticks(row: Any) -> list[datetime]:
    """Return the next ticks of an enabled schedule; none of a broken one."""
    ticks: list[datetime] = []
    tick = row.next_run_at if row.enabled else None
    try:
        timing = row.checked().timing
        while tick is not None and len(ticks) < NEXT_TICKS:
            ticks.append(tick)
            tick = timing.following(tick, tick)
    except JobsError:
        pass  # its last_error says so
    return ticks


def _facts(row: Any) -> list[tuple[str, Any]]:
    facts = [
        (_("Job type"), row.job_type),
        (_("Queue"), row.queue),
        (_("Priority"), row.priority),
        (_("Catch up"), row.get_catch_up_display()),
        (_("Overlap"), row.get_overlap_display()),
        (_("Jitter"), lasted(row.jitter_seconds) if row.jitter_seconds else None),
        (_("Declared in code"), _("yes") if row.declared else _("no")),
    ]
    return [(name, value) for name, value in facts if value not in (None, "")]
