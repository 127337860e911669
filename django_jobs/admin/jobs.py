"""Jobs: the list, its search, and what operators do with waiting, running and finished ones."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.db.models.functions import Left, Lower
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from django_jobs.models import Job
from django_jobs.models.fields import DbNow
from django_jobs.models.job import LIVE, TERMINAL

from . import operations
from .filters import AgeFilter, QueueFilter, ScheduleFilter, StatusFilter, TypeFilter, WorkerFilter
from .job_page import JobPage
from .widgets import SHORT, code, lasted, link, moment, progress_bar, status_badge

HIDDEN = ("payload", "result", "error", "metadata")


@admin.register(Job)
class JobAdmin(JobPage):
    """The list of jobs, newest first."""

    list_display = ("job", "status_text", "queue_text", "created", "detail")
    list_filter = (StatusFilter, QueueFilter, TypeFilter, WorkerFilter, AgeFilter, ScheduleFilter)
    search_fields = ("id", "job_type", "unique_key")
    search_help_text = _("Search by id, unique key, or part of a job type.")
    actions = ("replay_selected", "run_selected_now", "cancel_selected", "change_selected")
    change_list_template = "admin/django_jobs/plain_list.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        """Return jobs without their payloads and long texts."""
        rows = super().get_queryset(request).annotate(short_error=Left("error", SHORT * 2), asked_at=DbNow())
        return rows.defer(*HIDDEN)  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look for an id or the key of a live job first: both have an index. Then for parts of names."""
        term = search_term.strip()
        if not term:
            return queryset, False
        exact = queryset.filter(Q(pk=term) | Q(unique_lock=term))
        if exact.exists():
            return exact, False
        # Lower(), because our names have exact collations, in which `icontains` tells cases apart on some databases.
        parts = Q(pk__startswith=term) | Q(low_type__contains=term.lower()) | Q(unique_key__startswith=term)
        return queryset.alias(low_type=Lower("job_type")).filter(parts), False

    def needs_window(self, changelist: Any) -> bool:
        """Search the newest jobs only, unless it is for live ones: those have an index, and may be old."""
        return changelist.params.get("status") not in LIVE

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may replay jobs and run them now."""
        return self.may(request, "replay_deadletter")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may cancel jobs."""
        return self.may(request, "cancel_job")

    def has_reorder_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may change the priority and queue of jobs."""
        return self.may(request, "change_job")

    @admin.action(description=_("Replay"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Run jobs that ended badly again."""
        return self.operate(request, queryset, operations.REPLAY_JOBS)

    @admin.action(description=_("Run now"), permissions=["replay"])
    def run_selected_now(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Let scheduled jobs start at once."""
        return self.operate(request, queryset, operations.RUN_JOBS_NOW)

    @admin.action(description=_("Cancel…"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Cancel waiting jobs and ask running ones to stop."""
        return self.operate(request, queryset, operations.CANCEL_JOBS)

    @admin.action(description=_("Change priority or queue…"), permissions=["reorder"])
    def change_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Change the priority or queue of waiting jobs."""
        return self.operate(request, queryset, operations.CHANGE_JOBS)

    @admin.display(description=_("job"))
    def job(self, obj: Any) -> str:
        """Link to the job's page: type and id."""
        page = link(self.object_url("job", obj.pk), code(obj.job_type, 80))
        return format_html('{}<br><span class="jobs-quiet">{}</span>', page, code(obj.pk, 64))

    @admin.display(description=_("status"))
    def status_text(self, obj: Any) -> str:
        """Show the status as a badge, and the retries made, if any."""
        if not obj.retry_count:
            return status_badge(obj)
        retries = _("retry %(made)s of %(allowed)s") % {"made": obj.retry_count, "allowed": obj.max_retries}
        return format_html('{}<br><span class="jobs-quiet">{}</span>', status_badge(obj), retries)

    @admin.display(description=_("queue"))
    def queue_text(self, obj: Any) -> str:
        """Show the queue and the priority."""
        priority = _("priority %(number)s") % {"number": obj.priority}
        return format_html('{}<br><span class="jobs-quiet">{}</span>', code(obj.queue, 64), priority)

    @admin.display(description=_("created"))
    def created(self, obj: Any) -> str:
        """Show how long ago, and how long the last run took or has taken so far."""
        ended = obj.finished_at if obj.status in TERMINAL else obj.asked_at if obj.status == "running" else None
        ago = moment(obj.created_at, obj.asked_at)
        if obj.started_at is None or ended is None:
            return ago
        took = _("ran %(span)s") % {"span": lasted((ended - obj.started_at).total_seconds())}
        return format_html('{}<br><span class="jobs-quiet">{}</span>', ago, took)

    @admin.display(description=_("detail"))
    def detail(self, obj: Any) -> str:
        """Show the error, the progress, or what the job waits for."""
        if obj.status == "running":
            return progress_bar(obj.progress, obj.progress_message)
        if obj.pending_dependencies and obj.status not in TERMINAL:
            count = obj.pending_dependencies
            text = ngettext("waits for %(count)s dependency", "waits for %(count)s dependencies", count)
            return text % {"count": count}
        if obj.status == "scheduled":
            return format_html("{} {}", _("due"), moment(obj.available_at, obj.asked_at))
        return code(obj.short_error) if obj.short_error else ""
