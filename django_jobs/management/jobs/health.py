"""The verb health: exit code 0 when all is well, 1 when not; for probes and monitors."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from django_jobs.health import Thresholds, live, ready
from django_jobs.health import health as judge

from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add(
        "health", health, "say whether workers live and keep up; exit code 1 when not",
        "health --max-wait 60 --max-dead-letters 0", "health --live", "health --ready",
    )  # fmt: skip
    probe = parser.add_mutually_exclusive_group()
    probe.add_argument("--live", action="store_true", help="only: is a worker process of this machine alive")
    probe.add_argument("--ready", action="store_true", help="only: does the database answer, with all migrations")
    limits = Thresholds()
    parser.add_argument(
        "--max-wait", type=float, default=limits.max_wait, metavar="SECONDS",
        help="how long a ready job may wait in a queue that is not paused (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-dead-letters", type=int, metavar="N", help="how many dead letters may be open (default: any number)"
    )
    parser.add_argument(
        "--min-workers", type=int, default=limits.min_workers, metavar="N",
        help="how many worker processes must be alive (default: %(default)d)",
    )  # fmt: skip


def health(options: dict[str, Any], out: Output) -> None:
    """Ask one of the three questions."""
    if options["live"]:
        report, told = live(), "a worker of this machine is alive"
    elif options["ready"]:
        report, told = ready(), "the database is ready"
    else:
        names = ("max_wait", "max_dead_letters", "min_workers")
        report = judge(Thresholds(**{name: options[name] for name in names}))
        told = "{workers} workers, longest wait {longest_wait_seconds:g} s, {dead_letters} dead letters open"
    if out.as_json:
        out.json(report.as_dict())
    elif report.healthy:
        out.line(f"healthy: {told.format(**report.figures)}")
    if report.problems:
        raise CommandError("\n".join(report.problems))
