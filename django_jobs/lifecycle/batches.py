"""Batches: begin one, and finish it in the transaction that ends its last member.

A settle takes its own members out of the open ones, and then looks for an open one that nobody else has locked. It locks that
one until its commit: whoever ends it comes later, and sees what was settled here. So a settle waits for nobody as long as many
members are left. Where no such member is found, the batch's row decides: under its lock the last one sees that it is the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from django.db import connections, transaction

from django_jobs.db.connections import jobs_alias, use_database
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_finished
from django_jobs.db.transactions import database_now, immediate, transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Batch, BatchMember, BatchStatus, JobDependency, JobStatus, OpenMember
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY
from django_jobs.payloads import decode, encode_payload
from django_jobs.rules import check_all

from . import members
from .callbacks import checked, submit_callbacks
from .dependents import LIVE_AGAIN, REVIVABLE
from .events import tell_end
from .members import Ended
from .moved import in_chunks

CHUNK = 1000
AT_ONCE = 100  # a statement has so many parts; SQLite takes 500
LONGEST_DESCRIPTION = 200
# Batches whose `with` block is not over. Nobody else can see their rows, so what this process knows of them is all there is.
_begun: set[str] = set()


# --- begin


def new_batch(
    description: str,
    *,
    metadata: Mapping[str, Any] | None,
    callbacks: Mapping[str, Any],
    parent_id: str | None = None,
    awaited_by: str | None = None,
) -> AbstractContextManager[Batch]:
    """Return a block whose transaction writes a batch and what is submitted to it; raise InvalidJob with every problem."""
    values: dict[str, Any] = {}
    check_all(
        lambda: _check_length(description),
        lambda: encode_payload({"description": description}, where="batch"),
        lambda: values.update(metadata=decode(encode_payload({} if metadata is None else metadata, where="metadata"))),
        lambda: values.update(callbacks=checked(callbacks)),
    )
    batch = Batch(description=description, parent_id=parent_id, awaited_by=awaited_by, **values)
    batch._state.db = jobs_alias()
    return _block(batch)


def _check_length(description: Any) -> None:
    if not isinstance(description, str) or len(description) > LONGEST_DESCRIPTION:
        raise InvalidJob(f"description: give a text of at most {LONGEST_DESCRIPTION} characters")


@contextmanager
def _block(batch: Batch) -> Iterator[Batch]:
    alias = batch._state.db or ""  # as `new_batch` has found it
    with immediate(connections[alias]), transaction.atomic(using=alias):
        with use_database(alias):
            if batch.parent_id is not None:
                batch.depth = members.join(batch.parent_id) + 1
            batch.created_at = database_now()
            batch.save(force_insert=True, using=alias)
        _begun.add(batch.pk)
        try:
            yield batch
        finally:
            _begun.discard(batch.pk)
        with use_database(alias):
            if not _is_open(batch.pk):
                _finish([batch.pk])
                batch.refresh_from_db(using=alias)


# --- finish


def settle_members(ended: Iterable[Ended]) -> None:
    """End the members among jobs that have just ended, and finish the batches of which they were the last.

    Call it in the transaction that ended them, after all its other locks.
    """
    batch_ids: set[str] = set()
    ids: list[str] = []
    bad: dict[str, list[str]] = {}
    for job_id, batch_id, status in ended:
        if batch_id is not None:
            batch_ids.add(batch_id)
            ids.append(job_id)
            if status in ENDED_BADLY:
                bad.setdefault(str(status), []).append(job_id)
    if not ids:
        return
    changed = sum(dialect().end_members(chunk) for chunk in in_chunks(sorted(ids), CHUNK))
    for status, jobs in bad.items():
        for chunk in in_chunks(sorted(jobs), CHUNK):
            BatchMember.objects.filter(pk__in=chunk).update(bad_end=status)
    if changed:  # a callback knows its batch, and is no member
        _finish(batch_ids - _held_open(batch_ids))


@transactional
def finish_ended(batch_id: str) -> None:
    """Finish a batch of which no member is left."""
    if not _is_open(batch_id):
        _finish([batch_id])


def finish_of(job_ids: Collection[str]) -> None:
    """Finish those of the jobs' batches of which no member is left."""
    found: set[str] = set()
    for chunk in in_chunks(sorted(job_ids), CHUNK):
        found.update(BatchMember.objects.filter(pk__in=chunk).values_list("batch_id", flat=True))
    _finish([batch_id for batch_id in sorted(found) if not _is_open(batch_id)])


def _held_open(batch_ids: Collection[str]) -> set[str]:
    held: set[str] = set()
    for chunk in in_chunks(sorted(batch_ids), AT_ONCE):
        held |= dialect().hold_open(chunk)
    return held


def _finish(batch_ids: Collection[str]) -> None:
    """Finish those of the batches that no open member is left of, and the batches around them; the deepest come first."""
    if not batch_ids:
        return
    running = Batch.objects.unfinished().filter(pk__in=batch_ids)
    left = [(-depth, pk) for depth, pk in running.values_list("depth", "pk")]
    heapify(left)
    while left:
        place = heappop(left)
        parent_id = _finish_one(place[1])
        above = (place[0] + 1, parent_id or "")
        if parent_id is not None and above not in left and not _held_open([parent_id]):
            heappush(left, above)


