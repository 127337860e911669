"""The verbs of batches: batches; batch show, wait, cancel, replay."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_jobs.exceptions import BatchNotFound
from django_jobs.lifecycle.callbacks import types_of
from django_jobs.models import Batch, BatchStatus
from django_jobs.waiting import wait_for_batch

from .output import Output, as_text, streamed
from .verbs import EACH, Named, Verbs

BATCH = Named("batch_id", "Batch")
COLUMNS = ("id", "description", "status", "created_at", "finished_at", "cancel_requested_at", "metadata")
HEADS = ("ID", "DESCRIPTION", "STATUS", "ENDED", "MEMBERS", "CREATED", "FINISHED")
LIVE = ("pending", "scheduled", "running")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add("batches", list_batches, "list batches, the newest first", "batches --status running", over=EACH)
    parser.add_argument("--status", choices=BatchStatus.values)
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")
    batch = Verbs(verbs.add("batch", None, "show, await, cancel and replay a batch"), dest="action")
    _add_id(batch.add("show", show, "show a batch with its progress", "batch show ID", over=BATCH))
    parser = batch.add("wait", wait, "wait until all members have ended", "batch wait ID --timeout 60", over=BATCH)
    _add_id(parser)
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for ever without it")
    _add_id(
        batch.add("cancel", cancel, "cancel its members; running ones are asked to stop", "batch cancel ID", over=BATCH)
    )
    _add_id(batch.add("replay", replay, "run the members that ended badly again", "batch replay ID", over=BATCH))


def _add_id(parser: CommandParser) -> None:
    parser.add_argument("batch_id", metavar="ID")


def list_batches(options: dict[str, Any], out: Output) -> None:
    """Print batches, newest first."""
    limit = options["limit"] if options["limit"] > 0 else None
    chosen = Batch.objects.filter(status=options["status"]) if options["status"] else Batch.objects.all()
    with streamed(chosen.order_by("-pk")[:limit]) as batches:
        out.rows(batches, batch_values, HEADS, _row)


def show(options: dict[str, Any], out: Output) -> None:
    """Print all that is known of one batch."""
    batch = _find(options["batch_id"])
    values = batch_values(batch)
    values["callbacks"] = types_of(batch.callbacks)
    values["nested"] = list(batch.children.order_by("pk").values_list("pk", flat=True))
    if out.as_json:
        out.json(values)
        return
    for name, value in values.items():
        if value not in (None, {}, []):
            parts = value.items() if isinstance(value, dict) else ()
            text = ", ".join(f"{key}: {part}" for key, part in parts if part != 0) or as_text(value)
            out.line(f"{name}: {text}")


def wait(options: dict[str, Any], out: Output) -> None:
    """Wait for one batch."""
    try:
        status = wait_for_batch(options["batch_id"], options["timeout"])
    except TimeoutError as error:
        raise CommandError(str(error)) from None
    batch = _find(options["batch_id"])
    out.result(status, **batch_values(batch))
    if status != BatchStatus.COMPLETED:
        raise CommandError(f"batch {batch.pk!r} ended {status}")


def cancel(options: dict[str, Any], out: Output) -> None:
    """Cancel one batch."""
    batch = _find(options["batch_id"])
    number = batch.cancel()
    out.result(f"{batch.pk}: {number} members cancelled or asked to stop", id=batch.pk, members=number)


def replay(options: dict[str, Any], out: Output) -> None:
    """Replay one batch."""
    batch = _find(options["batch_id"])
    number = batch.replay()
    out.result(f"{batch.pk}: {number} members replayed", id=batch.pk, members=number)


def _find(batch_id: str) -> Batch:
    batch = Batch.objects.filter(pk=batch_id).first()
    if batch is None:
        raise BatchNotFound(batch_id)
    return batch


def batch_values(batch: Batch) -> dict[str, Any]:
    """Return a batch for machines."""
    return {**{name: getattr(batch, name) for name in COLUMNS}, "parent": batch.parent_id, "progress": batch.progress}


def _row(batch: Batch) -> tuple[Any, ...]:
    """Return a batch for a table with HEADS."""
    progress = batch.progress
    members = sum(progress.values())
    ended = members - sum(progress[status] for status in LIVE)
    return (batch.pk, batch.description, batch.status, ended, members, batch.created_at, batch.finished_at)
