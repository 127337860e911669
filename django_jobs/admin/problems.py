"""What needs an operator, in sentences: each names what is wrong, how much, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_jobs import stats
from django_jobs.conf import get_settings
from django_jobs.models import Job, JobStatus, OperationKind, OperationState, Schedule
from django_jobs.scheduling.store import NO_LONGER_DECLARED

from .base import ConsoleAdmin
from .paging import count_text
from .widgets import cut, duration

LONG_WAIT = 300.0  # seconds that a ready job may wait before it is a problem
LONG_RUN = 60.0  # seconds that any job may run
FAR_BEYOND = 3  # times the usual longest run
MOST_NAMED = 5
MOST_RUNNING = 1_000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A sentence, and the page that shows more (empty: none does)."""

    text: str
    url: str = ""

    def __str__(self) -> str:
        return self.text


def find_problems(
    page: ConsoleAdmin,
    queues: dict[str, stats.QueueStats],
    state: dict[str, Any],
    processes: list[Any],
    now: datetime,
    runs: Sequence[stats.Run],
) -> list[Problem]:
    """Return what needs an operator, the worst first."""
    alive = [process for process in processes if process.lease_expires_at > now]
    return [
        *_of_workers(page, state, processes, now),
        *_of_queues(page, queues, alive, now),
        *_of_schedules(page, state),
        *_of_runs(page, now, runs),
    ]


def _of_workers(page: ConsoleAdmin, state: dict[str, Any], processes: list[Any], now: datetime) -> Iterator[Problem]:
    url = page.list_url("workerprocess")
    if (state["ready"] or state["overdue"]) and not state["alive"]:
        text = _("Jobs are waiting and no worker process is alive. Start one with “manage.py runworkers”.")
        yield Problem(text=text, url=url)
    if silent := state["silent_threads"]:
        text = _("Worker threads that neither run a job nor look for one: %(count)s.") % {"count": silent}
        yield Problem(text=text, url=url)
    quiet = timedelta(seconds=get_settings().LEASE_SECONDS / 2)  # two heartbeats
    for process in [one for one in processes if one.heartbeat_at < now - quiet][:MOST_NAMED]:
        span = duration((now - process.heartbeat_at).total_seconds())
        yield Problem(
            text=_("Worker %(name)s has been silent for %(span)s.") % {"name": process.pk, "span": span}, url=url
        )


def _of_queues(
    page: ConsoleAdmin, queues: dict[str, stats.QueueStats], processes: list[Any], now: datetime
) -> Iterator[Problem]:
    served = {name for process in processes for name in process.queues}
    serves_all = any(not process.queues for process in processes)
    for queue in queues.values():
        url = f"{page.list_url('job')}?{urlencode({'queue': queue.name, 'status': 'pending'})}"
        names = {"name": queue.name, "count": count_text(queue.ready), "span": duration(queue.waited(now))}
        if queue.paused_at and queue.ready:
            yield Problem(text=_("Queue %(name)s is paused, with %(count)s jobs ready.") % names, url=url)
        elif queue.ready and processes and not serves_all and queue.name not in served:
            text = ngettext(
                "No worker serves queue %(name)s; %(count)s job waits.",
                "No worker serves queue %(name)s; %(count)s jobs wait.",
                queue.ready,
            )
            yield Problem(text=text % names, url=url)
        elif queue.waited(now) > LONG_WAIT and processes:
            yield Problem(text=_("A job has been ready in queue %(name)s for %(span)s.") % names, url=url)


def _of_schedules(page: ConsoleAdmin, state: dict[str, Any]) -> Iterator[Problem]:
    url = page.list_url("schedule")
    if state["late"]:
        text = _("Schedules are late: %(names)s.") % {"names": ", ".join(state["late"][:MOST_NAMED])}
        yield Problem(text=text, url=url)
    broken = Schedule.objects.filter(enabled=False).exclude(last_error="").exclude(last_error=NO_LONGER_DECLARED)
    for pk, name, error in broken.order_by("name").values_list("pk", "name", "last_error")[:MOST_NAMED]:
        text = _("Schedule %(name)s was disabled: %(error)s") % {"name": name, "error": cut(error, 160)}
        yield Problem(text=text, url=page.object_url("schedule", pk))


def of_operations(page: ConsoleAdmin, operations: list[tuple[int, str, str, str]]) -> Iterator[Problem]:
    """Name the operations that failed, of (key, state, kind, error)."""
    for pk, state, kind, error in operations:
        if state == OperationState.FAILED:
            words = {"number": pk, "kind": OperationKind(kind).label, "error": cut(error, 160)}
            text = _("Operation #%(number)s (%(kind)s) failed: %(error)s") % words
            yield Problem(text=text, url=page.object_url("operation", pk))


def _of_runs(page: ConsoleAdmin, now: datetime, runs: Sequence[stats.Run]) -> Iterator[Problem]:
    """Name the jobs that run far longer than the runs of their type do."""
    running = Job.objects.filter(status=JobStatus.RUNNING, started_at__lt=now - timedelta(seconds=LONG_RUN))
    rows: list[Any] = list(running.order_by("pk").values_list("pk", "job_type", "started_at")[:MOST_RUNNING])
    usual = stats.usual_runs(runs) if rows else {}
    late = [(now - started, pk, name) for pk, name, started in rows if name in usual]
    late = [one for one in late if one[0].total_seconds() > FAR_BEYOND * usual[one[2]]]
    for span, pk, name in sorted(late, reverse=True)[:MOST_NAMED]:
        text = _("A job of type %(type)s has been running for %(span)s; 95 of 100 take %(usual)s at most.") % {
            "type": name, "span": duration(span.total_seconds()), "usual": duration(usual[name]),
        }  # fmt: skip
        yield Problem(text=text, url=page.object_url("job", pk))
