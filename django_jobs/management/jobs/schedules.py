"""The verbs of schedules: schedules, schedules enable, disable, run."""

from __future__ import annotations

from typing import Any

from django_jobs.lifecycle.schedule import run_schedule_now
from django_jobs.lifecycle.schedule_rows import disable, enable
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Schedule

from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add("schedules", list_schedules, "list schedules", "schedules", "schedules disable nightly")
    actions = Verbs(parser, dest="action", required=False)
    for name, function, summary in (
        ("enable", enable_one, "let a schedule tick again"),
        ("disable", disable_one, "stop a schedule from ticking"),
        ("run", run_one, "submit a schedule's job now; its next tick stays"),
    ):
        actions.add(name, function, summary, f"schedules {name} nightly").add_argument("name", metavar="NAME")


def list_schedules(options: dict[str, Any], out: Output) -> None:
    """Print the schedules."""
    rows = Schedule.objects.using(jobs_alias()).order_by("name")
    if out.as_json:
        names = ("name", "job_type", "kind", "enabled", "next_run_at", "last_run_at", "last_error", "cron", "timezone")
        for row in rows.values(*names, "interval_seconds", "queue", "payload"):
            out.json(row)
        return
    out.table(
        ("NAME", "TYPE", "WHEN", "STATE", "NEXT (UTC)", "LAST ERROR"),
        [(one.name, one.job_type, _when(one), _state(one), one.next_run_at, one.last_error[:60]) for one in rows],
    )


def _when(row: Schedule) -> str:
    if row.kind == "cron":
        return f"{row.cron} {row.timezone}"
    return f"every {row.interval_seconds:g} s" if row.interval_seconds else "once"


def _state(row: Schedule) -> str:
    return "enabled" if row.enabled else "disabled"


def enable_one(options: dict[str, Any], out: Output) -> None:
    """Enable one schedule."""
    enable(options["name"])
    out.each([options["name"]], lambda name: "enabled")


def disable_one(options: dict[str, Any], out: Output) -> None:
    """Disable one schedule."""
    disable(options["name"])
    out.each([options["name"]], lambda name: "disabled")


def run_one(options: dict[str, Any], out: Output) -> None:
    """Submit one schedule's job and print its id."""
    job = run_schedule_now(options["name"])
    if out.as_json:
        out.json({"schedule": options["name"], "id": job.id})
    else:
        out.line(job.id)
