"""Is all well? Three probes: is a worker of this machine alive, can the database be used, do the workers keep up."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from django.db import DatabaseError

from django_jobs.db.connections import databases_to_read, jobs_connection, use_database
from django_jobs.db.server import missing_migrations
from django_jobs.db.transactions import database_now
from django_jobs.due import seconds_until_due, seconds_until_tick
from django_jobs.models import DeadLetter, WorkerProcess
from django_jobs.stats import queue_stats

P = ParamSpec("P")
logger = logging.getLogger("django_jobs")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What is still healthy.

    max_wait: how long a ready or due job, or a tick, may wait (seconds); queues that are paused do not count.
    max_dead_letters: open ones (None: any number). min_workers: worker processes alive.
    """

    max_wait: float = 300.0
    max_dead_letters: int | None = None
    min_workers: int = 1


def seconds(text: str) -> float:
    """Return a number of seconds given as text; raise ValueError for any other text, and for one that nothing exceeds."""
    value = float(text)
    if math.isnan(value):
        raise ValueError("not a number")
    return value


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a probe found: the problems, none when all is well, and the stats that they come from."""

    problems: list[str]
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {"healthy": self.healthy, **self.stats, "problems": self.problems}


def _reports_outage(probe: Callable[P, Report]) -> Callable[P, Report]:
    """Turn a database that cannot be used into a report; the error's text, which may name hosts, is logged only."""

    @wraps(probe)
    def run(*args: P.args, **kwargs: P.kwargs) -> Report:
        try:
            return probe(*args, **kwargs)
        except DatabaseError as error:
            return _outage(error)

    return run


def _over_all(probe: Callable[P, Report]) -> Callable[P, Report]:
    """Ask each of the site's DATABASES, where it names some and none is chosen; the report has the stats of each."""

    @wraps(probe)
    def run(*args: P.args, **kwargs: P.kwargs) -> Report:
        reports: dict[str, Report] = {}
        for database in databases_to_read():
            if database is None:
                return probe(*args, **kwargs)
            with use_database(database):
                reports[database] = probe(*args, **kwargs)
        return _together(reports)

    return run


def _together(reports: Mapping[str, Report]) -> Report:
    """Return one report for several databases: the longest of what is measured in seconds, and the sum of all else."""
    stats: dict[str, Any] = {}
    for report in reports.values():
        for name, value in report.stats.items():
            stats[name] = max(stats.get(name, 0), value) if name.endswith("_seconds") else stats.get(name, 0) + value
    stats["databases"] = {database: report.as_dict() for database, report in reports.items()}
    problems = [
        f"database {database!r}: {problem}" for database, report in reports.items() for problem in report.problems
    ]
    return Report(problems=problems, stats=stats)


def live() -> Report:
    """Report whether a worker process of this machine runs jobs or looks for some: the liveness probe of a worker's container.

    Of several databases one that says so is enough: an outage of another is no reason to start the worker anew.
    """
    report = _live()
    of_each = report.stats.get("databases", {}).values()
    is_well = any(one["healthy"] for one in of_each)
    return replace(report, problems=[]) if is_well else report


@_over_all
@_reports_outage
def _live() -> Report:
    here = WorkerProcess.objects.filter(host=socket.gethostname()[:255])
    workers = here.at_work().count()
    problems = []
    if not workers and not here.alive().exists():
        problems.append("no worker process of this machine is alive")
    elif not workers:
        problems.append("no thread of the worker processes of this machine looks for work")
    return Report(problems=problems, stats={"workers": workers})


@_over_all
@_reports_outage
def ready() -> Report:
    """Report whether jobs can be submitted: the database answers and has all migrations."""
    return Report(problems=_migration_problems())


@_over_all
@_reports_outage
def health(thresholds: Thresholds | None = None) -> Report:
    """Report whether workers are alive and keep up."""
    limits = thresholds or Thresholds()
    now = database_now()
    workers = WorkerProcess.objects.at_work().count()
    silent = WorkerProcess.objects.silent_threads()
    dead_letters = DeadLetter.objects.open().count()
    queues = {name: queue for name, queue in queue_stats().items() if queue.oldest and queue.paused_at is None}
    waits = {name: queue.waited(now) for name, queue in queues.items()}
    lags = {"a scheduled job": lag(seconds_until_due()), "a schedule": lag(seconds_until_tick())}
    problems = []
    if silent:
        problems.append(f"worker threads that neither run a job nor look for one: {silent}")
    if not workers and not silent and limits.min_workers > 0:
        problems.append("no worker process is alive")
    elif workers and workers < limits.min_workers:
        problems.append(f"{workers} worker processes are alive, fewer than {limits.min_workers}")
    problems += [
        f"queue {name!r}: a ready job has waited {wait:.1f} s" for name, wait in waits.items() if wait > limits.max_wait
    ]
    problems += [
        f"{what} is due since {seconds:.1f} s, and no worker has taken it up"
        for what, seconds in lags.items()
        if seconds > max(0.0, limits.max_wait)
    ]
    if limits.max_dead_letters is not None and dead_letters > limits.max_dead_letters:
        problems.append(f"{dead_letters} dead letters are open, more than {limits.max_dead_letters}")
    stats = {
        "workers": workers,
        "silent_threads": silent,
        "longest_wait_seconds": round(max(waits.values(), default=0.0), 1),
        "promote_lag_seconds": round(lags["a scheduled job"], 1),
        "schedule_lag_seconds": round(lags["a schedule"], 1),
        "dead_letters": dead_letters,
    }
    return Report(problems=problems, stats=stats)


def lag(seconds_until: float | None) -> float:
    """Return how late something is that was to happen in `seconds_until` (None: never), in seconds."""
    return max(0.0, -(seconds_until or 0.0))


def _migration_problems() -> list[str]:
    missing = missing_migrations()
    return [f"the database lacks {', '.join(missing)}: run manage.py migrate"] if missing else []


def _outage(error: DatabaseError) -> Report:
    connection = jobs_connection()
    logger.warning("health: the database %r cannot be used: %s", connection.alias, " ".join(str(error).split()))
    try:
        problems = _migration_problems()
    except DatabaseError:
        problems = []
    if not connection.in_atomic_block:
        connection.close()
    return Report(problems=problems or [f"the database {connection.alias!r} cannot be used ({type(error).__name__})"])
