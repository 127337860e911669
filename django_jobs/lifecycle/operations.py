"""Operations: one move on many rows, made a step at a time by any worker.

A step is one transaction: it locks the operation's row, moves the next rows behind the cursor, and writes cursor and counts. So
there is one step at a time over all processes, and a killed one leaves nothing that is done twice or never.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Model, QuerySet

from django_jobs.db.connections import jobs_alias
from django_jobs.db.errors import is_away
from django_jobs.db.transactions import database_now, transactional
from django_jobs.exceptions import InvalidJob, OperationNotFound
from django_jobs.models import DeadLetter, Job, Operation, OperationKind, OperationState, ScheduleTick
from django_jobs.models.fields import DbNow
from django_jobs.text import shown

from .acknowledge import acknowledge
from .cancel import cancel_some
from .change import change
from .delete import delete_finished, discard
from .moved import CHUNK, Moved
from .promote import run_now
from .replay import replay_some, replay_some_dead_letters
from .users import known_here

logger = logging.getLogger("django_jobs")
KEPT = timedelta(days=90)
SLOWEST, FASTEST = 0.01, 10_000  # rows per second
STEP_SECONDS = 1.0  # of rows at most are moved at once where a rate holds
MOST_IDS = 10_000
Move = Callable[[Sequence[Any], Any, Mapping[str, Any]], Moved]
MOVES: dict[str, Move] = {
    OperationKind.REPLAY: lambda ids, by, options: replay_some(ids, by=by, **options),
    OperationKind.RUN_NOW: lambda ids, by, options: run_now(ids),
    OperationKind.CANCEL: lambda ids, by, options: cancel_some(ids),
    OperationKind.CHANGE: lambda ids, by, options: change(ids, **options),
    OperationKind.DELETE: lambda ids, by, options: delete_finished(ids),
    OperationKind.DISCARD: lambda ids, by, options: discard(ids),
    OperationKind.REPLAY_DEAD_LETTERS: lambda ids, by, options: replay_some_dead_letters(ids, by=by, **options),
    OperationKind.ACKNOWLEDGE: lambda ids, by, options: acknowledge(ids, by=by, **options),
}
OF_DEAD_LETTERS = frozenset({OperationKind.REPLAY_DEAD_LETTERS, OperationKind.ACKNOWLEDGE})


def begin(
    kind: OperationKind,
    *,
    filters: Mapping[str, Any] | None = None,
    ids: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
    per_second: float | None = None,
    by: Any = None,
    address: str = "",
) -> Operation:
    """Write an operation on rows that exist now; workers begin within a second. Raises InvalidJob for what cannot be.

    Args:
        filters: lookups of Job or DeadLetter as values of JSON, and `schedule` for a schedule's name.
        ids: the keys of the rows instead, at most MOST_IDS.
        options: the keywords of the move.
        per_second: how many rows are moved each second; None: as fast as one worker can.
        address: the query of the list that was filtered, for people.
    """
    if per_second is not None and not SLOWEST <= per_second <= FASTEST:
        raise InvalidJob(f"per_second {per_second!r}: give a number from {SLOWEST} to {FASTEST}")
    if (ids is None) == (filters is None) or len(ids or ()) > MOST_IDS:
        raise InvalidJob(f"give filters, or at most {MOST_IDS} ids")
    operation = Operation(
        kind=kind,
        filters=dict(filters or {}),
        ids=None if ids is None else sorted(set(ids)),
        options=dict(options or {}),
        per_second=per_second,
        created_by=known_here(by),
        address=address,
    )
    if kind == OperationKind.CHANGE:
        change([], **operation.options)
    return _write(operation)


@transactional
def _write(operation: Operation) -> Operation:
    now = database_now()
    if operation.ids is None:  # what comes later was not asked for, and it could come without an end
        born = "died_at" if operation.kind in OF_DEAD_LETTERS else "created_at"
        operation.filters[f"{born}__lt"] = (now + timedelta(milliseconds=1)).isoformat()  # as fine as SQLite's clock
    operation.total = rows_of(operation).count() if operation.ids is None else len(operation.ids)
    operation.created_at = operation.next_at = now
    operation.save(force_insert=True, using=jobs_alias())
    Operation.objects.filter(ended_at__lt=now - KEPT).delete()
    return operation


def rows_of(operation: Operation) -> QuerySet[Any]:
    """Return the rows of an operation as they are now; raise what Django raises for filters that cannot be."""
    model: type[Model] = DeadLetter if operation.kind in OF_DEAD_LETTERS else Job
    rows = model._default_manager.all()
    if operation.ids is not None:
        return rows.filter(pk__in=operation.ids)
    filters = dict(operation.filters)
    if (name := filters.pop("schedule", None)) is not None:
        rows = rows.filter(pk__in=ScheduleTick.objects.filter(schedule__name=name).values("job_id"))
    return rows.filter(**filters)


def pause(operation_id: int) -> None:
    """Let no further step be made; a step that is being made is waited for. Raises OperationNotFound and InvalidJob."""
    _switch(operation_id, {OperationState.RUNNING}, state=OperationState.PAUSED, next_at=None)


def resume(operation_id: int) -> None:
    """Go on with a paused operation. Raises OperationNotFound and InvalidJob."""
    _switch(operation_id, {OperationState.PAUSED}, state=OperationState.RUNNING, next_at=DbNow())


def stop(operation_id: int) -> None:
    """End an operation that has not ended; what was done stays done. Raises OperationNotFound and InvalidJob."""
    live = {OperationState.RUNNING, OperationState.PAUSED}
    _switch(operation_id, live, state=OperationState.STOPPED, next_at=None, ended_at=DbNow())


@transactional
def _switch(operation_id: int, allowed: set[OperationState], **changes: Any) -> None:
    row = Operation.objects.filter(pk=operation_id).select_for_update().only("state").first()
    if row is None:
        raise OperationNotFound(operation_id)
    if row.state not in allowed:
        raise InvalidJob(
            f"operation {operation_id} is {row.state}; it takes one that is {' or '.join(sorted(allowed))}"
        )
    Operation.objects.filter(pk=operation_id).update(**changes)


def move_operations() -> float | None:
    """Make one step of the operation that is due first; return the seconds until the next step of any, None without one.

    An operation whose step fails for a reason of its own ends as failed; where the database is away, its error is raised.
    """
    for operation_id in list(Operation.objects.due().order_by("next_at", "pk").values_list("pk", flat=True)):
        try:
            if _step(operation_id):
                break
        except Exception as error:
            if is_away(error):
                raise
            logger.exception("operation %s failed", operation_id)
            _fail(operation_id, f"{type(error).__name__}: {error}")
    following = Operation.objects.running().order_by("next_at").values_list("next_at", DbNow()).first()
    return None if following is None else max(0.0, (following[0] - following[1]).total_seconds())


@transactional
def _step(operation_id: int) -> bool:
    """Make one step unless another process makes it, or somebody has paused or stopped the operation."""
    found = Operation.objects.due().filter(pk=operation_id)
    operation = found.select_for_update(skip_locked=True, of=()).first()
    if operation is None:
        return False
    size = CHUNK if operation.per_second is None else max(1, min(CHUNK, int(operation.per_second * STEP_SECONDS)))
    ids = _next_ids(operation, size)
    moved = MOVES[operation.kind](ids, operation.created_by_id, operation.options) if ids else Moved([], {})
    now = database_now()
    operation.started_at = operation.started_at or now
    operation.done += len(moved.done)
    operation.skipped += len(ids) - len(moved.done)
    operation.cursor = str(ids[-1]) if ids else operation.cursor
    # Behind the others that are due, so that a long operation lets short ones through.
    operation.next_at = now + timedelta(seconds=size / operation.per_second if operation.per_second else 0)
    if len(ids) < size:
        operation.state, operation.next_at, operation.ended_at = OperationState.FINISHED, None, now
    columns = ["state", "started_at", "ended_at", "next_at", "done", "skipped", "cursor"]
    operation.save(update_fields=columns, using=jobs_alias())
    return True


def _next_ids(operation: Operation, size: int) -> list[Any]:
    """Return the keys behind the cursor, also those of `ids` whose rows are gone meanwhile."""
    cursor: Any = operation.cursor
    if cursor and operation.kind in OF_DEAD_LETTERS:
        cursor = int(cursor)
    if operation.ids is not None:
        return [key for key in operation.ids if cursor == "" or key > cursor][:size]
    rows = rows_of(operation)
    rows = rows if cursor == "" else rows.filter(pk__gt=cursor)
    return list(rows.order_by("pk").values_list("pk", flat=True)[:size])


@transactional
def _fail(operation_id: int, error: str) -> None:
    Operation.objects.filter(pk=operation_id, state=OperationState.RUNNING).update(
        state=OperationState.FAILED, error=shown(error), next_at=None, ended_at=DbNow()
    )
