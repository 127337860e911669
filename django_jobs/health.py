"""Is all well? Three questions: is a worker of this machine alive, can the database be used, do workers keep up."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, connections

from .lifecycle.claim import seconds_until_due
from .lifecycle.figures import queue_figures
from .lifecycle.readiness import missing_migrations
from .lifecycle.schedule import seconds_until_tick
from .lifecycle.transactions import database_now, jobs_alias
from .models import DeadLetter, WorkerProcess

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


@dataclass(frozen=True, kw_only=True)
class Report:
    """An answer: what is wrong, nothing when all is well, and the figures it comes from."""

    problems: list[str]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {"healthy": self.healthy, **self.figures, "problems": self.problems}


def live() -> Report:
    """Say whether a worker process of this machine has a live lease: the liveness probe of a worker's container."""

    def ask() -> Report:
        mine = WorkerProcess.objects.using(jobs_alias()).alive().filter(host=socket.gethostname()[:255]).count()
        return Report(
            problems=[] if mine else ["no worker process of this machine is alive"], figures={"workers": mine}
        )

    return _asked(ask)


def ready() -> Report:
    """Say whether jobs can be submitted: the database answers and has all migrations."""

    return _asked(lambda: Report(problems=_lacking()))


def _lacking() -> list[str]:
    missing = missing_migrations()
    return [f"the database lacks {', '.join(missing)}: run manage.py migrate"] if missing else []


def health(thresholds: Thresholds | None = None) -> Report:
    """Say whether workers live and keep up."""
    return _asked(lambda: _judge(thresholds or Thresholds()))


def _judge(limits: Thresholds) -> Report:
    alias = jobs_alias()
    now = database_now(alias)
    workers = WorkerProcess.objects.using(alias).alive().count()
    letters = DeadLetter.objects.using(alias).open().count()
    waits = {
        name: max(0.0, (now - one.oldest).total_seconds())
        for name, one in queue_figures(alias=alias).items()
        if one.oldest is not None and one.paused_at is None
    }
    late = {
        "a scheduled job": max(0.0, -(seconds_until_due(alias) or 0.0)),
        "a schedule": max(0.0, -(seconds_until_tick(alias) or 0.0)),
    }
    problems = []
    if workers < limits.min_workers:
        few = f"{workers} worker processes are alive, fewer than {limits.min_workers}"
        problems.append(few if workers else "no worker process is alive")
    problems += [
        f"queue {name!r}: a ready job has waited {_seconds(wait)}"
        for name, wait in waits.items()
        if wait > limits.max_wait
    ]
    problems += [
        f"{what} is due since {_seconds(wait)}, and no worker has taken it up"
        for what, wait in late.items()
        if wait > max(0.0, limits.max_wait)
    ]
    if limits.max_dead_letters is not None and letters > limits.max_dead_letters:
        problems.append(f"{letters} dead letters are open, more than {limits.max_dead_letters}")
    figures = {
        "workers": workers,
        "longest_wait_seconds": round(max(waits.values(), default=0.0), 1),
        "promote_lag_seconds": round(late["a scheduled job"], 1),
        "schedule_lag_seconds": round(late["a schedule"], 1),
        "dead_letters": letters,
    }
    return Report(problems=problems, figures=figures)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _asked(ask: Callable[[], Report]) -> Report:
    """Ask the database; when it does not answer, that is the answer. Its text, which may name hosts, is logged only."""
    try:
        return ask()
    except DatabaseError as error:
        alias = jobs_alias()
        logger.warning("health: the database %r cannot be used: %s", alias, " ".join(str(error).split()))
        try:
            problems = _lacking()
        except DatabaseError:
            problems = []
        if not connections[alias].in_atomic_block:
            connections[alias].close()
        return Report(problems=problems or [f"the database {alias!r} cannot be used ({type(error).__name__})"])
