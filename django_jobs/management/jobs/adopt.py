"""The verb adopt: take over what another queue in the same database has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django_jobs.transfer.adopting import SOURCES, adopt

from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add(
        "adopt",
        adopt_all,
        "take over the schedules and waiting jobs of another queue in this database",
        "adopt celery-beat --dry-run",
        "adopt django-tasks-db",
    )
    parser.add_argument("source", choices=sorted(SOURCES), metavar="QUEUE", help=f"one of {', '.join(sorted(SOURCES))}")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")


def adopt_all(options: dict[str, Any], out: Output) -> None:
    """Adopt what can be adopted, and tell of each."""
    report = adopt(options["source"], dry_run=options["dry_run"])
    done = "would be adopted" if options["dry_run"] else "adopted"
    for told in report.told:
        if out.as_json:
            out.json(asdict(told))
        else:
            out.line(f"{told.kind} {told.name}: {done if told.is_adopted else f'stays there: {told.why}'}")
    if report.without_handler and not out.as_json:
        out.line(f"\nThese have no handler yet; here is a jobs.py to fill in:\n\n{report.module()}")
    if not report.told:
        out.result("nothing to adopt")
