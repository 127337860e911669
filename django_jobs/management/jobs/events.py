"""The verbs of events: emit, events."""

from __future__ import annotations

from typing import Any

from django_jobs.lifecycle.events import emit
from django_jobs.masking import masked
from django_jobs.models import Event
from django_jobs.payloads import read_json

from .output import Output, streamed
from .verbs import EACH, SUBMIT, Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "emit", emit_event, "emit an event and print its number; the jobs that wait for it go on",
        "emit order.approved --key order:7 --payload '{\"by\": \"ada\"}'",
        over=SUBMIT,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--key", metavar="K", help="of what it tells")
    parser.add_argument("--payload", metavar="JSON", help="a JSON object for the jobs that wait")
    parser.add_argument(
        "--retention", type=float, metavar="SECONDS", help="how long it is kept for later jobs (0: not at all)"
    )
    parser = verbs.add(
        "events", list_events, "list events that are kept, the newest first", "events --name order.approved", over=EACH
    )
    parser.add_argument("--name")
    parser.add_argument("--key", metavar="K")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")


def emit_event(options: dict[str, Any], out: Output) -> None:
    """Emit one event."""
    payload = None if options["payload"] is None else read_json(options["payload"], "--payload")
    event = emit(options["name"], key=options["key"], payload=payload, retention=options["retention"])
    out.result(str(event.pk), **_values(event))


def list_events(options: dict[str, Any], out: Output) -> None:
    """Print events, newest first."""
    chosen = {name: options[name] for name in ("name", "key") if options[name] is not None}
    limit = options["limit"] if options["limit"] > 0 else None
    with streamed(Event.objects.filter(**chosen).order_by("-pk")[:limit]) as events:
        out.rows(events, _values, ("ID", "NAME", "KEY", "CREATED", "EXPIRES"), _row)


def _values(event: Event) -> dict[str, Any]:
    names = ("id", "name", "key", "created_at", "expires_at")
    return {**{name: getattr(event, name) for name in names}, "payload": masked(event.payload)}


def _row(event: Event) -> tuple[Any, ...]:
    return (event.pk, event.name, event.key, event.created_at, event.expires_at)
