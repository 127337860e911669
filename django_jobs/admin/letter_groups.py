"""Dead letters by what went wrong: one line for each job type, exception and place, with how many and since when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min, QuerySet
from django.db.models.functions import Left, Right
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.urls import path
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_jobs.lifecycle.transactions import database_now
from django_jobs.models import DeadLetter

from .filters import AGES
from .operate import OperatingAdmin
from .widgets import SHORT, cut

MOST_GROUPS = 100
SPANS = (
    ("1h", gettext_lazy("1 hour")),
    ("24h", gettext_lazy("24 hours")),
    ("7d", gettext_lazy("7 days")),
    ("all", gettext_lazy("all")),
)
FRAME = re.compile(r'File "[^"]*?([^"/\\]+)", line (\d+), in ([^\n]+)')


@dataclass(kw_only=True)
class Group:
    """Letters of one kind: how many, first and last seen, the newest of them, and the query that lists them."""

    count: int
    first: datetime
    last: datetime
    newest: Any
    query: str
    place: str


class LetterGroups(OperatingAdmin):
    """The page of groups."""

    def get_urls(self) -> list[Any]:
        """Add the page's address."""
        view = self.admin_site.admin_view(self.groups_view)
        return [path("groups/", view, name="django_jobs_deadletter_groups"), *super().get_urls()]

    def groups_view(self, request: HttpRequest) -> HttpResponse:
        """Show the open letters of a span of time in groups, the largest first."""
        self.require(request, "view_deadletter")
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET"])
        span = request.GET.get("age", "24h")
        span = span if span in dict(SPANS) else "24h"
        now = database_now()
        groups = find_groups(now - AGES[span] if span in AGES else None, {} if span == "all" else {"age": span})
        context = {
            "spans": SPANS,
            "span": span,
            "now": now,
            "groups": groups[:MOST_GROUPS],
            "truncated": len(groups) > MOST_GROUPS,
            "total": sum(group.count for group in groups),
            "list_url": self.list_url("deadletter"),
            "may_replay": self.may(request, "replay_deadletter"),
            "may_acknowledge": self.may(request, "acknowledge_deadletter"),
        }
        return self.page(request, "admin/django_jobs/letter_groups.html", _("Dead letters by cause"), context)


def find_groups(since: datetime | None, parameters: dict[str, str]) -> list[Group]:
    """Return the groups of open letters since a time (None: ever), at most one more than are shown."""
    letters = DeadLetter.objects.open()
    if since is not None:
        letters = letters.filter(died_at__gte=since)
    found = _summed(letters.exclude(fingerprint="").values("fingerprint"))
    # Without a fingerprint there was no exception: a crash, no handler. Reason and job type say as much.
    found += _summed(letters.filter(fingerprint="").values("reason", "job__job_type"))
    found = sorted(found, key=lambda group: (-group["count"], -group["newest"]))[: MOST_GROUPS + 1]
    newest: dict[int, Any] = (
        DeadLetter.objects.select_related("job")
        .only("reason", "died_at", "fingerprint", "job__job_type")
        .annotate(short_error=Left("error", SHORT * 2), frames=Right("traceback", 1_000))
        .in_bulk([group["newest"] for group in found])
    )
    return [
        Group(
            count=group["count"],
            first=group["first"],
            last=group["last"],
            newest=newest[group["newest"]],
            query=urlencode({**parameters, **_filter(group)}),
            place=place_in(newest[group["newest"]].frames),
        )
        for group in found
        if group["newest"] in newest
    ]


def _summed(rows: Any) -> list[dict[str, Any]]:
    summed: QuerySet[Any] = rows.annotate(
        count=Count("pk"), first=Min("died_at"), last=Max("died_at"), newest=Max("pk")
    ).order_by("-count", "-newest")
    return list(summed[: MOST_GROUPS + 1])


def _filter(group: dict[str, Any]) -> dict[str, str]:
    if "fingerprint" in group:
        return {"fingerprint": group["fingerprint"]}
    return {"reason__exact": group["reason"], "job_type": group["job__job_type"], "fingerprint": "-"}


def place_in(frames: str) -> str:
    """Return `file:line in function` of the last frame of a traceback."""
    found = FRAME.findall(frames or "")
    return cut("{}:{} in {}".format(*found[-1])) if found else ""
