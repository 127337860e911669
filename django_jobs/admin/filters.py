"""The filters of the lists. Their choices come from names that are known, not from a DISTINCT over every job."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_jobs.conf import get_settings
from django_jobs.handlers import registry
from django_jobs.lifecycle.processes import queues_with_work
from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import Job, JobStatus, Queue, Schedule, ScheduleTick, WorkerProcess

from .widgets import cut

NEWEST = 1_000
MOST_CHOICES = 100
AGES = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}


class ChoiceFilter(admin.SimpleListFilter):
    """A filter that keeps a value it does not know as a choice of its own, so that a link to it always works."""

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the choices."""
        raise AssertionError("each filter has its own")

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        """Return the choices, and the value asked for."""
        choices: dict[str, Any] = dict(list(self.known(request))[:MOST_CHOICES])
        asked = request.GET.get(str(self.parameter_name))
        if asked and asked not in choices:
            choices[asked] = cut(asked, 60)
        return list(choices.items())


def queue_names(request: HttpRequest | None = None) -> list[str]:
    """Return the queues that a setting, a row, a handler, a ready job or one of the newest jobs names."""
    names = {*get_settings().QUEUES, *Queue.objects.values_list("name", flat=True), *queues_with_work()}
    names |= {handler.queue for handler in registry if handler.queue}
    names |= {queue for queue, _name in newest_names(request)}
    return sorted(names)


def newest_names(request: HttpRequest | None = None) -> list[tuple[str, str]]:
    """Return queue and job type of the newest jobs, asked for once in a request."""
    names: list[tuple[str, str]] | None = getattr(request, "console_names", None)
    if names is None:
        names = list(Job.objects.order_by("-pk").values_list("queue", "job_type")[:NEWEST])
        if request is not None:
            request.console_names = names  # type: ignore[attr-defined]
    return names


class StatusFilter(ChoiceFilter):
    """By status."""

    title = _("status")
    parameter_name = "status"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the seven statuses."""
        return JobStatus.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the jobs of the status."""
        return queryset.filter(status=self.value()) if self.value() else queryset


class QueueFilter(ChoiceFilter):
    """By queue."""

    title = _("queue")
    parameter_name = "queue"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the known queues."""
        return ((name, name) for name in queue_names(request))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the jobs of the queue."""
        return queryset.filter(queue=self.value()) if self.value() else queryset


class TypeFilter(ChoiceFilter):
    """By job type."""

    title = _("job type")
    parameter_name = "job_type"
    path = "job_type"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the registered job types, and those of the newest jobs."""
        return ((name, name) for name in sorted({*registry.job_types(), *(name for _queue, name in newest_names())}))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the jobs of the type."""
        return queryset.filter(**{self.path: self.value()}) if self.value() else queryset


class LetterTypeFilter(TypeFilter):
    """By the job type of a letter's job."""

    path = "job__job_type"


class WorkerFilter(ChoiceFilter):
    """By the worker process that runs the job or ran it last."""

    title = _("worker process")
    parameter_name = "worker_id"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the worker processes that are there."""
        return ((pk, pk) for pk in WorkerProcess.objects.values_list("pk", flat=True)[:MOST_CHOICES])

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the jobs of the process."""
        return queryset.filter(worker_id=self.value()) if self.value() else queryset


class AgeFilter(ChoiceFilter):
    """By age, on the database's clock."""

    title = _("age")
    parameter_name = "age"
    path = "created_at"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return three spans."""
        return (("1h", _("last hour")), ("24h", _("last 24 hours")), ("7d", _("last 7 days")))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the last hour, day or week."""
        span = AGES.get(self.value() or "")
        return queryset.filter(**{f"{self.path}__gte": database_now() - span}) if span else queryset


class DiedFilter(AgeFilter):
    """By how long ago a letter's job died."""

    title = _("died")
    path = "died_at"


class ScheduleFilter(ChoiceFilter):
    """By the schedule that submitted the job."""

    title = _("schedule")
    parameter_name = "schedule"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return the schedules."""
        return ((name, name) for name in Schedule.objects.values_list("name", flat=True)[:MOST_CHOICES])

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the jobs that its ticks made."""
        if not self.value():
            return queryset
        return queryset.filter(pk__in=ScheduleTick.objects.filter(schedule__name=self.value()).values("job_id"))


class StateFilter(admin.SimpleListFilter):
    """Open letters unless another state is asked for."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        """Return the states; `open` is what no choice means."""
        return [("acknowledged", _("acknowledged")), ("replayed", _("replayed")), ("all", _("all"))]

    def choices(self, changelist: Any) -> Any:
        """Offer `open` where other filters say `all`."""
        for choice in super().choices(changelist):
            if choice["query_string"] == changelist.get_query_string(remove=[self.parameter_name]):
                choice["display"] = _("open")
            yield choice

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the letters in the state."""
        match self.value():
            case "acknowledged":
                return queryset.acknowledged()  # type: ignore[attr-defined,no-any-return]
            case "replayed":
                return queryset.replayed()  # type: ignore[attr-defined,no-any-return]
            case "all":
                return queryset
        return queryset.open()  # type: ignore[attr-defined,no-any-return]


class FingerprintFilter(ChoiceFilter):
    """By fingerprint, when a link asks for one."""

    title = _("fingerprint")
    parameter_name = "fingerprint"

    def known(self, request: HttpRequest) -> Iterable[tuple[str, Any]]:
        """Return nothing: there are too many, and nobody knows one by heart."""
        return ()

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the letters of one kind; `-` stands for those without a fingerprint."""
        value = self.value()
        return queryset.filter(fingerprint="" if value == "-" else value) if value else queryset
