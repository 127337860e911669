"""The filters of the lists. Their choices are names that are known, not a DISTINCT over every job."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_jobs.conf import get_settings
from django_jobs.db.transactions import database_now
from django_jobs.due import queues_with_work
from django_jobs.handlers import registry
from django_jobs.models import DeadLetterReason, Job, JobStatus, Queue, Schedule, ScheduleTick, WorkerProcess

from .paging import OLDEST_FIRST, SORT
from .selection import note
from .widgets import cut

NEWEST = 1_000
MOST_CHOICES = 100
AGES = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
OPEN = {"acknowledged_at__isnull": True, "replayed_at__isnull": True}
STATES: dict[str, dict[str, Any]] = {
    "acknowledged": {"acknowledged_at__isnull": False},
    "replayed": {"replayed_at__isnull": False},
    "all": {},
}
Choices = Iterable[tuple[str, Any]]


class ChoiceFilter(admin.SimpleListFilter):
    """Keep the rows with the chosen value; one that is not among the choices is added, so that a link to it works."""

    path = ""  # of the column; where it is empty, the parameter's name is that of the column

    def known(self, request: HttpRequest) -> Choices:
        """Return the choices as (value, label)."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        choices: dict[str, Any] = dict(list(self.known(request))[:MOST_CHOICES])
        value = request.GET.get(str(self.parameter_name))
        if value and value not in choices:
            choices[value] = cut(value, 60)
        return list(choices.items())

    def lookups_of(self, value: str) -> dict[str, Any]:
        """Return what a choice means, as values of JSON; nothing where it narrows nothing."""
        return {self.path or str(self.parameter_name): value}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        lookups = self.lookups_of(value) if value else {}
        note(request, lookups)
        return queryset.filter(**lookups) if lookups else queryset


def queue_names(request: HttpRequest) -> list[str]:
    """Return the queues that a setting, a row, a handler, a ready job or one of the newest jobs names."""
    names = {*get_settings().QUEUES, *Queue.objects.values_list("name", flat=True), *queues_with_work()}
    names |= {handler.queue for handler in registry if handler.queue}
    names |= {queue for queue, _job_type in newest_names(request)}
    return sorted(names)


def newest_names(request: HttpRequest) -> list[tuple[str, str]]:
    """Return queue and job type of the newest jobs, read once in a request."""
    names: list[tuple[str, str]] | None = getattr(request, "console_names", None)
    if names is None:
        names = list(Job.objects.order_by("-pk").values_list("queue", "job_type")[:NEWEST])
        request.console_names = names  # type: ignore[attr-defined]
    return names


class StatusFilter(ChoiceFilter):
    title = _("status")
    parameter_name = "status"

    def known(self, request: HttpRequest) -> Choices:
        return JobStatus.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        kept = super().queryset(request, queryset)
        return kept.pending() if self.value() == JobStatus.PENDING else kept  # type: ignore[attr-defined]


class QueueFilter(ChoiceFilter):
    title = _("queue")
    parameter_name = "queue"

    def known(self, request: HttpRequest) -> Choices:
        return ((name, name) for name in queue_names(request))


class TypeFilter(ChoiceFilter):
    title = _("job type")
    parameter_name = "job_type"

    def known(self, request: HttpRequest) -> Choices:
        newest = (job_type for _queue, job_type in newest_names(request))
        return ((name, name) for name in sorted({*registry.job_types(), *newest}))


class WorkerFilter(ChoiceFilter):
    """By the worker process that runs the job or ran it last."""

    title = _("worker process")
    parameter_name = "worker_id"

    def known(self, request: HttpRequest) -> Choices:
        return ((pk, pk) for pk in WorkerProcess.objects.values_list("pk", flat=True)[:MOST_CHOICES])


class AgeFilter(ChoiceFilter):
    """By age on the database's clock."""

    title = _("age")
    parameter_name = "age"
    path = "created_at"

    def known(self, request: HttpRequest) -> Choices:
        return (("1h", _("last hour")), ("24h", _("last 24 hours")), ("7d", _("last 7 days")))

    def lookups_of(self, value: str) -> dict[str, Any]:
        span = AGES.get(value)
        return {f"{self.path}__gte": (database_now() - span).isoformat()} if span else {}


class DiedFilter(AgeFilter):
    title = _("died")
    path = "died_at"


class ScheduleFilter(ChoiceFilter):
    """By the schedule whose tick submitted the job."""

    title = _("schedule")
    parameter_name = "schedule"

    def known(self, request: HttpRequest) -> Choices:
        return ((name, name) for name in Schedule.objects.values_list("name", flat=True)[:MOST_CHOICES])

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        note(request, {"schedule": self.value()})
        return queryset.filter(pk__in=ScheduleTick.objects.filter(schedule__name=self.value()).values("job_id"))


class BatchFilter(ChoiceFilter):
    """The members of a batch. It shows only when a link has set it."""

    title = _("batch")
    parameter_name = "batch"
    path = "membership__batch"

    def known(self, request: HttpRequest) -> Choices:
        return ()


class OrderFilter(admin.SimpleListFilter):
    """The order of the list, by key or among the newest rows; the list itself sorts."""

    title = _("order")
    parameter_name = SORT

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        labels = {"run": _("longest run first"), "wait": _("longest wait first"), "retries": _("most retries first")}
        return [
            (OLDEST_FIRST, _("oldest first")),
            *((name, labels[name]) for name in getattr(model_admin, "orders", ())),
        ]

    def choices(self, changelist: Any) -> Any:
        """Offer `newest first` where other filters offer `all`."""
        for choice in super().choices(changelist):
            if choice["query_string"] == changelist.get_query_string(remove=[self.parameter_name]):
                choice["display"] = _("newest first")
            yield choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset


class StateFilter(admin.SimpleListFilter):
    """Keep the open dead letters unless another state is chosen."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        return [("acknowledged", _("acknowledged")), ("replayed", _("replayed")), ("all", _("all"))]

    def choices(self, changelist: Any) -> Any:
        """Offer `open` where other filters offer `all`: it is what no parameter means."""
        for choice in super().choices(changelist):
            if choice["query_string"] == changelist.get_query_string(remove=[self.parameter_name]):
                choice["display"] = _("open")
            yield choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        lookups = STATES.get(self.value() or "", OPEN)
        note(request, lookups)
        return queryset.filter(**lookups)


class ReasonFilter(ChoiceFilter):
    title = _("reason")
    parameter_name = "reason__exact"
    path = "reason"

    def known(self, request: HttpRequest) -> Choices:
        return DeadLetterReason.choices


class FingerprintFilter(ChoiceFilter):
    """By fingerprint; `-` stands for dead letters without one. It shows only when a link has set it."""

    title = _("fingerprint")
    parameter_name = "fingerprint"

    def known(self, request: HttpRequest) -> Choices:
        return ()

    def lookups_of(self, value: str) -> dict[str, Any]:
        return {"fingerprint": "" if value == "-" else value}
