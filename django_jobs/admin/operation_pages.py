"""Operations: the list of what operators asked for on many rows, and the page of one with its progress and its switches."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_POST

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.operations import OF_DEAD_LETTERS, pause, resume, stop
from django_jobs.models import Operation, OperationKind, OperationState, WorkerProcess
from django_jobs.models.fields import DbNow

from .base import RowAdmin
from .operations import OperatingAdmin
from .widgets import badge, code, cut, dict_of, duration, link, moment, progress_bar, two_lines

REFRESH_SECONDS = 2
BADGES = {
    OperationState.RUNNING: "running",
    OperationState.PAUSED: "paused",
    OperationState.FINISHED: "completed",
    OperationState.STOPPED: "cancelled",
    OperationState.FAILED: "failed",
}
PERMISSIONS = {  # what it takes to begin one, it takes to pause, resume and stop it
    OperationKind.REPLAY: "replay_deadletter",
    OperationKind.RUN_NOW: "replay_deadletter",
    OperationKind.CANCEL: "cancel_job",
    OperationKind.CHANGE: "change_job",
    OperationKind.DELETE: "delete_job",
    OperationKind.DISCARD: "discard_job",
    OperationKind.REPLAY_DEAD_LETTERS: "replay_deadletter",
    OperationKind.ACKNOWLEDGE: "acknowledge_deadletter",
}
SWITCHES = {
    "pause": (pause, gettext_lazy("Paused operation %(name)s.")),
    "resume": (resume, gettext_lazy("Resumed operation %(name)s.")),
    "stop": (stop, gettext_lazy("Stopped operation %(name)s; what was done stays done.")),
}


@admin.register(Operation)
class OperationAdmin(RowAdmin, OperatingAdmin):
    """The list of operations, the newest first, and the page of one."""

    list_display = ("operation", "state_text", "rows", "began")
    list_filter = ("state", "kind")
    list_select_related = ("created_by",)
    empty_text = gettext_lazy(
        "Replays at a rate, and what is asked for on more than 500 rows, would be here with how far they are."
    )
    change_list_template = "admin/django_jobs/plain_list.html"
    change_form_template = "admin/django_jobs/operation_page.html"

    def get_urls(self) -> list[Any]:
        switch = self.admin_site.admin_view(self.switch_view)
        return [path("<path:object_id>/switch/", switch, name="django_jobs_operation_switch"), *super().get_urls()]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may(request, "view_job")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Operation]:
        return super().get_queryset(request).annotate(read_at=DbNow()).defer("ids")  # type: ignore[no-any-return]

    @admin.display(description=gettext_lazy("operation"))
    def operation(self, obj: Any) -> str:
        name = format_html("#{} {}", str(obj.pk), obj.get_kind_display())
        return two_lines(link(self.object_url("operation", obj.pk), name), code(obj.address, 120))

    @admin.display(description=gettext_lazy("state"))
    def state_text(self, obj: Any) -> str:
        return _state_badge(obj)

    @admin.display(description=gettext_lazy("rows"))
    def rows(self, obj: Any) -> str:
        return _rows_text(obj)

    @admin.display(description=gettext_lazy("began"))
    def began(self, obj: Any) -> str:
        by = obj.created_by.get_username() if obj.created_by else ""
        return two_lines(moment(obj.created_at, obj.read_at), cut(by, 60))

    @method_decorator(require_POST)
    def switch_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Pause, resume or stop an operation: POST `switch`."""
        row = self.find(Operation.objects.defer("ids"), unquote(object_id))
        if row is None:
            return self.not_found(request, object_id)
        self.require(request, PERMISSIONS[OperationKind(row.kind)])
        move, text = SWITCHES.get(request.POST.get("switch", ""), (None, ""))
        if move is not None:
            try:
                move(row.pk)
            except JobsError as error:
                messages.error(request, str(error))
            else:
                message = str(text) % {"name": str(row)}
                messages.success(request, message)
                self.write_log(request, [(str(row.pk), str(row))], message)
        return HttpResponseRedirect(self.object_url("operation", row.pk))

    def whole_rows(self) -> QuerySet[Any]:
        return Operation.objects.select_related("created_by")

    def row_title(self, row: Any) -> str:
        return _("Operation #%(number)s: %(kind)s") % {"number": row.pk, "kind": row.get_kind_display()}

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        now = database_now()
        may_switch = self.may(request, PERMISSIONS[OperationKind(row.kind)]) and not row.is_ended
        return {
            "row": row,
            "now": now,
            "refresh": 0 if row.is_ended else REFRESH_SECONDS,
            "state": _state_badge(row),
            "bar": progress_bar(row.progress, _rows_text(row)),
            "error": cut(row.error, 2_000),
            "facts": self._facts(row, now),
            "waits_for_worker": row.state == OperationState.RUNNING and not WorkerProcess.objects.alive().exists(),
            "may_pause": may_switch and row.state == OperationState.RUNNING,
            "may_resume": may_switch and row.state == OperationState.PAUSED,
            "may_stop": may_switch,
            "switch_url": self.url("operation_switch", row.pk),
        }

    def _facts(self, row: Operation, now: Any) -> list[tuple[str, Any]]:
        facts = [
            (_("Rows"), self._selection(row)),
            (_("Done"), number_format(row.done, force_grouping=True)),
            (_("Left as they were"), number_format(row.skipped, force_grouping=True) if row.skipped else None),
            (_("At most per second"), number_format(row.per_second) if row.per_second else None),
            *((str(name), str(value)) for name, value in dict_of(row.options).items()),
            (_("Begun by"), row.created_by.get_username() if row.created_by else None),
            (_("Begun"), moment(row.created_at, now)),
            (_("First step"), moment(row.started_at, now) if row.started_at else None),
            (_("Ended"), moment(row.ended_at, now) if row.ended_at else None),
            (_("To go"), _to_go(row, now)),
        ]
        return [(name, value) for name, value in facts if value not in (None, "")]

    def _selection(self, row: Operation) -> Any:
        """Say which rows are meant, with a link to the list that was filtered."""
        total = number_format(row.total, force_grouping=True)
        if row.ids is not None and not row.address:
            return ngettext("%(count)s selected row", "%(count)s selected rows", row.total) % {"count": total}
        model = "deadletter" if row.kind in OF_DEAD_LETTERS else "job"
        text = _("%(count)s that matched %(filter)s") % {"count": total, "filter": cut(row.address, 200) or "-"}
        return link(f"{self.list_url(model)}?{row.address}", text)


def _state_badge(row: Any) -> str:
    return badge(BADGES.get(row.state, ""), row.get_state_display())


def _rows_text(row: Any) -> str:
    words = {"done": row.done + row.skipped, "total": max(row.total, row.done + row.skipped)}
    return _("%(done)s of %(total)s") % {
        name: number_format(number, force_grouping=True) for name, number in words.items()
    }


def _to_go(row: Operation, now: Any) -> str | None:
    """Return how long the rest will take, by the rate asked for or by the pace so far."""
    treated = row.done + row.skipped
    if row.state != OperationState.RUNNING or row.started_at is None or treated >= row.total:
        return None
    pace = row.per_second or treated / max(0.1, (now - row.started_at).total_seconds())
    return _("about %(span)s") % {"span": duration((row.total - treated) / pace)} if pace else None
