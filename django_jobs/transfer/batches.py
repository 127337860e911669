"""The batches of exported jobs: each job of a batch carries it, with the batches around it, and an import makes it once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.batches import Place, restore_batches, with_parents
from django_jobs.lifecycle.callbacks import CALLBACKS, check_callback
from django_jobs.models import Batch, BatchMember, BatchStatus
from django_jobs.names import id_problem
from django_jobs.numbers import to_unix
from django_jobs.rules import integer, one_of
from django_jobs.submission import unix_moment
from django_jobs.text import shown

from .values import Check, by, json_object, named, nullable, plain, read_row, text

# A batch as an import keeps it: its values, the one around it first.
Chain = list[dict[str, Any]]


def _callbacks(path: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or not set(value) <= set(CALLBACKS):
        raise InvalidJob(f"{path}: give an object with any of {', '.join(CALLBACKS)}, not {shown(value)}")
    for name, callback in value.items():
        check_callback(f"{path}.{name}", callback)
    return value


def _unchecked(path: str, value: Any) -> Any:
    return value


def _seconds(path: str, value: Any) -> Any:
    return to_unix(unix_moment(path, value))


_BATCH: dict[str, Check] = {
    "id": named(id_problem),
    "description": text(200),
    "metadata": json_object,
    "callbacks": _callbacks,
    "status": by(one_of(*BatchStatus.values)),
    "created_at": _seconds,
    "finished_at": nullable(_seconds),
    "cancel_requested_at": nullable(_seconds),
    "awaited_by": nullable(named(id_problem)),
}
_place = nullable(by(integer(0, 2**63 - 1)))


def written(batch_of: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Return what is written of the batches of jobs, by job; `place` is null for a callback, which is no member."""
    ids = {job_id: batch_id for job_id, batch_id in batch_of.items() if batch_id is not None}
    if not ids:
        return {}
    places = dict(BatchMember.objects.filter(pk__in=list(ids)).values_list("job_id", "place"))
    batches = with_parents(ids.values())
    return {
        job_id: {"place": places.get(job_id), **_written(batches[batch_id], batches)}
        for job_id, batch_id in ids.items()
        if batch_id in batches
    }


def _written(batch: Batch, batches: Mapping[str, Batch]) -> dict[str, Any]:
    parent = batches.get(batch.parent_id or "")
    if parent is not None and parent.depth >= batch.depth:  # a hand has closed a circle
        parent = None
    values = {name: plain(getattr(batch, name)) for name in _BATCH}
    return {**values, "parent": None if parent is None else _written(parent, batches)}


def read(value: Any, problems: list[str]) -> tuple[int | None, Chain]:
    """Return the place and the batches of `extra.batch`; add to `problems` what is wrong."""
    checks = {**_BATCH, "place": _place, "parent": _unchecked}
    row = read_row("extra.batch", value, checks, problems)
    place, parent, path = row.pop("place"), row.pop("parent"), "extra.batch.parent"
    chain = [row]
    while parent is not None and len(problems) == 0:
        row = read_row(path, parent, {**_BATCH, "parent": _unchecked}, problems)
        parent, path = row.pop("parent"), f"{path}.parent"
        chain.append(row)
    for row in chain:
        if not problems and (row["status"] == BatchStatus.RUNNING) != (row["finished_at"] is None):
            problems.append(f"extra.batch.finished_at: a {row['status']} batch cannot have {row['finished_at']}")
    return place, chain[::-1]


class BatchImport:
    """The batches of an import: made once, with their members, in the transaction that writes the jobs."""

    def __init__(self) -> None:
        self._batches: dict[str, None] = {}

    def write(self, jobs: Sequence[tuple[str, str, int | None, Chain]]) -> None:
        """Write what is missing of the batches of jobs, given as (id, status, place, batches), and the jobs as members."""
        chains: Iterable[Chain] = (chain for _, _, _, chain in jobs)
        new: dict[str, dict[str, Any]] = {}
        for chain in chains:
            parent_id: str | None = None
            for depth, values in enumerate(chain):
                if values["id"] not in self._batches:
                    moments = {
                        name: None if values[name] is None else unix_moment(name, values[name])
                        for name in ("created_at", "finished_at", "cancel_requested_at")
                    }
                    new[values["id"]] = {**values, **moments, "parent_id": parent_id, "depth": depth}
                    self._batches[values["id"]] = None
                parent_id = values["id"]
        restore_batches(
            [Batch(**values) for values in new.values()],
            [
                Place(job_id, chain[-1]["id"], status, place)
                for job_id, status, place, chain in jobs
                if place is not None
            ],
        )

    @property
    def ids(self) -> list[str]:
        """The batches that jobs of the import name."""
        return list(self._batches)
