"""Jobs: the list, and the page of one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from django.contrib import admin
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce, Left
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_jobs.db.transactions import database_now
from django_jobs.handlers import encrypts_type
from django_jobs.lifecycle.outcome import FAILURES
from django_jobs.lifecycle.prune import may_go
from django_jobs.masking import masked, pretty
from django_jobs.models import Batch, Job, JobStatus, JobStep, ScheduleTick, StepKind
from django_jobs.models.fields import DbNow
from django_jobs.models.graph import graph_of, root_cause
from django_jobs.models.job import ENDED_BADLY, LIVE, TERMINAL, WAITING
from django_jobs.numbers import LONGEST_SECONDS

from .base import RowAdmin
from .filters import (
    AgeFilter,
    BatchFilter,
    OrderFilter,
    QueueFilter,
    ScheduleFilter,
    StatusFilter,
    TypeFilter,
    WorkerFilter,
)
from .graph import draw
from .job_acts import CANCEL, CHANGE, DELETE, DISCARD, REPLAY, RUN_NOW, SEND_EVENT
from .job_logs import logs_of
from .job_types import JobTypePages
from .operations import OperatingAdmin
from .paging import REFRESH_SECONDS
from .search import Search, term_of
from .selection import note
from .widgets import (
    LONGEST_TEXT,
    SHORT,
    code,
    cut,
    dead_letter_badge,
    dict_of,
    duration,
    link,
    moment,
    progress_bar,
    status_badge,
    two_lines,
    with_detail,
)

HEAVY = ("payload", "result", "error", "metadata")
MOST_ATTEMPTS = 50
MOST_EDGES = 100
MOST_STEPS = 200
MOST_LINKS = 12
STEP_STATES = {
    "done": gettext_lazy("done"),
    "open": gettext_lazy("open"),
    "waiting": gettext_lazy("waiting"),
    "timed out": gettext_lazy("timed out"),
    "failed": gettext_lazy("failed"),
}
# Spans that no index knows; rows without one come last on every database.
ORDERS = {
    "run": Coalesce(Coalesce("finished_at", DbNow()) - F("started_at"), timedelta()).desc(),
    "wait": Coalesce(Coalesce("started_at", "finished_at", DbNow()) - F("available_at"), timedelta()).desc(),
    "retries": F("retry_count").desc(),
}
SEARCH_HELP = gettext_lazy(
    "Words of an id, key, type, error or payload, or what stands under a key: account:7, metadata.tenant:a, error:Timeout,"
    " queue:mail, after:2026-11-01, before:2026-11-02T08:00."
)


class Step(NamedTuple):
    """One line of the timeline."""

    what: str
    when: Any
    note: str = ""


class Button(NamedTuple):
    """An operation that the job's page offers; `option` is one of its form's that the button ticks."""

    action: str
    label: str
    kind: str = ""
    option: str = ""


@admin.register(Job)
class JobAdmin(JobTypePages, RowAdmin, OperatingAdmin):
    """The pages of jobs; the list shows the newest first."""

    list_display = ("job", "status_text", "queue_text", "created")
    list_filter = (
        StatusFilter,
        QueueFilter,
        TypeFilter,
        WorkerFilter,
        AgeFilter,
        OrderFilter,
        ScheduleFilter,
        BatchFilter,
    )
    orders = ORDERS
    search_fields = ("id", "job_type", "unique_key")
    search_help_text = SEARCH_HELP
    empty_text = gettext_lazy("Jobs that your code submits would be here, the newest first.")
    actions = (
        "replay_selected",
        "run_selected_now",
        "cancel_selected",
        "change_selected",
        "send_event_selected",
        "discard_selected",
        "delete_selected",
    )
    change_list_template = "admin/django_jobs/job_list.html"
    change_form_template = "admin/django_jobs/job_page.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        rows = super().get_queryset(request).annotate(short_error=Left("error", SHORT * 2), read_at=DbNow())
        return rows.prefetch_related("slots").defer(*HEAVY)  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search for an id or the key of a live job first, for both have an index; then for names and content."""
        term = search_term.strip()
        if not term:
            return queryset, False
        exact = queryset.filter(Q(pk=term) | Q(unique_lock=term))
        if exact.exists():
            note(request, None)
            return exact, False
        return self.search(request, queryset, Search(text=term, may_see=self.may(request, "view_payload"))), False

    def needs_window(self, changelist: Any) -> bool:
        # Live jobs have an index, and may be old; so have members of a batch.
        return changelist.params.get("status") not in LIVE and not changelist.params.get("batch")

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self.may(request, REPLAY.permission)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, CANCEL.permission)

    def has_send_event_permission(self, request: HttpRequest) -> bool:
        return self.may(request, SEND_EVENT.permission)

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self.may(request, DISCARD.permission)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        # Not has_delete_permission: with that one Django would offer its own deletion.
        return self.may(request, DELETE.permission)

    def has_reorder_permission(self, request: HttpRequest) -> bool:
        # Not has_change_permission: with that one Django would show a form.
        return self.may(request, CHANGE.permission)

    @admin.action(description=gettext_lazy("Replay"), permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, REPLAY)

    @admin.action(description=gettext_lazy("Run now"), permissions=["replay"])
    def run_selected_now(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, RUN_NOW)

    @admin.action(description=gettext_lazy("Cancel…"), permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, CANCEL)

    @admin.action(description=gettext_lazy("Change priority or queue…"), permissions=["reorder"])
    def change_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, CHANGE)

    @admin.action(description=gettext_lazy("Send this event…"), permissions=["send_event"])
    def send_event_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, SEND_EVENT)

    @admin.action(description=gettext_lazy("Discard…"), permissions=["discard"])
    def discard_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, DISCARD)

    @admin.action(description=gettext_lazy("Delete…"), permissions=["remove"])
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, DELETE)

    @admin.display(description=gettext_lazy("job"))
    def job(self, obj: Any) -> str:
        """Show the type and the id, and below how far it is, what it waits for, or its error."""
        name = two_lines(link(self.object_url("job", obj.pk), code(obj.job_type, 80)), code(obj.pk, 64))
        return with_detail(name, self._detail(obj))

    @admin.display(description=gettext_lazy("status"))
    def status_text(self, obj: Any) -> str:
        if not obj.retry_count:
            return status_badge(obj)
        retries = _("retry %(made)s of %(allowed)s") % {"made": obj.retry_count, "allowed": obj.max_retries}
        return two_lines(status_badge(obj), retries)

    @admin.display(description=gettext_lazy("queue"))
    def queue_text(self, obj: Any) -> str:
        return two_lines(code(obj.queue, 64), _("priority %(number)s") % {"number": obj.priority})

    @admin.display(description=gettext_lazy("created"))
    def created(self, obj: Any) -> str:
        """Show how long ago, and how long the last run took or has taken so far."""
        ended = obj.finished_at if obj.status in TERMINAL else obj.read_at if obj.status == JobStatus.RUNNING else None
        created = moment(obj.created_at, obj.read_at)
        if obj.started_at is None or ended is None:
            return created
        ran = _("ran %(span)s") % {"span": duration((ended - obj.started_at).total_seconds())}
        return two_lines(created, ran)

    def _detail(self, obj: Any) -> Any:
        """Return the progress, what the job waits for, or the error."""
        if obj.status == JobStatus.RUNNING:
            return progress_bar(obj.progress, obj.progress_message)
        if obj.pending_dependencies and obj.status not in TERMINAL:
            count = obj.pending_dependencies
            text = ngettext("waits for %(count)s dependency", "waits for %(count)s dependencies", count)
            return text % {"count": count}
        if obj.held_back_by:
            text = _("held back by %(limit)s") % {"limit": obj.held_back_by}
            if obj.scheduled_at is None or obj.scheduled_at <= obj.read_at:
                return text
            return format_html("{}, {} {}", text, _("due"), moment(obj.scheduled_at, obj.read_at))
        if obj.status == JobStatus.SCHEDULED:
            if _is_open_ended(obj, obj.read_at):
                return _("waits for an event")
            return format_html("{} {}", _("due"), moment(obj.available_at, obj.read_at))
        return code(obj.short_error) if obj.short_error else ""

    def whole_rows(self) -> QuerySet[Any]:
        return Job.objects.all()

    def row_title(self, row: Any) -> str:
        return cut(row.job_type, 100)

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        job: Job = row
        now = database_now()
        may_see = self.may(request, "view_payload")
        attempts = list(job.attempts.order_by("-pk")[: MOST_ATTEMPTS + 1])
        steps = list(job.steps.order_by("position")[: MOST_STEPS + 1])
        return {
            "job": job,
            "now": now,
            "refresh": REFRESH_SECONDS if job.status in LIVE else 0,
            "status": status_badge(job),
            "progress": progress_bar(job.progress, job.progress_message) if job.status == JobStatus.RUNNING else "",
            "error": cut(job.error, LONGEST_TEXT),
            "timeline": _timeline(job, now),
            "facts": [*self._facts(job, now), *self._batch(job)],
            "steps": [self._step(step, may_see) for step in steps[:MOST_STEPS]],
            "more_steps": len(steps) > MOST_STEPS,
            "attempts": [self._attempt(attempt) for attempt in attempts[:MOST_ATTEMPTS]],
            "more_attempts": len(attempts) > MOST_ATTEMPTS,
            "dead_letters": self._dead_letters(job, now),
            "dependencies": self._edges(job.dependencies.select_related("depends_on"), "depends_on"),
            "dependents": self._edges(job.dependents.select_related("job"), "job"),
            "may_see": may_see,
            "like_this": self._like_this(job) if may_see else [],
            "payload": pretty(job.payload) if may_see else "",
            "result": pretty(job.result) if may_see and job.result is not None else "",
            "metadata": pretty(job.metadata) if may_see and job.metadata else "",
            "has_result": job.result is not None,
            "buttons": self._buttons(request, job),
            **self._graph(job),
            **logs_of(job, may_see),
        }

    def _facts(self, job: Job, now: Any) -> list[tuple[str, Any]]:
        """Return names and values; where the list of jobs can be filtered by a value, it is a link to that."""
        tick = ScheduleTick.objects.filter(job_id=job.pk).select_related("schedule").first()

        def others(value: Any, parameter: str) -> Any:
            if value in (None, ""):
                return value
            return link(f"{self.list_url('job')}?{urlencode({parameter: value})}", cut(str(value), 130))

        def searched(term: str, value: Any) -> Any:
            text = term_of(term, value) if value not in (None, "") else None
            return link(f"{self.list_url('job')}?{urlencode({'q': text})}", cut(str(value), 130)) if text else value

        facts: list[tuple[str, Any]] = [
            (_("Job type"), link(self.type_url(job.job_type), cut(job.job_type, 130))),
            (_("Queue"), others(job.queue, "queue")),
            (_("Priority"), job.priority),
            (_("Retries"), _("%(made)s of %(allowed)s") % {"made": job.retry_count, "allowed": job.max_retries}),
            (_("Timeout"), duration(job.timeout_seconds)),
            (_("Worker process"), self._worker(job.worker_id)),
            (_("Crashes"), job.crash_count or None),
            (_("Unique key"), searched("key", job.unique_key)),
            (_("Limit key"), searched("limit", job.limit_key)),
            (_("Fair key"), searched("fair", job.fair_key)),
            (_("Held back by"), job.held_back_by),
            (_("Held back until"), moment(job.held_back_until, now) if job.held_back_until else None),
            (_("Schedule"), others(tick.schedule.name, "schedule") if tick else None),
            (_("Due"), _due(job, now)),
        ]
        return [(name, value) for name, value in facts if value not in (None, "")]

    def _worker(self, process_id: str | None) -> Any:
        return link(self.object_url("workerprocess", process_id), code(process_id, 128)) if process_id else None

    def _like_this(self, job: Job) -> list[tuple[str, str]]:
        """Return searches, each with its address, for the jobs that share a value of the payload or the metadata."""
        found = []
        for root, values in (("", masked(job.payload)), ("metadata.", masked(job.metadata))):
            if not root and encrypts_type(job.job_type):
                continue  # no search finds what is encrypted
            for name, value in dict_of(values).items():
                if term := term_of(f"{root}{name}", value):
                    found.append((cut(term, 80), f"{self.list_url('job')}?{urlencode({'q': term})}"))
        return found[:MOST_LINKS]

    def _buttons(self, request: HttpRequest, job: Job) -> list[Button]:
        """Return the operations that the job's status and the user's permissions allow."""
        buttons = []
        if job.status in ENDED_BADLY and self.has_replay_permission(request):
            buttons.append(Button("replay_selected", _("Replay"), "default"))
            if job.steps.exists():
                buttons.append(Button("replay_selected", _("Replay from the start"), option="from_start"))
        waits_for_event = job.status in LIVE and _waits_for_event(job)
        # A run before the event comes would wait for it anew.
        if job.status == JobStatus.SCHEDULED and not waits_for_event and self.has_replay_permission(request):
            buttons.append(Button("run_selected_now", _("Run now"), "default"))
        if waits_for_event and self.has_send_event_permission(request):
            buttons.append(Button("send_event_selected", _("Send this event…")))
        if job.status in WAITING and self.has_reorder_permission(request):
            buttons.append(Button("change_selected", _("Change priority or queue…")))
        if job.status in LIVE and job.cancel_requested_at is None and self.has_cancel_permission(request):
            buttons.append(Button("cancel_selected", _("Cancel…"), "jobs-danger"))
        if job.status in WAITING and self.has_discard_permission(request):
            buttons.append(Button("discard_selected", _("Discard…"), "jobs-danger"))
        if (
            job.status in TERMINAL
            and self.has_remove_permission(request)
            and may_go(Job.objects.filter(pk=job.pk)).exists()
        ):
            buttons.append(Button("delete_selected", _("Delete…"), "jobs-danger"))
        return buttons

    def _batch(self, job: Job) -> list[tuple[str, Any]]:
        """Return the batch of a member or callback with its link; it may have been deleted."""
        batch = Batch.objects.filter(pk=job.batch_id).first() if job.batch_id else None
        return [(_("Batch"), link(self.object_url("batch", batch.pk), cut(str(batch), 80)))] if batch else []

    def _attempt(self, attempt: Any) -> dict[str, Any]:
        ran = (attempt.ended_at - attempt.started_at).total_seconds() if attempt.started_at else None
        return {
            "attempt": attempt,
            "took": duration(ran),
            "worker": self._worker(attempt.worker_id),
            "error": cut(attempt.error, 2_000),
            "is_bad": attempt.outcome in FAILURES,
            "traceback": cut(attempt.traceback, LONGEST_TEXT),
        }

    def _step(self, step: JobStep, may_see: bool) -> dict[str, Any]:
        took = (step.ended_at - step.started_at).total_seconds() if step.ended_at else None
        has_children = step.kind == StepKind.CHILDREN and step.event_key
        return {
            "step": step,
            "state": STEP_STATES[step.state],
            "url": self.object_url("batch", step.event_key) if has_children else "",
            "took": duration(took) if took is not None else "",
            "result": pretty(step.result) if may_see and step.result is not None else "",
        }

    def _dead_letters(self, job: Job, now: Any) -> list[dict[str, Any]]:
        return [
            {
                "url": self.object_url("deadletter", dead_letter.pk),
                "dead_letter": dead_letter,
                "state": dead_letter_badge(dead_letter),
                "died": moment(dead_letter.died_at, now),
            }
            for dead_letter in job.dead_letters.order_by("-pk").defer("traceback")[:10]
        ]

    def _edges(self, edges: QuerySet[Any], end: str) -> dict[str, Any]:
        """Return the first edges of one direction, each with a link to the job at its other end."""
        found = list(edges.defer(*(f"{end}__{name}" for name in HEAVY)).order_by(f"{end}_id")[: MOST_EDGES + 1])
        rows = [(edge, getattr(edge, end)) for edge in found[:MOST_EDGES]]
        return {
            "rows": [
                {"url": self.object_url("job", job.pk), "job": job, "status": status_badge(job), "edge": edge}
                for edge, job in rows
            ],
            "more": len(found) > MOST_EDGES,
        }

    def _graph(self, job: Job) -> dict[str, Any]:
        graph = graph_of(job)
        if len(graph.nodes) < 2:
            return {"graph": ""}
        picture = draw(graph, job.pk, lambda pk: self.object_url("job", pk), _("Dependency graph"))
        root = root_cause(graph, job.pk)
        return {
            "graph": picture,
            "graph_truncated": graph.truncated,
            "graph_size": len(graph.nodes),
            "root_cause": root and {"job": root, "url": self.object_url("job", root.pk), "status": status_badge(root)},
        }