def _finish_one(batch_id: str) -> str | None:
    """Finish a batch if no open member is left of it; return its parent then."""
    if batch_id in _begun or _holds_nested(batch_id):
        return None
    batch = _locked(batch_id)
    if batch is None or _is_open(batch_id):
        return None
    bad = set(
        BatchMember.objects.filter(batch=batch_id, bad_end__in=sorted(ENDED_BADLY))
        .values_list("bad_end", flat=True)
        .distinct()
    )
    if JobStatus.FAILED in bad and _will_revive(batch_id):
        return None
    bad.update(
        Batch.objects.filter(parent=batch_id)
        .exclude(status=BatchStatus.COMPLETED)
        .order_by()
        .values_list("status", flat=True)
        .distinct()
    )
    status = BatchStatus.COMPLETED
    if bad:
        status = BatchStatus.CANCELLED if bad == {BatchStatus.CANCELLED} else BatchStatus.FAILED
    Batch.objects.filter(pk=batch_id).update(status=status, finished_at=DbNow())
    submit_callbacks(batch_id, batch.callbacks, ended_well=not bad)
    if batch.awaited_by is not None:
        tell_end(batch_id, status)
    notify_finished()
    parent_id: str | None = batch.parent_id
    return parent_id


def _locked(batch_id: str) -> Batch | None:
    return Batch.objects.unfinished().filter(pk=batch_id).select_for_update().first()


def _holds_nested(batch_id: str) -> bool:
    """Lock a nested batch that has not finished and that nobody else has locked, as a settle does with a member."""
    nested = Batch.objects.filter(parent=batch_id, status=BatchStatus.RUNNING).order_by()
    return bool(nested.select_for_update(skip_locked=True).values_list("pk", flat=True)[:1])


def _is_open(batch_id: str) -> bool:
    members_left = OpenMember.objects.filter(batch=batch_id)
    return members_left.exists() or Batch.objects.filter(parent=batch_id, status=BatchStatus.RUNNING).exists()


def _will_revive(batch_id: str) -> bool:
    """Say whether a failed member is about to wait again because its dependency was replayed."""
    edges = JobDependency.objects.filter(REVIVABLE, LIVE_AGAIN)
    return edges.filter(job__membership__batch=batch_id, job__membership__bad_end=JobStatus.FAILED).exists()


# --- open again


def reopen(ids: Sequence[str]) -> None:
    """Let those of the jobs that are members hold their batches open again, and the batches around these; finished ones, too.

    Call it in the transaction that made them wait again.
    """
    batch_ids: set[str] = set()
    for chunk in in_chunks(sorted(ids), CHUNK):
        again = BatchMember.objects.filter(pk__in=chunk)  # a callback is no member
        if found := list(again.values_list("job_id", "batch_id", "place")):
            again.update(bad_end="")
            members.write_open(found)
            batch_ids.update(batch_id for _, batch_id, _ in found)
    _open(batch_ids)


def _open(batch_ids: Collection[str]) -> None:
    for batch in sorted(with_parents(batch_ids).values(), key=lambda batch: (-batch.depth, batch.pk)):
        running = {"status": BatchStatus.RUNNING, "finished_at": None, "cancel_requested_at": None}
        Batch.objects.filter(pk=batch.pk).update(**running)


def with_parents(batch_ids: Iterable[str]) -> dict[str, Batch]:
    """Return batches and all around them, by id."""
    found: dict[str, Batch] = {}
    ids = set(batch_ids)
    while layer := Batch.objects.in_bulk(list(ids)):
        found.update(layer)
        ids = {batch.parent_id for batch in layer.values() if batch.parent_id is not None} - found.keys()
    return found


def with_nested(batch_id: str) -> list[str]:
    """Return a batch and all that are nested in it."""
    found: dict[str, None] = {}
    layer = [batch_id]
    while layer:
        found.update(dict.fromkeys(layer))
        nested = Batch.objects.filter(parent__in=layer).values_list("pk", flat=True)
        layer = [nested_id for nested_id in nested if nested_id not in found]
    return list(found)


# --- restore


class Place(NamedTuple):
    """The place of an imported job in its batch."""

    job_id: str
    batch_id: str
    status: str
    place: int


def restore_batches(batches: Sequence[Batch], places: Sequence[Place]) -> None:
    """Write batches that are not here, the outer ones first, and the places of jobs in them."""
    here = set(Batch.objects.filter(pk__in=[batch.pk for batch in batches]).values_list("pk", flat=True))
    Batch.objects.bulk_create([batch for batch in batches if batch.pk not in here], batch_size=CHUNK)
    members.restore([(place.job_id, place.batch_id, place.status, place.place) for place in places])


def settle_restored(batch_ids: Sequence[str]) -> None:
    """Let imported batches stand as their members do: open when one has not ended, else finished."""
    running = set(OpenMember.objects.filter(batch__in=batch_ids).values_list("batch", flat=True))
    _open(running)
    _finish([batch_id for batch_id in batch_ids if batch_id not in running and not _is_open(batch_id)])
    ended = Batch.objects.finished().filter(pk__in=batch_ids, awaited_by__isnull=False)
    for batch_id, status in ended.values_list("pk", "status"):  # the events that told of it are not imported
        tell_end(batch_id, status)
