"""Worker processes: which are alive, what each runs and how well it is, those that are gone, and the request to stop."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.formats import number_format
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, ngettext_lazy

from django_jobs.conf import get_settings
from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import database_now
from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.leases import ask_to_stop
from django_jobs.lifecycle.moved import Moved
from django_jobs.models import Attempt, Ending, GoneProcess, Job, JobStatus, WorkerProcess
from django_jobs.models.fields import DbNow

from .base import RowAdmin
from .operations import Act, Chunk, OperatingAdmin
from .paging import REFRESH_SECONDS, window_floor
from .widgets import badge, code, cut, duration, link, moment, progress_bar, two_lines, with_detail

MOST_ATTEMPTS = 50
MOST_RUNNING = 100
BAD_ENDINGS = frozenset({Ending.KILLED, Ending.SILENT, Ending.HOST_SILENT, Ending.LEASE_LOST})


def _stop(chunk: Chunk) -> Moved:
    notified = [process_id for process_id in chunk.ids if ask_to_stop(process_id)]
    gone = set(chunk.ids) - set(notified)
    return Moved(notified, {process_id: JobsError(f"worker process {process_id!r} is gone") for process_id in gone})


STOP = Act(
    title=gettext_lazy("Ask worker processes to stop"),
    permission="stop_workerprocess",
    run=_stop,
    done=ngettext_lazy(
        "Asked %(count)s worker process to stop.", "Asked %(count)s worker processes to stop.", "number"
    ),
    needs_confirmation=True,
    help=gettext_lazy(
        "Each finishes what it runs, hands back the rest, and leaves. Its supervisor may start another one."
    ),
)


class ProcessPages(RowAdmin):
    """What the pages of living and of gone processes share."""

    change_form_template = "admin/django_jobs/worker_page.html"

    def row_title(self, row: Any) -> str:
        return cut(row.pk, 128)

    def queue_text(self, row: Any) -> str:
        """Return the queues of a process as text."""
        names = [str(name) for name in row.queues] if isinstance(row.queues, list) else []
        return ", ".join(names) if names else _("all queues")

    def attempts(self, row: Any, now: Any) -> list[dict[str, Any]]:
        """Return the newest attempts that did not complete on a process, among the newest WINDOW attempts."""
        # By key: an index on the process would be written for every failed attempt, to be read now and then.
        found = Attempt.objects.filter(worker_id=row.pk)
        floor = window_floor(Attempt.objects.all())
        found = found if floor is None else found.filter(pk__gte=floor)
        newest = found.select_related("job").only(
            "number", "started_at", "ended_at", "outcome", "error", "job__id", "job__job_type"
        )  # fmt: skip
        return [
            {
                "attempt": attempt,
                "job": link(self.object_url("job", attempt.job_id), code(attempt.job.job_type, 80)),
                "took": duration(
                    (attempt.ended_at - attempt.started_at).total_seconds() if attempt.started_at else None
                ),
                "when": moment(attempt.ended_at, now),
                "error": cut(attempt.error, 200),
            }
            for attempt in newest.order_by("-pk")[:MOST_ATTEMPTS]
        ]

    def facts(self, row: Any, now: Any) -> list[tuple[str, Any]]:
        """Return names and values that both kinds of processes have."""
        return [
            (_("Host"), row.host),
            (_("Process number"), str(row.pid)),
            (_("Release"), row.release),
            (_("Queues"), cut(self.queue_text(row), 1_000)),
            (_("Threads"), number_format(row.threads)),
            (_("Jobs done"), number_format(row.jobs_done)),
            (_("Started"), moment(row.started_at, now)),
            (_("Last heartbeat"), moment(row.heartbeat_at, now)),
        ]

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        now = database_now()
        jobs = f"{self.list_url('job')}?{urlencode({'worker_id': row.pk})}"
        facts = [(name, value) for name, value in self.facts(row, now) if value not in (None, "")]
        return {"row": row, "now": now, "facts": facts, "attempts": self.attempts(row, now), "jobs_url": jobs}


@admin.register(WorkerProcess)
class WorkerProcessAdmin(ProcessPages, OperatingAdmin):
    """The pages of the worker processes that are registered."""

    list_display = ("process", "state", "work", "started")
    actions = ("stop_selected",)
    change_list_template = "admin/django_jobs/worker_list.html"
    empty_text = gettext_lazy("Worker processes would be here while they run. Start one with “manage.py runworkers”.")
    ordering = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkerProcess]:
        running = Job.objects.filter(worker_id=OuterRef("pk"), status=JobStatus.RUNNING).order_by().values("worker_id")
        count = Coalesce(Subquery(running.annotate(number=Count("pk")).values("number")), 0)
        return super().get_queryset(request).annotate(running=count, read_at=DbNow())  # type: ignore[no-any-return]

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return self.may(request, STOP.permission)

    @admin.action(description=gettext_lazy("Ask to stop…"), permissions=["stop"])
    def stop_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, STOP)

    @admin.display(description=gettext_lazy("worker process"))
    def process(self, obj: Any) -> str:
        """Show the name, and below the queues and the release."""
        about = f"{self.queue_text(obj)} · {obj.release}" if obj.release else self.queue_text(obj)
        return with_detail(link(self.object_url("workerprocess", obj.pk), code(obj.pk, 128)), cut(about, 200))

    @admin.display(description=gettext_lazy("state"))
    def state(self, obj: Any) -> str:
        return _state_badge(obj, obj.read_at)

    @admin.display(description=gettext_lazy("work"))
    def work(self, obj: Any) -> str:
        """Show how many of its threads run a job, how fast it is, and how many look for no work."""
        query = urlencode({"status": "running", "worker_id": obj.pk})
        about = _("%(rate)s jobs/s") % {"rate": number_format(obj.jobs_per_second, 1)}
        if silent := obj.silent_threads:
            text = ngettext("%(count)s silent thread", "%(count)s silent threads", silent)
            about = f"{about} · {text % {'count': number_format(silent)}}"
        return two_lines(link(f"{self.list_url('job')}?{query}", _threads_text(obj, obj.running)), about)

    @admin.display(description=gettext_lazy("started"))
    def started(self, obj: Any) -> str:
        return moment(obj.started_at, obj.read_at)

    def whole_rows(self) -> QuerySet[Any]:
        return WorkerProcess.objects.all()

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        """Lead to what is left of the process: a link to it may be older than its end."""
        gone = self.find(GoneProcess.objects.all(), unquote(object_id))
        if gone is not None:
            return HttpResponseRedirect(self.object_url("goneprocess", gone.pk))
        return super()._get_obj_does_not_exist_redirect(request, opts, object_id)

    def facts(self, row: Any, now: Any) -> list[tuple[str, Any]]:
        # Asked of the server, which knows those of the handlers, too; a beat that counted them would cost every process.
        sessions = dialect().count_sessions(row.pk)
        return [
            *super().facts(row, now),
            (_("Lease ends"), moment(row.lease_expires_at, now) if row.lease_expires_at else _("it is over")),
            (_("Asked to stop"), moment(row.stopping_at, now) if row.stopping_at else None),
            (_("Jobs a second"), number_format(row.jobs_per_second, 1)),
            (_("Connections"), number_format(sessions) if sessions else None),
            (_("Memory"), _("%(number)s MB") % {"number": number_format(row.memory_mb)} if row.memory_mb else None),
            (_("Silent threads"), number_format(row.silent_threads) if row.silent_threads else None),
        ]

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        context = super().row_context(request, row)
        now = context["now"]
        jobs = Job.objects.held_by(row.pk).order_by("pk").only(
            "job_type", "status", "started_at", "progress", "progress_message", "cancel_requested_at"
        )[: MOST_RUNNING + 1]  # fmt: skip
        running = [
            {
                "job": link(self.object_url("job", job.pk), code(job.job_type, 80)),
                "since": duration((now - job.started_at).total_seconds() if job.started_at else None),
                "progress": progress_bar(job.progress, job.progress_message),
            }
            for job in jobs
        ]
        return {
            **context,
            "state": _state_badge(row, now),
            "words": _threads_text(row, len(running)),
            "running": running[:MOST_RUNNING],
            "is_alive": True,
            "refresh": REFRESH_SECONDS,
            "may_stop": self.has_stop_permission(request) and row.stopping_at is None,
        }


@admin.register(GoneProcess)
class GoneProcessAdmin(ProcessPages):
    """The pages of the worker processes that ended within the last week."""

    list_display = ("process", "ending_text", "held_text", "ended")
    search_fields = ("id",)
    search_help_text = gettext_lazy("Search by the start of a name: host, or host:number.")
    empty_text = gettext_lazy("Worker processes that ended within the last week would be here, with what they held.")
    ordering = ("-pk",)
    change_list_template = "admin/django_jobs/plain_list.html"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may(request, "view_workerprocess")

    def get_queryset(self, request: HttpRequest) -> QuerySet[GoneProcess]:
        return super().get_queryset(request).annotate(read_at=DbNow())  # type: ignore[no-any-return]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (queryset.filter(Q(pk__startswith=term) | Q(host=term)) if term else queryset), False

    @admin.display(description=gettext_lazy("worker process"))
    def process(self, obj: Any) -> str:
        about = f"{self.queue_text(obj)} · {obj.release}" if obj.release else self.queue_text(obj)
        return with_detail(link(self.object_url("goneprocess", obj.pk), code(obj.pk, 128)), cut(about, 200))

    @admin.display(description=gettext_lazy("ending"))
    def ending_text(self, obj: Any) -> str:
        return _ending_badge(obj)

    @admin.display(description=gettext_lazy("work"))
    def held_text(self, obj: Any) -> str:
        return two_lines(_held_text(obj), _("%(count)s jobs done") % {"count": number_format(obj.jobs_done)})

    @admin.display(description=gettext_lazy("ended"))
    def ended(self, obj: Any) -> str:
        return moment(obj.ended_at, obj.read_at)

    def whole_rows(self) -> QuerySet[Any]:
        return GoneProcess.objects.all()

    def facts(self, row: Any, now: Any) -> list[tuple[str, Any]]:
        return [*super().facts(row, now), (_("Ended"), moment(row.ended_at, now))]

    def row_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        context = super().row_context(request, row)
        return {**context, "state": _ending_badge(row), "words": _held_text(row)}


def _threads_text(row: Any, running: int) -> str:
    words = {"running": number_format(running), "threads": number_format(row.threads)}
    return _("running %(running)s, threads %(threads)s") % words


def _held_text(row: GoneProcess) -> str:
    if not row.held:
        return _("held no job")
    text = ngettext("%(count)s job was taken back", "%(count)s jobs were taken back", row.held)
    return text % {"count": number_format(row.held)}


def _ending_badge(row: GoneProcess) -> str:
    return badge("dead" if row.ending in BAD_ENDINGS else "replayed", row.get_ending_display())


def _state_badge(row: Any, now: Any) -> str:
    """Show whether a process is well; its silence shows long before its lease ends."""
    if row.lease_expires_at is None or row.lease_expires_at <= now:
        return badge("dead", _("lease expired"))
    silent = now - row.heartbeat_at
    if silent > timedelta(seconds=get_settings().LEASE_SECONDS / 2):
        return badge("late", _("silent for %(span)s") % {"span": duration(silent.total_seconds())})
    return badge("stopping", _("asked to stop")) if row.stopping_at else badge("alive", _("alive"))
