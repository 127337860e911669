"""Open dead letters by cause: one entry for each fingerprint (job type, exception and place), with its count and times."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.admin.utils import quote
from django.db.models import BooleanField, Case, Count, Max, Min, QuerySet, When
from django.db.models.functions import Left, Right
from django.utils.http import urlencode

from django_jobs.models import Cause, DeadLetter, Job
from django_jobs.models.fields import DbNow

from .widgets import SHORT, cut

MOST_CAUSES = 100
MOST_READ = 10_000
LISTED = 20
CLOSED = 200  # of the acknowledged ones, whose notes are read
SAMPLES = 3
DEAD_AGAIN = "dead again"
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ([^\n]+)')
_FILE = re.compile(r"[/\\]")
_LIBRARY = re.compile(r"site-packages|dist-packages|[/\\]lib[/\\]python\d|^<frozen|[/\\]django_jobs[/\\]")


@dataclass(frozen=True, kw_only=True)
class FoundCause:
    """Dead letters of one cause: how many, when the first and the last died, the newest one, the list's query.

    `release` is that of the first one; `page` is the part of the address of its history, empty where it has none; `kept` is
    what operators noted about it.
    """

    count: int
    first: datetime
    last: datetime
    newest: Any
    query: str
    place: str
    release: str
    page: str
    kept: Cause | None
    is_muted: bool


def find_causes(since: datetime | None, parameters: dict[str, str]) -> list[FoundCause]:
    """Return the causes of the dead letters that died since a time (None: ever), the largest first.

    At most MOST_CAUSES + 1 are returned. `parameters` become part of each query.
    """
    open_ones = DeadLetter.objects.open()
    if since is not None:
        open_ones = open_ones.filter(died_at__gte=since)
    found = _counted(open_ones.exclude(fingerprint="").values("fingerprint"))
    # Without a fingerprint there was no exception: a crash, no handler. Reason and job type are the cause then.
    found += _counted(open_ones.filter(fingerprint="").values("reason", "job_type"))
    found = sorted(found, key=lambda row: (-row["count"], -row["newest"]))[: MOST_CAUSES + 1]
    newest: dict[int, Any] = (
        DeadLetter.objects.only("job_type", "reason", "died_at", "fingerprint")
        .annotate(short_error=Left("error", SHORT * 2), frames=Right("traceback", 4_000))
        .in_bulk([row["newest"] for row in found])
    )
    releases = dict(DeadLetter.objects.filter(pk__in=[row["oldest"] for row in found]).values_list("pk", "release"))
    kept = {cause.pk: cause for cause in kept_of(row["fingerprint"] for row in found if "fingerprint" in row)}
    return [
        FoundCause(
            count=row["count"],
            first=row["first"],
            last=row["last"],
            newest=newest[row["newest"]],
            query=urlencode({**parameters, **_filter(row)}),
            release=releases.get(row["oldest"], ""),
            page=quote(row["fingerprint"]) if row.get("fingerprint") else "",
            place=place_in(newest[row["newest"]].frames),
            kept=kept.get(row.get("fingerprint", "")),
            is_muted=getattr(kept.get(row.get("fingerprint", "")), "muted", False),
        )
        for row in found
        if row["newest"] in newest
    ]


def kept_of(fingerprints: Iterable[str]) -> QuerySet[Cause]:
    """Return what operators keep of these causes, each with whether it is `muted` now."""
    muted = Case(When(muted_until__gt=DbNow(), then=True), default=False, output_field=BooleanField())
    return Cause.objects.filter(pk__in=list(fingerprints)).select_related("changed_by").annotate(muted=muted)


def _counted(groups: Any) -> list[dict[str, Any]]:
    counted = groups.annotate(
        count=Count("pk"), first=Min("died_at"), last=Max("died_at"), oldest=Min("pk"), newest=Max("pk")
    )
    return list(counted.order_by("-count", "-newest")[: MOST_CAUSES + 1])


def _filter(row: dict[str, Any]) -> dict[str, str]:
    if "fingerprint" in row:
        return {"fingerprint": row["fingerprint"]}
    return {"reason__exact": row["reason"], "job_type": row["job_type"], "fingerprint": "-"}


def place_in(frames: str) -> str:
    """Return `file:line in function` of the last frame of the site's own code, or of the last one where all is a library's."""
    found = [(path, line, name) for path, line, name in _FRAME.findall(frames or "")]
    own = [frame for frame in found if not _LIBRARY.search(frame[0])]
    if not found:
        return ""
    path, line, name = (own or found)[-1]
    return cut(f"{_FILE.split(path)[-1]}:{line} in {name}")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What somebody replayed in one go, and what has come of it by now."""

    at: datetime
    by: str
    count: int
    outcomes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class CauseHistory:
    """What is on record of one cause, closed dead letters included; of the newest MOST_READ where there are more."""

    count: int
    open: int
    first: Any
    newest: list[Any]
    ended: dict[datetime, tuple[int, int]]
    replays: list[Replay]
    notes: list[tuple[datetime, str, str]]
    is_whole: bool


def read_history(fingerprint: str) -> CauseHistory | None:
    """Return the history of a cause, or None when no dead letter has it."""
    letters = DeadLetter.objects.filter(fingerprint=fingerprint)
    first = letters.only("died_at", "release").order_by("pk").first()
    if first is None:
        return None
    columns = ("pk", "job_id", "died_at", "replayed_at", "replayed_by__username", "acknowledged_at")
    rows = list(letters.order_by("-pk").values_list(*columns)[:MOST_READ])
    # Not by a join: for 10,000 rows it would read the jobs whole.
    replayed = {job_id for _pk, job_id, _died_at, replayed_at, *_ in rows if replayed_at is not None}
    status_of = dict(Job.objects.filter(pk__in=replayed).values_list("pk", "status"))
    newest_of: dict[str, int] = {}
    ended: dict[datetime, tuple[int, int]] = {}
    replays: dict[tuple[datetime, str], list[str]] = {}
    for pk, job_id, died_at, replayed_at, by, _acknowledged_at in rows:
        # Replayed, and dead again by the same cause: a newer dead letter of the job is among those read before.
        outcome = DEAD_AGAIN if job_id in newest_of else status_of.get(job_id, "")
        newest_of.setdefault(job_id, pk)
        good, bad = ended.get(died_at, (0, 0))
        ended[died_at] = (good, bad + 1)
        if replayed_at is not None:
            replays.setdefault((replayed_at.replace(second=0, microsecond=0), by or ""), []).append(outcome)
    # By key: to look for notes in all of them would read each with its texts.
    closed = sorted(((row[5], row[0]) for row in rows if row[5] is not None), reverse=True)[:CLOSED]
    noted = (
        DeadLetter.objects.filter(pk__in=[pk for _at, pk in closed])
        .exclude(note="")
        .order_by("-acknowledged_at")
        .values_list("acknowledged_at", "acknowledged_by__username", "note")
    )
    notes = list(
        dict.fromkeys((at.replace(second=0, microsecond=0), by or "", note) for at, by, note in noted[:LISTED] if at)
    )
    newest = letters.select_related("job").order_by("-pk")[:SAMPLES]
    return CauseHistory(
        count=len(rows),
        open=sum(replayed_at is None and acknowledged_at is None for *_, replayed_at, _by, acknowledged_at in rows),
        first=first,
        newest=list(newest),
        ended=ended,
        replays=[
            Replay(at=at, by=by, count=len(found), outcomes=dict(Counter(found)))
            for (at, by), found in sorted(replays.items(), reverse=True)[:LISTED]
        ],
        notes=notes,
        is_whole=len(rows) < MOST_READ,
    )
