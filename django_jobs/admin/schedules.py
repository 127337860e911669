"""Schedules: when each ticks next, in words too, and the buttons that enable, disable and run it now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.moved import Moved
from django_jobs.masking import pretty
from django_jobs.models import Schedule
from django_jobs.models.fields import DbNow
from django_jobs.models.schedule import ScheduleKind
from django_jobs.scheduling.cron import describe
from django_jobs.scheduling.store import delete_made, disable, enable
from django_jobs.scheduling.ticks import run_schedule_now

from .base import RowAdmin
from .operations import Act, Chunk
from .schedule_form import ScheduleForms
from .widgets import NOTHING, badge, code, cut, duration, link, moment, status_badge, two_lines

LATE = timedelta(minutes=1)  # that a tick may be overdue before its schedule is shown as late
NEXT_TICKS = 10
LAST_TICKS = 20


def _one_by_one(move: Callable[[str], object]) -> Callable[[Chunk], Moved]:
    """Return the `run` of an operation whose move takes the name of one schedule; one that is refused is left."""

    def run(chunk: Chunk) -> Moved:
        moved = Moved([], {})
        names = Schedule.objects.filter(pk__in=chunk.ids).order_by("pk").values_list("pk", "name")
        for pk, name in names:
            try:
                move(name)
            except JobsError as error:
                moved.left[pk] = error
            else:
                moved.done.append(pk)
        return moved

    return run


RUN_NOW = Act(
    title=gettext_lazy("Run schedules now"),
    permission="run_schedule",
    run=_one_by_one(run_schedule_now),
    done=ngettext_lazy(
        "Submitted the job of %(count)s schedule.", "Submitted the jobs of %(count)s schedules.", "number"
    ),
    help=gettext_lazy("Each submits its job at once; its next tick stays as it is."),
)
ENABLE = Act(
    title=gettext_lazy("Enable schedules"),
    permission="change_schedule",
    run=_one_by_one(enable),
    done=ngettext_lazy("Enabled %(count)s schedule.", "Enabled %(count)s schedules.", "number"),
    help=gettext_lazy("They tick again from now on; what was missed is not caught up."),
)
DISABLE = Act(
    title=gettext_lazy("Disable schedules"),
    permission="change_schedule",
    run=_one_by_one(disable),
    done=ngettext_lazy("Disabled %(count)s schedule.", "Disabled %(count)s schedules.", "number"),
    help=gettext_lazy("They do not tick until they are enabled again."),
)
DELETE = Act(
    title=gettext_lazy("Delete schedules"),
    permission="delete_schedule",
    run=_one_by_one(delete_made),
    done=ngettext_lazy("Deleted %(count)s schedule.", "Deleted %(count)s schedules.", "number"),
    needs_confirmation=True,
    is_final=True,
    help=gettext_lazy("The jobs that they submitted stay. What the code declares is taken out there."),
)


@admin.register(Schedule)
class ScheduleAdmin(ScheduleForms, RowAdmin):
    """The list of schedules and the page of one."""

    list_display = ("schedule", "state", "timing", "next_tick", "last_tick")
    list_filter = ("enabled", "kind")
    search_fields = ("name", "job_type")
    search_help_text = gettext_lazy("Search by name or job type.")
    empty_text = gettext_lazy(
        "Schedules would be here: those that the code declares, and those that are made on this page."
    )
    actions = ("run_selected", "enable_selected", "disable_selected", "delete_selected")
    change_list_template = "admin/django_jobs/schedule_list.html"
    change_form_template = "admin/django_jobs/schedule_page.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Schedule]:
        return super().get_queryset(request).annotate(read_at=DbNow())  # type: ignore[no-any-return]

    def has_run_permission(self, request: HttpRequest) -> bool:
        return self.may(request, RUN_NOW.permission)

    def has_switch_permission(self, request: HttpRequest) -> bool:
        return self.may(request, ENABLE.permission)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        # Not has_delete_permission: with that one Django would offer its own deletion.
        return self.may(request, DELETE.permission)

    @admin.action(description=gettext_lazy("Run now"), permissions=["run"])
    def run_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, RUN_NOW)

    @admin.action(description=gettext_lazy("Enable"), permissions=["switch"])
    def enable_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, ENABLE)

    @admin.action(description=gettext_lazy("Disable"), permissions=["switch"])
    def disable_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, DISABLE)

    @admin.action(description=gettext_lazy("Delete…"), permissions=["remove"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, DELETE)

    @admin.display(description=gettext_lazy("schedule"))
    def schedule(self, obj: Any) -> str:
        return two_lines(link(self.object_url("schedule", obj.pk), code(obj.name, 64)), code(obj.job_type, 80))

    @admin.display(description=gettext_lazy("state"))
    def state(self, obj: Any) -> str:
        return _state_badge(obj, obj.read_at)

    @admin.display(description=gettext_lazy("when"))
    def timing(self, obj: Any) -> str:
        """Show in words when it ticks, and why it no longer does."""
        if obj.last_error:
            return format_html("<bdi>{}</bdi><br>{}", _description(obj), code(obj.last_error))
        return format_html("<bdi>{}</bdi>", _description(obj))

    @admin.display(description=gettext_lazy("next tick"))
    def next_tick(self, obj: Any) -> str:
        return moment(obj.next_run_at, obj.read_at) if obj.enabled else NOTHING

    @admin.display(description=gettext_lazy("last tick"))
    def last_tick(self, obj: Any) -> str:
        return moment(obj.last_run_at, obj.read_at)

    def whole_rows(self) -> QuerySet[Any]:
        return Schedule.objects.all()

    def row_title(self, row: Any) -> str:
        return cut(row.name, 64)

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        now = database_now()
        may_see = self.may(request, "view_payload")
        return {
            "row": row,
            "now": now,
            "state": _state_badge(row, now),
            "description": _description(row),
            "error": cut(row.last_error, 5_000),
            "facts": _facts(row),
            "next_ticks": _next_ticks(row),
            "ticks": self._ticks(row),
            "may_see": may_see,
            "payload": pretty(row.payload) if may_see else "",
            "may_run": self.has_run_permission(request),
            "may_switch": self.has_switch_permission(request),
            "edit_url": self.url("schedule_edit", quote(row.pk))
            if self.has_switch_permission(request) and not row.declared
            else "",
            "may_delete": self.has_remove_permission(request) and not row.declared,
            "jobs_url": self.list_url("job"),
        }

    def description(self, row: Schedule) -> str:
        return _description(row)

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


def _state_badge(row: Any, now: datetime) -> str:
    if not row.enabled:
        return badge("disabled", _("disabled"))
    if row.next_run_at and row.next_run_at < now - LATE:
        return badge("late", _("late"))
    return badge("enabled", _("enabled"))


def _description(row: Any) -> str:
    """Return in words when a schedule ticks; of a broken row what its columns hold."""
    if row.kind == ScheduleKind.INTERVAL:
        return _("every %(span)s") % {"span": duration(row.interval_seconds)}
    if row.kind == ScheduleKind.ONCE:
        return _("once, at %(time)s") % {"time": f"{row.run_at:%Y-%m-%d %H:%M:%S} UTC" if row.run_at else NOTHING}
    try:
        words = describe(row.cron)
    except (JobsError, ValueError):
        words = ""
    return cut(f"{words} ({row.cron}) {row.timezone}" if words else f"{row.cron} {row.timezone}", 200)


def _next_ticks(row: Any) -> list[datetime]:
    """Return the next ticks of an enabled schedule; none of a broken one."""
    try:
        return row.checked().timing.upcoming(row.next_run_at, NEXT_TICKS) if row.enabled and row.next_run_at else []
    except JobsError:
        return []  # the row's last_error is on the page


def _facts(row: Any) -> list[tuple[str, Any]]:
    facts = [
        (_("Job type"), row.job_type),
        (_("Queue"), row.queue),
        (_("Priority"), row.priority),
        (_("Catch up"), row.get_catch_up_display()),
        (_("Overlap"), row.get_overlap_display()),
        (_("Jitter"), duration(row.jitter_seconds) if row.jitter_seconds else None),
        (_("Declared in code"), _("yes") if row.declared else _("no")),
    ]
    return [(name, value) for name, value in facts if value not in (None, "")]
