"""The verbs of operations: operations list, show, pause, resume, stop."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from django_jobs.exceptions import OperationNotFound
from django_jobs.lifecycle.operations import pause, resume, stop
from django_jobs.models import Operation, OperationState

from .output import Output, as_text, streamed
from .verbs import Verbs

COLUMNS = (
    "id", "kind", "state", "total", "done", "skipped", "per_second", "options", "filters", "created_at", "started_at",
    "ended_at", "error",
)  # fmt: skip
HEADS = ("ID", "KIND", "STATE", "DONE", "SKIPPED", "TOTAL", "CREATED", "ENDED")
CELLS = ("id", "kind", "state", "done", "skipped", "total", "created_at", "ended_at")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    operations = Verbs(
        verbs.add("operations", None, "list, pause and stop what operators asked for on many rows"), dest="action"
    )
    parser = operations.add(
        "list", list_operations, "list operations, the newest first", "operations list --state running"
    )
    parser.add_argument("--state", choices=OperationState.values)
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")
    _add_id(operations.add("show", show, "show an operation and how far it is", "operations show 7"))
    _add_id(operations.add("pause", pause_one, "make no further step for now", "operations pause 7"))
    _add_id(operations.add("resume", resume_one, "go on with a paused operation", "operations resume 7"))
    _add_id(operations.add("stop", stop_one, "end an operation; what was done stays done", "operations stop 7"))


def _add_id(parser: CommandParser) -> None:
    parser.add_argument("operation_id", type=int, metavar="ID")


def list_operations(options: dict[str, Any], out: Output) -> None:
    """Print operations, the newest first."""
    limit = options["limit"] if options["limit"] > 0 else None
    chosen = Operation.objects.filter(state=options["state"]) if options["state"] else Operation.objects.all()
    with streamed(chosen.defer("ids").order_by("-pk")[:limit]) as operations:
        out.rows(operations, operation_values, HEADS, lambda one: [getattr(one, name) for name in CELLS])


def show(options: dict[str, Any], out: Output) -> None:
    """Print all that is known of one operation."""
    operation = Operation.objects.filter(pk=options["operation_id"]).defer("ids").first()
    if operation is None:
        raise OperationNotFound(options["operation_id"])
    values = operation_values(operation)
    if out.as_json:
        out.json(values)
        return
    for name, value in values.items():
        if value not in (None, "", {}):
            out.line(f"{name}: {as_text(value)}")


def pause_one(options: dict[str, Any], out: Output) -> None:
    """Pause one operation."""
    pause(options["operation_id"])
    out.state(options["operation_id"], OperationState.PAUSED)


def resume_one(options: dict[str, Any], out: Output) -> None:
    """Resume one operation."""
    resume(options["operation_id"])
    out.state(options["operation_id"], OperationState.RUNNING)


def stop_one(options: dict[str, Any], out: Output) -> None:
    """Stop one operation."""
    stop(options["operation_id"])
    out.state(options["operation_id"], OperationState.STOPPED)


def operation_values(operation: Operation) -> dict[str, Any]:
    """Return an operation for machines."""
    return {name: getattr(operation, name) for name in COLUMNS}
