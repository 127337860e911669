"""The members of batches: how a job becomes one, and what a move tells of those that ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.words import MEMBER, OPEN_MEMBER
from django_jobs.exceptions import BatchNotFound, InvalidJob
from django_jobs.ids import new_places
from django_jobs.models import Job, OpenMember
from django_jobs.models.job import ENDED_BADLY, TERMINAL


class Ended(NamedTuple):
    """A job that a move ended, with its batch if it has one; `settle_members` does what follows for that."""

    job_id: str
    batch_id: str | None
    status: str


def join(batch_id: str) -> int:
    """Keep a batch open until the caller commits, so that members can be added; return the batch's depth.

    Call it after every lock on jobs: moves lock jobs before batches. Raises BatchNotFound, and InvalidJob when the batch has
    finished or is being cancelled.
    """
    found = dialect().share_batch(batch_id)
    if found is None:
        raise BatchNotFound(batch_id)
    takes_members, depth = found
    if not takes_members:
        raise InvalidJob(f"batch {batch_id!r} has finished or is being cancelled: it takes no more members")
    return depth


def held_by_others(ids: Iterable[str]) -> set[str]:
    """Lock the open members among jobs that are to be had at once; return those of the jobs that somebody else holds."""
    members = OpenMember.objects.filter(pk__in=list(ids))
    free = set(members.select_for_update(skip_locked=True).values_list("pk", flat=True))
    return set(members.values_list("pk", flat=True)) - free


def add(batch_id: str, jobs: Sequence[Job]) -> None:
    """Make jobs that were just written members, in this order; one that failed at once by its dependency has ended."""
    restore([(job.id, batch_id, job.status, place) for job, place in zip(jobs, new_places(len(jobs)), strict=True)])


def restore(places: Iterable[tuple[str, str, str, int]]) -> None:
    """Write places in batches, given as (job, batch, status of the job, place)."""
    rows, left = [], []
    for job_id, batch_id, status, place in places:
        rows.append((job_id, batch_id, place, str(status) if status in ENDED_BADLY else ""))
        if status not in TERMINAL:
            left.append((job_id, batch_id, place))
    if rows:
        dialect().insert_rows(MEMBER, ("job_id", "batch_id", "place", "bad_end"), rows)
    write_open(left)


def write_open(members: Sequence[tuple[str, str, int]]) -> None:
    """Let members, given as (job, batch, place), hold their batches open."""
    if members:
        dialect().insert_rows(OPEN_MEMBER, ("job_id", "batch_id", "place"), members)
