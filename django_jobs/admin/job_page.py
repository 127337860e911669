"""The page of one job: how it went, what it was given and gave back, what it waits for, and what can be done."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib.admin.utils import quote, unquote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.urls import reverse
from django.utils.translation import gettext as _

from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import Job, ScheduleTick
from django_jobs.models.graph import graph_of
from django_jobs.models.job import ENDED_BADLY, LIVE

from .graph import draw
from .masking import pretty
from .operate import OperatingAdmin
from .paging import REFRESH_SECONDS
from .widgets import cut, lasted, letter_badge, moment, progress_bar, status_badge

LONGEST_TEXT = 50_000
MOST_ATTEMPTS = 50
MOST_EDGES = 100


class Step(NamedTuple):
    """One line of the timeline."""

    what: str
    when: Any
    note: str = ""


class Button(NamedTuple):
    """One thing that can be done with this job now."""

    action: str
    label: str
    kind: str = ""


class JobPage(OperatingAdmin):
    """The page of one job."""

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one job."""
        self.require(request, "view_job")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        job = Job.objects.filter(pk=unquote(object_id)).first() if "\x00" not in object_id else None
        if job is None:
            return self.not_found(request, object_id)
        now = database_now()
        may_see = self.may(request, "view_payload")
        attempts = list(job.attempts.order_by("-pk")[: MOST_ATTEMPTS + 1])
        context = {
            "original": job,
            "object_id": job.pk,
            "change": True,
            "job": job,
            "now": now,
            "refresh": REFRESH_SECONDS if job.status in LIVE else 0,
            "status": status_badge(job),
            "progress": progress_bar(job.progress, job.progress_message) if job.status == "running" else "",
            "error": cut(job.error, LONGEST_TEXT),
            "timeline": _timeline(job),
            "facts": self._facts(job, now),
            "attempts": [_attempt(attempt) for attempt in attempts[:MOST_ATTEMPTS]],
            "more_attempts": len(attempts) > MOST_ATTEMPTS,
            "letters": [
                self._letter(letter, now) for letter in job.dead_letters.order_by("-pk").defer("traceback")[:10]
            ],
            "dependencies": self._edges(job.dependencies.select_related("depends_on"), "depends_on"),
            "dependents": self._edges(job.dependents.select_related("job"), "job"),
            "may_see": may_see,
            "payload": pretty(job.payload) if may_see else "",
            "result": pretty(job.result) if may_see and job.result is not None else "",
            "metadata": pretty(job.metadata) if may_see and job.metadata else "",
            "has_result": job.result is not None,
            "has_metadata": bool(job.metadata),
            "buttons": self._buttons(request, job),
            "list_url": self.list_url("job"),
            "history_url": reverse(f"{self.admin_site.name}:django_jobs_job_history", args=(quote(job.pk),)),
            **self._graph(job),
        }
        return self.page(request, "admin/django_jobs/job_page.html", cut(job.job_type, 100), context)

    def _buttons(self, request: HttpRequest, job: Job) -> list[Button]:
        """Return the operations that the job's status and the user's rights allow."""
        buttons = []
        if job.status in ENDED_BADLY and self.may(request, "replay_deadletter"):
            buttons.append(Button("replay_selected", _("Replay"), "default"))
        if job.status == "scheduled" and self.may(request, "replay_deadletter"):
            buttons.append(Button("run_selected_now", _("Run now"), "default"))
        if job.status in ("pending", "scheduled") and self.may(request, "change_job"):
            buttons.append(Button("change_selected", _("Change priority or queue…")))
        if job.status in LIVE and job.cancel_requested_at is None and self.may(request, "cancel_job"):
            buttons.append(Button("cancel_selected", _("Cancel…"), "jobs-danger"))
        return buttons

    def _facts(self, job: Job, now: Any) -> list[tuple[str, Any]]:
        tick = ScheduleTick.objects.filter(job_id=job.pk).select_related("schedule").first()
        facts: list[tuple[str, Any]] = [
            (_("Queue"), job.queue),
            (_("Priority"), job.priority),
            (_("Retries"), _("%(made)s of %(allowed)s") % {"made": job.retry_count, "allowed": job.max_retries}),
            (_("Timeout"), lasted(job.timeout_seconds)),
            (_("Worker process"), job.worker_id),
            (_("Crashes"), job.crash_count or None),
            (_("Unique key"), job.unique_key),
            (_("Schedule"), tick.schedule.name if tick else None),
            (_("Due"), moment(job.available_at, now) if job.status == "scheduled" else None),
        ]
        return [(name, value) for name, value in facts if value not in (None, "")]

    def _letter(self, letter: Any, now: Any) -> dict[str, Any]:
        url = self.object_url("deadletter", letter.pk)
        return {"url": url, "letter": letter, "state": letter_badge(letter), "died": moment(letter.died_at, now)}

    def _edges(self, edges: QuerySet[Any], end: str) -> dict[str, Any]:
        """Return the first edges of one direction, each with a link to its other end."""
        heavy = [f"{end}__{name}" for name in ("payload", "result", "error", "metadata")]
        found = list(edges.defer(*heavy).order_by(f"{end}_id")[: MOST_EDGES + 1])
        rows = []
        for edge in found[:MOST_EDGES]:
            other = getattr(edge, end)
            url = self.object_url("job", other.pk)
            rows.append({"url": url, "job": other, "status": status_badge(other), "edge": edge})
        return {"rows": rows, "more": len(found) > MOST_EDGES}

    def _graph(self, job: Job) -> dict[str, Any]:
        graph = graph_of(job)
        if len(graph.nodes) < 2:
            return {"graph": ""}
        picture = draw(graph, job.pk, lambda pk: self.object_url("job", pk), _("Dependency graph"))
        return {"graph": picture, "graph_truncated": graph.truncated, "graph_size": len(graph.nodes)}


def _timeline(job: Job) -> list[Step]:
    """Return what happened to the job, in order; attempts that did not complete have a list of their own."""
    steps = [Step(_("Submitted"), job.created_at)]
    if job.scheduled_at:
        steps.append(Step(_("Scheduled for"), job.scheduled_at))
    if job.available_at and job.available_at > job.created_at:
        steps.append(Step(_("Due for its last run") if job.started_at else _("Due"), job.available_at))
    if job.started_at:
        wait = (job.started_at - job.available_at).total_seconds() if job.available_at else 0
        steps.append(
            Step(_("Started"), job.started_at, _("waited %(span)s") % {"span": lasted(wait)} if wait > 0 else "")
        )
    if job.cancel_requested_at:
        steps.append(Step(_("Asked to stop"), job.cancel_requested_at))
    if job.finished_at:
        ran = (job.finished_at - job.started_at).total_seconds() if job.started_at else None
        note = _("after %(span)s") % {"span": lasted(ran)} if ran is not None else ""
        steps.append(Step(str(job.get_status_display()).capitalize(), job.finished_at, note))
    order = sorted(range(len(steps)), key=lambda index: (steps[index].when, index))
    return [steps[index] for index in order]


def _attempt(attempt: Any) -> dict[str, Any]:
    span = (attempt.ended_at - attempt.started_at).total_seconds() if attempt.started_at else None
    return {
        "attempt": attempt,
        "took": lasted(span),
        "error": cut(attempt.error, 2_000),
        "traceback": cut(attempt.traceback, LONGEST_TEXT),
    }
