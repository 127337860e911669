"""The pages of job types: how the runs of one usually go, how they go today, and what its code says."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.utils import quote, unquote
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.formats import date_format, number_format
from django.utils.http import urlencode
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from django_jobs import stats
from django_jobs.db.transactions import database_now
from django_jobs.handlers import Handler, registry
from django_jobs.models import Job, Schedule
from django_jobs.submission import DEFAULT_QUEUE

from .charts import bars_of, chart
from .job_form import JobForms
from .paging import REFRESH_SECONDS
from .widgets import SHORT, code, cut, duration, link, moment

HOURS, DAYS = 24, 14
LISTED = 10
TELLING = 20  # runs of either span, before they are compared
SLOWER = 1.5
QUARTER = 900  # seconds, with one of which the hours and days of every zone begin
NO_SETTINGS = frozenset({"job_type", "function", "arguments", "queue"})


class JobTypePages(JobForms):
    """The list of job types, and the page of each; part of the admin of jobs."""

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        # No job's address begins so: in a quoted key `_` stands before two hexadecimal digits.
        return [
            path("_types/", view(self.types_view), name="django_jobs_job_types"),
            path("_types/<str:job_type>/", view(self.type_view), name="django_jobs_job_type"),
            *super().get_urls(),
        ]

    def type_url(self, job_type: str) -> str:
        """Return the address of a type's page."""
        return self.url("job_type", quote(job_type))

    @method_decorator(require_safe)
    def types_view(self, request: HttpRequest) -> HttpResponse:
        """List the job types that the code knows and those of the newest runs."""
        self.require(request, "view_job")
        now, floor = database_now(), stats.window_floor()
        by_type: dict[str, list[stats.Run]] = {name: [] for name in registry.job_types()}
        runs = stats.newest_runs(floor)
        for one in runs:
            by_type.setdefault(one.job_type, []).append(one)
        rows = [
            {"name": name, "url": self.type_url(name), "known": registry.find(name) is not None, **_figures(found)}
            for name, found in sorted(by_type.items())
        ]
        context = {"rows": rows, "now": now, "since": _since(runs), "list_url": self.list_url("job")}
        return self.page(request, "job_types.html", _("Job types"), context)

    @method_decorator(require_safe)
    def type_view(self, request: HttpRequest, job_type: str) -> HttpResponse:
        """Show the runs of one type by hour and by day, its slowest and its newest failed ones, its settings and schedules."""
        self.require(request, "view_job")
        name = unquote(job_type).replace("\x00", "")
        now = database_now()
        runs = stats.newest_runs(stats.window_floor(), name)
        today, before = _split(runs, localtime(now).replace(hour=0, minute=0, second=0, microsecond=0), now)
        handler = registry.find(name)
        minutes = _minutes(runs)
        deploys = stats.deploys(now - timedelta(days=DAYS))
        context = {
            "name": name,
            "now": now,
            "refresh": REFRESH_SECONDS,
            "types_url": self.url("job_types"),
            "new_url": self.url("job_new", quote(name)) if self.may_make(request, name) else "",
            "jobs_url": f"{self.list_url('job')}?{urlencode({'job_type': name})}",
            "dead_letters_url": f"{self.list_url('deadletter')}?{urlencode({'job_type': name})}",
            "runs": len(runs),
            "since": _since(runs),
            "verdicts": _verdicts(stats.Summary.of(today), stats.Summary.of(before)),
            "spans": [{"name": _("today"), **_figures(today)}, {"name": _("the two weeks before"), **_figures(before)}],
            "hour_chart": chart(bars_of(minutes, now, HOURS, timedelta(hours=1)), _("Last 24 hours"), deploys),
            "day_chart": chart(bars_of(minutes, now, DAYS, timedelta(days=1)), _("Last 14 days"), deploys),
            "hours": _by(runs, "DATETIME_FORMAT", now - timedelta(hours=HOURS), minute=0, second=0, microsecond=0),
            "days": _by(runs, "DATE_FORMAT", now - timedelta(days=DAYS), hour=0, minute=0, second=0, microsecond=0),
            "slowest": self._listed(sorted((one for one in runs if one.run), key=lambda one: -(one.run or 0)), now),
            "failed": self._listed([one for one in runs if not one.is_good], now),
            "doc": inspect.getdoc(handler.function) if handler else "",
            "known": handler is not None,
            "settings": _settings(handler) if handler else [],
            "schedules": [
                (self.object_url("schedule", pk), schedule)
                for pk, schedule in Schedule.objects.filter(job_type=name)
                .order_by("name")
                .values_list("pk", "name")[:50]
            ],
        }
        return self.page(request, "job_type.html", cut(name, 100), context)

    def _listed(self, runs: list[stats.Run], now: datetime) -> list[dict[str, Any]]:
        first = runs[:LISTED]
        jobs = Job.objects.filter(pk__in=[one.pk for one in first]).annotate(short_error=Left("error", SHORT * 2))
        errors = dict(jobs.values_list("pk", "short_error"))
        return [
            {
                "job": link(self.object_url("job", one.pk), code(one.pk, 64)),
                "took": duration(one.run),
                "when": moment(one.finished_at, now),
                "error": cut(errors.get(one.pk)),
            }
            for one in first
        ]


