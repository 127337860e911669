"""The verbs of queues: queues, pause, resume."""

from __future__ import annotations

from typing import Any

from django_jobs.conf import get_settings
from django_jobs.db.transactions import database_now
from django_jobs.due import known_queues
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.names import did_you_mean
from django_jobs.stats import KeyStats, key_stats, queue_stats
from django_jobs.submission import DEFAULT_QUEUE
from django_jobs.text import shown

from .output import Output
from .verbs import EACH, Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    verbs.add("queues", list_queues, "list queues with what is ready and running in them", over=EACH)
    parser = verbs.add("pause", pause_queue, "let no worker claim from a queue", "pause mail")
    parser.add_argument("queue", metavar="QUEUE")
    parser = verbs.add("resume", resume_queue, "let workers claim from a queue again", "resume mail")
    parser.add_argument("queue", metavar="QUEUE")


def list_queues(options: dict[str, Any], out: Output) -> None:
    """Print every queue that a handler, a setting, a row or a job names."""
    now = database_now()
    keys = {one.queue: one for one in key_stats()}
    rows = [
        (
            name, queue.ready, queue.running, round(queue.waited(now), 1) if queue.oldest else None, queue.paused_at,
            keys.get(name, KeyStats(queue=name, keys=0, largest=[])),
        )
        for name, queue in queue_stats(sorted(_queues())).items()
    ]  # fmt: skip
    names = ("queue", "ready", "running", "oldest_seconds", "paused_at", "fair_keys", "largest_fair_keys")
    heads = ("QUEUE", "READY", "RUNNING", "OLDEST (S)", "PAUSED SINCE", "FAIR KEYS", "LARGEST")

    def values(row: tuple[Any, ...]) -> dict[str, Any]:
        *first, of_keys = row
        largest = [{"fair_key": key, "ready": number} for key, number in of_keys.largest]
        return dict(zip(names, (*first, of_keys.keys, largest), strict=True))

    def cells(row: tuple[Any, ...]) -> tuple[Any, ...]:
        *first, of_keys = row
        return *first, of_keys.keys or None, ", ".join(f"{key}: {number}" for key, number in of_keys.largest) or None

    out.rows(rows, values, heads, cells)


def pause_queue(options: dict[str, Any], out: Output) -> None:
    """Pause one queue."""
    pause(_known(options["queue"]))
    out.state(options["queue"], "paused")


def resume_queue(options: dict[str, Any], out: Output) -> None:
    """Resume one queue."""
    resume(_known(options["queue"]))
    out.state(options["queue"], "resumed")


def _queues() -> set[str]:
    return {DEFAULT_QUEUE, *registry.queues(), *get_settings().QUEUES, *known_queues()}


def _known(queue: str) -> str:
    known = _queues()
    if queue not in known:
        raise InvalidJob(f"there is no queue {shown(queue)}.{did_you_mean(queue, known)}")
    return queue
