"""What a move on many answers, and what such moves share: chunks, and one order of locking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from django_jobs.exceptions import JobsError
from django_jobs.models import Job

K = TypeVar("K")
CHUNK = 500


class Moved(NamedTuple):
    """The keys of the rows that a move changed, and for each one that it left why: JobNotFound, or InvalidJob."""

    done: list[Any]
    left: dict[Any, JobsError]

    def __add__(self, other: object) -> Moved:
        if not isinstance(other, Moved):
            return NotImplemented
        return Moved(self.done + other.done, self.left | other.left)

    def raise_if_left(self) -> None:
        """Raise the reason when a row was left: what a move on one row does."""
        for error in self.left.values():
            raise error


def chunks(keys: Iterable[K]) -> Iterator[Sequence[K]]:
    """Yield the keys, sorted and each once, in chunks for one transaction."""
    ordered = sorted(set(keys))  # type: ignore[type-var]
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


def lock_jobs(ids: Sequence[str]) -> dict[str, Job]:
    """Lock jobs in the one order that all moves use, and return those that exist, as they are now."""
    rows = Job.objects.filter(pk__in=ids).order_by("pk").select_for_update()
    return {job.pk: job for job in rows.only("pk", "status", "queue", "worker_id")}
