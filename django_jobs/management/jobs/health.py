"""The verbs stats and health; health exits 0 when all is well and 1 when not, for probes and monitors."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from django.core.management.base import CommandError

from django_jobs.db.connections import databases_to_read, on_database
from django_jobs.lifecycle.leases import limited_silence
from django_jobs.models import DeadLetter, Job, WorkerProcess
from django_jobs.monitoring import health as probes

from .output import Output
from .verbs import EACH, Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    verbs.add("stats", stats, "count jobs by status, workers and open dead letters", "stats --json", over=EACH)
    parser = verbs.add(
        "health", health, "report whether workers are alive and keep up; exit code 1 when not",
        "health --max-wait 60 --max-dead-letters 0", "health --live", "health --ready",
    )  # fmt: skip
    probe = parser.add_mutually_exclusive_group()
    probe.add_argument("--live", action="store_true", help="only: is a worker process of this machine alive")
    probe.add_argument("--ready", action="store_true", help="only: does the database answer, with all migrations")
    limits = probes.Thresholds()
    parser.add_argument(
        "--max-wait", type=probes.seconds, default=limits.max_wait, metavar="SECONDS",
        help="how long a ready job may wait in a queue that is not paused (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-dead-letters", type=int, metavar="N", help="how many dead letters may be open (default: any number)"
    )
    parser.add_argument(
        "--min-workers", type=int, default=limits.min_workers, metavar="N",
        help="how many worker processes must be alive (default: %(default)d)",
    )  # fmt: skip


def stats(options: dict[str, Any], out: Output) -> None:
    """Print the counts."""
    values = {
        **Job.objects.counts_by_status(),
        "workers": WorkerProcess.objects.alive().count(),
        "silent_threads": WorkerProcess.objects.silent_threads(),
        "dead_letters": DeadLetter.objects.open().count(),
    }
    out.result("\n".join(f"{name.replace('_', ' ') + ':':16}{value}" for name, value in values.items()), **values)


def health(options: dict[str, Any], out: Output) -> None:
    """Run the probe that the options choose."""
    with ExitStack() as stack:
        for database in databases_to_read():
            with on_database(database):
                stack.enter_context(limited_silence())
        if options["live"]:
            report, summary = probes.live(), "a worker of this machine is alive"
        elif options["ready"]:
            report, summary = probes.ready(), "the database is ready"
        else:
            names = ("max_wait", "max_dead_letters", "min_workers")
            report = probes.health(probes.Thresholds(**{name: options[name] for name in names}))
            summary = "{workers} workers, longest wait {longest_wait_seconds:g} s, {dead_letters} dead letters open"
    if out.as_json:
        out.json(report.as_dict())
    elif report.healthy:
        out.line(f"healthy: {summary.format(**report.stats)}")
    if report.problems:
        raise CommandError("\n".join(report.problems))
