"""The verbs of schedules: schedules, schedules enable, disable, delete, run."""

from __future__ import annotations

from typing import Any

from django_jobs.models import Schedule
from django_jobs.scheduling.store import delete_made, disable, enable
from django_jobs.scheduling.ticks import run_schedule_now

from .output import Output
from .verbs import EACH, Named, Verbs

SCHEDULE = Named("name", "Schedule", "name")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "schedules", list_schedules, "list schedules", "schedules", "schedules disable nightly", over=EACH
    )
    actions = Verbs(parser, dest="action", required=False)
    for name, function, summary in (
        ("enable", enable_schedule, "let a schedule tick again"),
        ("disable", disable_schedule, "stop a schedule from ticking"),
        ("delete", remove_schedule, "delete a schedule that was made at run time"),
        ("run", run_schedule, "submit a schedule's job now; its next tick stays"),
    ):
        asks = name == "delete"
        action = actions.add(name, function, summary, f"schedules {name} nightly", asks=asks, over=SCHEDULE)
        action.add_argument("name", metavar="NAME")


def list_schedules(options: dict[str, Any], out: Output) -> None:
    """Print the schedules."""
    rows = Schedule.objects.order_by("name")
    if out.as_json:
        names = ("name", "job_type", "kind", "enabled", "next_run_at", "last_run_at", "last_error", "cron", "timezone")
        for values in rows.values(*names, "interval_seconds", "queue", "payload"):
            out.json(values)
        return
    out.table(
        ("NAME", "TYPE", "WHEN", "STATE", "NEXT", "LAST ERROR"),
        [(row.name, row.job_type, _when(row), _state(row), row.next_run_at, row.last_error[:60]) for row in rows],
    )


def _when(row: Schedule) -> str:
    if row.kind == "cron":
        return f"{row.cron} {row.timezone}"
    return f"every {row.interval_seconds:g} s" if row.interval_seconds else "once"


def _state(row: Schedule) -> str:
    return "enabled" if row.enabled else "disabled"


def enable_schedule(options: dict[str, Any], out: Output) -> None:
    """Enable one schedule."""
    enable(options["name"])
    out.state(options["name"], "enabled")


def disable_schedule(options: dict[str, Any], out: Output) -> None:
    """Disable one schedule."""
    disable(options["name"])
    out.state(options["name"], "disabled")


def remove_schedule(options: dict[str, Any], out: Output) -> None:
    """Delete one schedule that was made at run time."""
    name = options["name"]
    out.confirm(f"This deletes schedule {name!r}. The jobs that it submitted stay.")
    delete_made(name)
    out.state(name, "deleted")


def run_schedule(options: dict[str, Any], out: Output) -> None:
    """Submit one schedule's job and print its id."""
    job = run_schedule_now(options["name"])
    out.result(job.id, schedule=options["name"], id=job.id)
