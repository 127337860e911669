"""Causes: an operator notes something about a cause of dead letters, and may mute it until a time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django_jobs.db.transactions import database_now, transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Cause

from .users import known_here


@transactional
def note_cause(fingerprint: str, *, note: str = "", muted_until: datetime | None = None, by: Any = None) -> None:
    """Keep a note about a cause, and mute it until then; without a time it is not muted.

    A dead letter of a muted cause is written and stays open as any other; it raises no alarm. Raises InvalidJob for an empty
    fingerprint, and for a time that is past or has no time zone.
    """
    if not fingerprint:
        raise InvalidJob("a dead letter without a fingerprint has no cause to be noted")
    now = database_now()
    if muted_until is not None and (muted_until.tzinfo is None or muted_until <= now):
        raise InvalidJob(f"muted_until {muted_until!r}: give a time with a time zone that is not past")
    values = {"note": note, "muted_until": muted_until, "changed_at": now, "changed_by": known_here(by)}
    Cause.objects.update_or_create(fingerprint=fingerprint, defaults=values)
