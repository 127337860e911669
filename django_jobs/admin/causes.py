"""Open dead letters by cause: one entry for each fingerprint (job type, exception and place), with its count and times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min
from django.db.models.functions import Left, Right
from django.utils.http import urlencode

from django_jobs.models import DeadLetter

from .widgets import SHORT, cut

MOST_CAUSES = 100
_FRAME = re.compile(r'File "[^"]*?([^"/\\]+)", line (\d+), in ([^\n]+)')


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Dead letters of one cause: their count, when the first and the last died, the newest one, and the list's query."""

    count: int
    first: datetime
    last: datetime
    newest: Any
    query: str
    place: str


def find_causes(since: datetime | None, parameters: dict[str, str]) -> list[Cause]:
    """Return the causes of the dead letters that died since a time (None: ever), the largest first.

    At most MOST_CAUSES + 1 are returned. `parameters` become part of each query.
    """
    open_ones = DeadLetter.objects.open()
    if since is not None:
        open_ones = open_ones.filter(died_at__gte=since)
    found = _counted(open_ones.exclude(fingerprint="").values("fingerprint"))
    # Without a fingerprint there was no exception: a crash, no handler. Reason and job type are the cause then.
    found += _counted(open_ones.filter(fingerprint="").values("reason", "job__job_type"))
    found = sorted(found, key=lambda row: (-row["count"], -row["newest"]))[: MOST_CAUSES + 1]
    newest: dict[int, Any] = (
        DeadLetter.objects.select_related("job")
        .only("reason", "died_at", "fingerprint", "job__job_type")
        .annotate(short_error=Left("error", SHORT * 2), frames=Right("traceback", 1_000))
        .in_bulk([row["newest"] for row in found])
    )
    return [
        Cause(
            count=row["count"],
            first=row["first"],
            last=row["last"],
            newest=newest[row["newest"]],
            query=urlencode({**parameters, **_filter(row)}),
            place=_place_in(newest[row["newest"]].frames),
        )
        for row in found
        if row["newest"] in newest
    ]


def _counted(groups: Any) -> list[dict[str, Any]]:
    counted = groups.annotate(count=Count("pk"), first=Min("died_at"), last=Max("died_at"), newest=Max("pk"))
    return list(counted.order_by("-count", "-newest")[: MOST_CAUSES + 1])


def _filter(row: dict[str, Any]) -> dict[str, str]:
    if "fingerprint" in row:
        return {"fingerprint": row["fingerprint"]}
    return {"reason__exact": row["reason"], "job_type": row["job__job_type"], "fingerprint": "-"}


def _place_in(frames: str) -> str:
    """Return `file:line in function` of the last frame of a traceback."""
    found = _FRAME.findall(frames or "")
    return cut("{}:{} in {}".format(*found[-1])) if found else ""