def _figures(runs: list[stats.Run]) -> dict[str, Any]:
    summary = stats.Summary.of(runs)

    def text(seconds: tuple[float | None, ...]) -> str:
        return " / ".join(duration(value) for value in seconds) if seconds[0] is not None else ""

    return {
        "count": number_format(summary.count, force_grouping=True),
        "bad": number_format(summary.bad, force_grouping=True) if summary.bad else "",
        "wait": text(summary.wait),
        "run": text(summary.run),
    }


def _since(runs: list[stats.Run]) -> datetime | None:
    """Return when the oldest of the runs ended, when there may be older ones that were not read."""
    return min(one.finished_at for one in runs) if len(runs) >= stats.RUNS else None


def _split(runs: Iterable[stats.Run], midnight: datetime, now: datetime) -> tuple[list[stats.Run], list[stats.Run]]:
    """Return the runs of today, and those of the two weeks before."""
    first = midnight - timedelta(days=DAYS)
    today = [one for one in runs if midnight <= one.finished_at <= now]
    return today, [one for one in runs if first <= one.finished_at < midnight]


def _verdicts(today: stats.Summary, before: stats.Summary) -> list[str]:
    """Say in words how today differs from the two weeks before."""
    if min(today.count, before.count) < TELLING:
        return [_("Too few runs to compare today with the two weeks before.")]
    told = []
    for text, now, then in (
        (
            _("Today's runs take %(times)s times as long: %(now)s at the median, %(then)s before."),
            today.run[0],
            before.run[0],
        ),
        (
            _("Today's jobs wait %(times)s times as long: %(now)s at the median, %(then)s before."),
            today.wait[0],
            before.wait[0],
        ),
    ):
        if now and then and now > SLOWER * then:
            told.append(
                text % {"times": number_format(round(now / then, 1), 1), "now": duration(now), "then": duration(then)}
            )
    share, usual = today.bad / today.count, before.bad / before.count
    if share > SLOWER * usual and today.bad > 1:
        words = {"now": number_format(100 * share, 1), "then": number_format(100 * usual, 1)}
        told.append(_("Today %(now)s of 100 runs ended badly, %(then)s before.") % words)
    return told or [_("Today is as usual.")]


def _minutes(runs: Iterable[stats.Run]) -> dict[datetime, tuple[int, int]]:
    """Return how many runs ended well and badly, by the time they ended."""
    minutes: dict[datetime, tuple[int, int]] = {}
    for one in runs:
        good, bad = minutes.get(one.finished_at, (0, 0))
        minutes[one.finished_at] = (good + one.is_good, bad + (not one.is_good))
    return minutes


def _by(runs: Iterable[stats.Run], name: str, first: datetime, **start: int) -> list[dict[str, Any]]:
    """Return the figures of each hour or day that had runs, the newest first; `start` is what its beginning has in common."""
    spans: dict[datetime, list[stats.Run]] = {}
    beginnings: dict[float, datetime] = {}
    for one in runs:
        if one.finished_at < first:
            continue
        quarter = one.finished_at.timestamp() // QUARTER
        if quarter not in beginnings:
            beginnings[quarter] = localtime(one.finished_at).replace(**start)  # type: ignore[arg-type]
        spans.setdefault(beginnings[quarter], []).append(one)
    return [
        {"name": date_format(beginning, name), **_figures(found)}
        for beginning, found in sorted(spans.items(), reverse=True)
    ]


def _settings(handler: Handler) -> list[tuple[str, Any]]:
    """Return the options that hold for jobs of the type in its own queue, as the code names them."""
    queue = handler.queue or DEFAULT_QUEUE
    options = registry.job_options(handler, queue)
    values: dict[str, Any] = {"queue": queue}
    for one in fields(Handler):
        if one.name not in NO_SETTINGS:
            values[one.name] = getattr(options, one.name, getattr(handler, one.name))
    return [(name, _shown(value)) for name, value in values.items() if value not in (None, False, ())]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(one.__name__ if isinstance(one, type) else str(one) for one in value)
    return str(value)
