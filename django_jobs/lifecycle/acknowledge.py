"""Acknowledge: an operator closes a dead letter; its job stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django_jobs import signals
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import DeadLetterNotFound, InvalidJob, JobsError
from django_jobs.models import DeadLetter
from django_jobs.models.fields import DbNow

from .moved import Moved, key_chunks
from .users import known_here


def acknowledge(dead_letter_ids: Iterable[int], *, by: Any = None, note: str = "") -> Moved:
    """Close dead letters that are open, each with the same note; those that are closed are left."""
    return sum((_acknowledge(chunk, by, note) for chunk in key_chunks(dead_letter_ids)), Moved([], {}))


@transactional
def _acknowledge(dead_letter_ids: Sequence[int], by: Any, note: str) -> Moved:
    chosen = list(DeadLetter.objects.filter(pk__in=dead_letter_ids).open().order_by("pk").select_for_update())
    done = [dead_letter.pk for dead_letter in chosen]
    DeadLetter.objects.filter(pk__in=done).update(acknowledged_at=DbNow(), acknowledged_by=known_here(by), note=note)
    for dead_letter in chosen:
        signals.announce(signals.dead_letter_acknowledged, dead_letter.job_id, dead_letter=dead_letter, note=note)
    return Moved(done, why_closed(set(dead_letter_ids) - set(done)))


def why_closed(dead_letter_ids: Iterable[int]) -> dict[int, JobsError]:
    """Return for each dead letter why nothing can be done about it: it is closed, or there is none."""
    found = DeadLetter.objects.in_bulk(sorted(dead_letter_ids))
    return {pk: _why_not(pk, found.get(pk)) for pk in sorted(dead_letter_ids)}


def _why_not(pk: int, dead_letter: DeadLetter | None) -> JobsError:
    if dead_letter is None:
        return DeadLetterNotFound(pk)
    state = "acknowledged" if dead_letter.acknowledged_at else "replayed"
    return InvalidJob(f"the dead letter of job {dead_letter.job_id!r} is {state} already")
