"""Reads: what is due now, and when the next thing will be. Times are the database's; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import Exists, OuterRef, QuerySet, Subquery

from .db.compiled import CompiledQuery
from .db.dialects import dialect
from .models import Event, Job, JobStatus, LimitSlot, LimitTurn, Operation, Queue, Schedule, WorkerProcess
from .models.fields import DbNow
from .models.job import JobQuerySet


def seconds_until_due() -> float | None:
    """Return the seconds until the next scheduled job is due, negative when it is overdue; None when there is none."""
    return _seconds(_scheduled(), "available_at")


def seconds_until_tick() -> float | None:
    """Return the seconds until the next tick of a schedule, negative when it is overdue; None when there is none."""
    return _seconds(_ticking(), "next_run_at")


class Ahead(NamedTuple):
    """The seconds until the next scheduled job is due, the next tick, the next step of an operation; whether an event waits."""

    due: float | None = None
    tick: float | None = None
    has_events: bool = False
    operation: float | None = None


def look_ahead(process_id: str, since: datetime | None = None) -> Ahead:
    """Return what comes next, asked in one statement because idle processes ask each second.

    The row of the asking process is what carries the question; without one there is no answer. Jobs that were due before `since`
    are left out.
    """
    rows = _LOOK_AHEAD.rows(process_id) if since is None else _ahead(process_id, since)
    for due, tick, now, event, step in rows:
        return Ahead(_between(now, due), _between(now, tick), event is not None, _between(now, step))
    return Ahead()


def _ahead(process_id: str, since: datetime | None = None) -> QuerySet[WorkerProcess, tuple[Any, ...]]:
    scheduled = _scheduled() if since is None else _scheduled().filter(available_at__gte=since)
    return WorkerProcess.objects.filter(pk=process_id).values_list(
        Subquery(scheduled.values("available_at")[:1]),
        Subquery(_ticking().values("next_run_at")[:1]),
        DbNow(),
        Subquery(Event.objects.undelivered().order_by("pk").values("pk")[:1]),
        Subquery(Operation.objects.running().order_by("next_at").values("next_at")[:1]),
    )


_LOOK_AHEAD = CompiledQuery(_ahead)


def queues_with_work(besides: Sequence[str] = (), among: Sequence[str] | None = None) -> list[str]:
    """Return the queues that have a ready job, of `among` if given, and perhaps without those of `besides`."""
    found = dialect().queues_with_work(besides, among)
    return found if among is None else [queue for queue in found if queue in among]


def known_queues() -> set[str]:
    """Return every queue that a row or a job names."""
    rows = Queue.objects.values_list("name", flat=True)
    return {*rows, *Job.objects.order_by().values_list("queue", flat=True).distinct()}


def has_due_work(queues: Iterable[str] | None = None) -> bool:
    """Say whether there is work: a schedule or operation that is due, or a job that is ready, held back, due or to be taken back.

    Args:
        queues: of whose jobs; None: of every queue that is not paused.
    """
    if Schedule.objects.due().exists() or Event.objects.undelivered().exists() or Operation.objects.due().exists():
        return True
    jobs = Job.objects.exclude(queue__in=Queue.objects.paused_names())
    if queues is not None:
        jobs = jobs.in_queues(queues)
    # In the order in which a job moves: one that moves on between two of these looks is seen by the later one.
    # Those that wait for their turn by a rate are for later, as scheduled ones are.
    turns = LimitTurn.objects.filter(due_at__gt=DbNow()).values("scope")
    waits = LimitSlot.objects.filter(waits=True).exclude(scope__in=turns).values("job")
    held_back = jobs.filter(pending_limits=1, pk__in=waits)
    if _to_rescue(jobs).exists() or jobs.due().exists() or held_back.exists():
        return True
    return jobs.ready().exists() or held_back.exists()


def _to_rescue(jobs: JobQuerySet) -> JobQuerySet:
    """Keep the running jobs whose process has no lease that runs: a rescuer will take them back."""
    alive = WorkerProcess.objects.alive().filter(pk=OuterRef("worker_id"))
    return jobs.filter(~Exists(alive), status=JobStatus.RUNNING)


def _scheduled() -> QuerySet[Job]:
    return Job.objects.filter(status=JobStatus.SCHEDULED).order_by("available_at")


def _ticking() -> QuerySet[Schedule]:
    return Schedule.objects.known_here().filter(enabled=True, next_run_at__isnull=False).order_by("next_run_at")


def _seconds(rows: QuerySet[Job] | QuerySet[Schedule], column: str) -> float | None:
    row = rows.values_list(column, DbNow()).first()
    return None if row is None else _between(row[1], row[0])


def _between(now: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else (moment - now).total_seconds()
