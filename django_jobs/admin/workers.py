"""Worker processes: which are alive, how many jobs each runs, and the request to stop."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from django_jobs.exceptions import JobsError
from django_jobs.lifecycle.leases import ask_to_stop
from django_jobs.lifecycle.moved import Moved
from django_jobs.models import Job, JobStatus, WorkerProcess
from django_jobs.models.fields import DbNow

from .operations import Chunk, OperatingAdmin, Operation
from .widgets import badge, code, link, moment


def _stop(chunk: Chunk) -> Moved:
    notified = [process_id for process_id in chunk.ids if ask_to_stop(process_id)]
    gone = set(chunk.ids) - set(notified)
    return Moved(notified, {process_id: JobsError(f"worker process {process_id!r} is gone") for process_id in gone})


STOP = Operation(
    title=_("Ask worker processes to stop"),
    permission="stop_workerprocess",
    run=_stop,
    done=ngettext_lazy(
        "Asked %(count)s worker process to stop.", "Asked %(count)s worker processes to stop.", "number"
    ),
    needs_confirmation=True,
    help=_("Each finishes what it runs, hands back the rest, and leaves. Its supervisor may start another one."),
)


@admin.register(WorkerProcess)
class WorkerProcessAdmin(OperatingAdmin):
    """The list of worker processes."""

    list_display = ("process", "state", "heartbeat", "running_jobs", "queue_list", "threads", "started")
    actions = ("stop_selected",)
    change_list_template = "admin/django_jobs/plain_list.html"
    ordering = ("-pk",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkerProcess]:
        running = Job.objects.filter(worker_id=OuterRef("pk"), status=JobStatus.RUNNING).order_by().values("worker_id")
        count = Coalesce(Subquery(running.annotate(number=Count("pk")).values("number")), 0)
        return super().get_queryset(request).annotate(running=count, read_at=DbNow())  # type: ignore[no-any-return]

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return self.may(request, STOP.permission)

    @admin.action(description=_("Ask to stop…"), permissions=["stop"])
    def stop_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self.operate(request, queryset, STOP)

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponse:
        self.require(request, "view_workerprocess")
        return HttpResponseRedirect(self.list_url("workerprocess"))

    @admin.display(description=_("worker process"))
    def process(self, obj: Any) -> str:
        return code(obj.pk, 128)

    @admin.display(description=_("state"))
    def state(self, obj: Any) -> str:
        if obj.lease_expires_at is None or obj.lease_expires_at <= obj.read_at:
            return badge("dead", _("lease expired"))
        return badge("stopping", _("asked to stop")) if obj.stopping_at else badge("alive", _("alive"))

    @admin.display(description=_("last heartbeat"))
    def heartbeat(self, obj: Any) -> str:
        return moment(obj.heartbeat_at, obj.read_at)

    @admin.display(description=_("running"))
    def running_jobs(self, obj: Any) -> str:
        query = urlencode({"status": "running", "worker_id": obj.pk})
        return link(f"{self.list_url('job')}?{query}", obj.running)

    @admin.display(description=_("queues"))
    def queue_list(self, obj: Any) -> str:
        names = [str(name) for name in obj.queues] if isinstance(obj.queues, list) else []
        return code(", ".join(names)) if names else format_html("{}", _("all"))

    @admin.display(description=_("started"))
    def started(self, obj: Any) -> str:
        return moment(obj.started_at, obj.read_at)
