"""Batches: the list, and the page of one with its progress, and the buttons that cancel it or replay what failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext_lazy

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.callbacks import types_of
from django_jobs.lifecycle.cancel import cancel_batch
from django_jobs.lifecycle.moved import Moved
from django_jobs.lifecycle.replay import replay_batch
from django_jobs.masking import pretty
from django_jobs.models import Batch, BatchStatus, Job, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY, LIVE

from .base import RowAdmin
from .operations import Act, Chunk, OperatingAdmin
from .paging import REFRESH_SECONDS
from .widgets import badge, code, cut, duration, link, moment, progress_bar, status_badge, two_lines

MOST_NESTED = 100


def _one_by_one(move: Callable[[str, Any], object]) -> Callable[[Chunk], Moved]:
    """Return the `run` of an operation whose move takes one batch and the user; one that is refused is left."""

    def run(chunk: Chunk) -> Moved:
        moved = Moved([], {})
        for batch_id in chunk.ids:
            try:
                move(batch_id, chunk.by)
            except JobsError as error:
                moved.left[batch_id] = error
            else:
                moved.done.append(batch_id)
        return moved

    return run


CANCEL = Act(
    title=gettext_lazy("Cancel batches"),
    permission="cancel_job",
    run=_one_by_one(lambda batch_id, by: cancel_batch(batch_id)),
    done=ngettext_lazy("Cancelled %(count)s batch.", "Cancelled %(count)s batches.", "number"),
    needs_confirmation=True,
    help=gettext_lazy(
        "Members that wait are cancelled at once, and running ones are asked to stop. No more are added. The callbacks for"
        " failure and for the end come when the last one has ended."
    ),
)
REPLAY = Act(
    title=gettext_lazy("Replay batches"),
    permission="replay_deadletter",
    run=_one_by_one(lambda batch_id, by: replay_batch(batch_id, by=by)),
    done=ngettext_lazy("Replayed %(count)s batch.", "Replayed %(count)s batches.", "number"),
    needs_confirmation=True,
    help=gettext_lazy(
        "Members that are dead, failed or cancelled run again from the start, and the callbacks come again at the end."
    ),
)


@admin.register(Batch)
class BatchAdmin(RowAdmin, OperatingAdmin):
    """The list of batches, the newest first, and the page of one."""

    list_display = ("batch", "state", "created", "took")
    list_filter = ("status",)
    search_fields = ("id", "description")
    search_help_text = gettext_lazy("Search by id or description.")
    empty_text = gettext_lazy(
        "Batches would be here, each with how far its jobs are. Code makes them with django_jobs.batch()."
    )
    actions = ("replay_selected", "cancel_selected")
    change_list_template = "admin/django_jobs/plain_list.html"
    change_form_template = "admin/django_jobs/batch_page.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Batch]:
        return super().get_queryset(request).annotate(read_at=DbNow())  # type: ignore[no-any-return]

    def needs_window(self, changelist: Any) -> bool:
        return True

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self.may(request, REPLAY.permission)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, CANCEL.permission)

    @admin.action(description=gettext_lazy("Replay"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, REPLAY)

    @admin.action(description=gettext_lazy("Cancel…"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, CANCEL)

    @admin.display(description=gettext_lazy("batch"))
    def batch(self, obj: Any) -> str:
        return two_lines(link(self.object_url("batch", obj.pk), code(str(obj), 80)), code(obj.pk, 64))

    @admin.display(description=gettext_lazy("status"))
    def state(self, obj: Any) -> str:
        return status_badge(obj)

    @admin.display(description=gettext_lazy("created"))
    def created(self, obj: Any) -> str:
        return moment(obj.created_at, obj.read_at)

    @admin.display(description=gettext_lazy("took"))
    def took(self, obj: Any) -> str:
        return duration((obj.finished_at - obj.created_at).total_seconds()) if obj.finished_at else ""

    def whole_rows(self) -> QuerySet[Any]:
        return Batch.objects.select_related("parent")

    def row_title(self, row: Any) -> str:
        return cut(str(row), 100)

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        now = database_now()
        counts = row.progress
        may_see = self.may(request, "view_payload")
        nested = list(row.children.order_by("pk")[: MOST_NESTED + 1])
        return {
            "row": row,
            "now": now,
            "refresh": 0 if row.is_finished else REFRESH_SECONDS,
            "status": status_badge(row),
            "bar": _bar(counts),
            "counts": self._counts(row, counts),
            "facts": [*_facts(row), *self._awaited_by(row)],
            "parent_url": self.object_url("batch", row.parent_id) if row.parent_id else "",
            "callbacks": types_of(row.callbacks),
            "may_see": may_see,
            "metadata": pretty(row.metadata) if may_see and row.metadata else "",
            "nested": [
                {"url": self.object_url("batch", one.pk), "batch": one, "status": status_badge(one)}
                for one in nested[:MOST_NESTED]
            ],
            "more_nested": len(nested) > MOST_NESTED,
            "may_cancel": not row.is_finished and not row.cancel_requested_at and self.has_cancel_permission(request),
            "may_replay": self.has_replay_permission(request) and any(counts[status] for status in ENDED_BADLY),
        }

    def _awaited_by(self, batch: Batch) -> list[tuple[str, Any]]:
        """Return the job whose children these are, with its link; it may have been deleted."""
        job_id = batch.awaited_by
        if job_id is None or not Job.objects.filter(pk=job_id).exists():
            return []
        return [(_("Awaited by"), link(self.object_url("job", job_id), code(job_id, 64)))]

    def _counts(self, batch: Batch, counts: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return the statuses of which there are members, each with a link to these."""
        return [
            {
                "status": badge(status, label),
                "number": counts[status],
                "url": f"{self.list_url('job')}?{urlencode({'batch': batch.pk, 'status': status})}",
            }
            for status, label in JobStatus.choices
            if counts[status]
        ]


def _bar(counts: Mapping[str, int]) -> str:
    members = sum(counts.values())
    if not members:
        return _("No members.")
    ended = members - sum(counts[status] for status in LIVE)
    text = _("%(ended)s of %(members)s have ended") % {"ended": ended, "members": members}
    return progress_bar(ended / members, text)


def _facts(batch: Batch) -> list[tuple[str, Any]]:
    took = (batch.finished_at - batch.created_at).total_seconds() if batch.finished_at else None
    facts = [
        (_("Created"), moment(batch.created_at)),
        (_("Asked to stop"), moment(batch.cancel_requested_at) if batch.cancel_requested_at else None),
        (_("Finished"), moment(batch.finished_at) if batch.finished_at else None),
        (_("Took"), duration(took) if batch.status != BatchStatus.RUNNING else None),
    ]
    return [(name, value) for name, value in facts if value is not None]