def _is_open_ended(job: Job, now: Any) -> bool:
    """Say whether nothing but an event ends a job's wait: a time to wait for is never so far away."""
    return job.status == JobStatus.SCHEDULED and bool((job.available_at - now).total_seconds() > 2 * LONGEST_SECONDS)


def _timeline(job: Job, now: Any) -> list[Step]:
    """Return what happened to the job, in order; attempts that did not complete have a list of their own."""
    steps = [Step(_("Submitted"), job.created_at)]
    ended_before = job.scheduled_at and job.finished_at and job.scheduled_at > job.finished_at  # a wait for an event
    if job.scheduled_at and not ended_before:
        steps.append(Step(_("Scheduled for"), job.scheduled_at))
    if job.available_at > job.created_at and job.available_at != job.scheduled_at and not _is_open_ended(job, now):
        # A job that ran, or still runs, was due before that; one that waits again is due after it.
        is_over = job.started_at is not None and job.started_at >= job.available_at
        steps.append(Step(_("Due for its last run") if is_over else _("Due"), job.available_at))
    if job.started_at:
        wait = (job.started_at - job.available_at).total_seconds() if job.available_at else 0
        note = _("waited %(span)s") % {"span": duration(wait)} if wait > 0 else ""
        steps.append(Step(_("Started"), job.started_at, note))
    if job.cancel_requested_at:
        steps.append(Step(_("Asked to stop"), job.cancel_requested_at))
    if job.finished_at:
        ran = (job.finished_at - job.started_at).total_seconds() if job.started_at else None
        note = _("after %(span)s") % {"span": duration(ran)} if ran is not None else ""
        steps.append(Step(str(job.get_status_display()).capitalize(), job.finished_at, note))
    return sorted(steps, key=lambda step: step.when)


def _waits_for_event(job: Job) -> bool:
    return job.steps.filter(kind=StepKind.EVENT, ended_at=None).exists()


def _due(job: Job, now: Any) -> Any:
    if job.status != JobStatus.SCHEDULED:
        return None
    return _("waits for an event") if _is_open_ended(job, now) else moment(job.available_at, now)
