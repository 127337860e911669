"""What operators are to be told: dead letters of a cause, a queue that waits, no worker, a schedule that was disabled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max
from django.db.models.functions import Left

from django_jobs.conf import AlertSettings
from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import database_now
from django_jobs.models import Cause, DeadLetter, GoneProcess, Queue, Schedule, WorkerProcess
from django_jobs.scheduling.store import NO_LONGER_DECLARED

WINDOW = timedelta(days=1)  # what happened before that is no news
RESTART = timedelta(minutes=2)  # in which the workers of a deploy are replaced
MOST = 50  # of each kind
_CLASS = re.compile(r"[A-Za-z_][\w.]{0,200}(?=:|$)")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is to be told once an hour: `since` is when it happened last, None for what goes on."""

    key: str
    text: str
    since: datetime | None = None


def muted(fingerprints: Collection[str]) -> Collection[str]:
    """Return those of the fingerprints whose dead letters nobody is to be told of."""
    return set(Cause.objects.muted().filter(pk__in=fingerprints).values_list("pk", flat=True))


def find(alerts: AlertSettings) -> list[Finding]:
    """Return what stands to be told now, whether it has been or not."""
    now = database_now()
    return [*_causes(now), *_queues(alerts.queue_wait, now), *_workers(now), *_schedules(now)]


def _causes(now: datetime) -> Iterator[Finding]:
    """Find the causes of open dead letters. Errors are left out: what they say is for who may look into the database."""
    recent = DeadLetter.objects.open().filter(died_at__gte=now - WINDOW)
    groups = _counted(recent.exclude(fingerprint="").values("fingerprint"))
    silent = muted({group["fingerprint"] for group in groups})
    groups = [group for group in groups if group["fingerprint"] not in silent]
    groups += _counted(recent.filter(fingerprint="").values("reason", "job_type"))
    letters: dict[int, Any] = (
        DeadLetter.objects.only("job_type", "reason")
        .annotate(begins=Left("error", 200))
        .in_bulk([group["newest"] for group in groups])
    )
    for group in groups:
        if (letter := letters.get(group["newest"])) is not None:
            job_type, kind = letter.job_type, _CLASS.match(letter.begins)
            what = f"{kind[0] if kind else 'no exception'} ({letter.reason})"
            yield Finding(
                key=f"cause:{group.get('fingerprint') or f'{letter.reason} {job_type}'}",
                text=f"dead letters of job type {job_type}: {group['count']} in the last day, {what}",
                since=group["last"],
            )


def _counted(groups: Any) -> list[dict[str, Any]]:
    counted = groups.annotate(count=Count("pk"), last=Max("died_at"), newest=Max("pk"))
    return list(counted.order_by("-last")[:MOST])


def _queues(longest: float | None, now: datetime) -> Iterator[Finding]:
    if longest is None:
        return
    paused = set(Queue.objects.paused_names())
    waits: dict[str, float] = {}
    for queue, oldest in dialect().oldest_ready():
        waits[queue] = max(waits.get(queue, 0.0), (now - oldest).total_seconds())
    late = sorted(((wait, queue) for queue, wait in waits.items() if wait > longest), reverse=True)
    for wait, queue in [(wait, queue) for wait, queue in late if queue not in paused][:MOST]:
        yield Finding(key=f"queue:{queue}", text=f"queue {queue}: a ready job has waited {wait / 60:.0f} minutes")


def _workers(now: datetime) -> Iterator[Finding]:
    """Find that no worker works. Only who is no worker can tell that nobody is: `manage.py jobs alerts`."""
    if WorkerProcess.objects.at_work().exists() or GoneProcess.objects.filter(ended_at__gt=now - RESTART).exists():
        return
    stuck = WorkerProcess.objects.alive().exists()
    text = "no thread of the worker processes looks for work" if stuck else "no worker process is alive"
    yield Finding(key="workers", text=text)


def _schedules(now: datetime) -> Iterator[Finding]:
    broken = Schedule.objects.filter(enabled=False, updated_at__gte=now - WINDOW)
    for name, since in (
        broken.exclude(last_error__in=("", NO_LONGER_DECLARED))
        .order_by("-updated_at", "name")
        .values_list("name", "updated_at")[:MOST]
    ):
        yield Finding(key=f"schedule:{name}", text=f"schedule {name} was disabled", since=since)
