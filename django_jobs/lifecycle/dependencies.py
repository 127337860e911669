"""The job graph: look up what a new job waits for, refuse cycles before anything is written, keep the edges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError as FoundCycle
from graphlib import TopologicalSorter
from typing import NamedTuple

from django_jobs.db.dialects import dialect
from django_jobs.exceptions import CycleError, InvalidJob
from django_jobs.models import DependencyState, JobDependency, JobStatus
from django_jobs.models.job import ENDED_BADLY

from .dependents import fail_broken
from .members import Ended
from .moved import in_chunks

CHUNK = 1000
NOWHERE: Mapping[str, str] = {}


class Edge(NamedTuple):
    """One wish of a new job: the job it waits for, what that one's failure does, and how the edge stands now."""

    depends_on: str
    on_failure: str
    state: str


Edges = dict[str, Sequence[Edge]]
Wanted = Mapping[str, tuple[Sequence[str], str]]


def resolve(wanted: Wanted, batch_ids: Collection[str], places: Mapping[str, str] = NOWHERE) -> Edges:
    """Return the edges of new jobs, each with its state now; raise InvalidJob for ids that do not exist.

    `places` says what goes before the problems of a job.

    The rows are locked FOR SHARE until the caller commits, so that a dependency cannot settle between this look and the
    moment when the edge can be seen: either we see it finished, or its settle waits and then sees our edge.
    """
    ids = {one for depends_on, _ in wanted.values() for one in depends_on if one not in batch_ids}
    statuses = locked_statuses(ids) if ids else {}
    # A pruned one is refused as well: whether it had completed is not known any more, and to guess would start the job too early.
    missing = ids - statuses.keys()
    if missing:
        raise InvalidJob(
            *(
                f"{places.get(job_id, '')}depends_on: there is no job {one!r} (it may have been pruned)"
                for job_id, (depends_on, _) in wanted.items()
                for one in depends_on
                if one in missing
            )
        )
    return {
        job_id: [Edge(one, on_failure, state_of(statuses.get(one), on_failure)) for one in depends_on]
        for job_id, (depends_on, on_failure) in wanted.items()
    }


def state_of(status: str | None, on_failure: str) -> str:
    if status == JobStatus.COMPLETED or (status in ENDED_BADLY and on_failure == "run"):
        return DependencyState.SATISFIED
    return DependencyState.BROKEN if status in ENDED_BADLY else DependencyState.OPEN


def locked_statuses(ids: Iterable[str]) -> dict[str, str]:
    """Return the status of each job that exists, its row locked against change, in one order so that nobody deadlocks."""
    statuses: dict[str, str] = {}
    for chunk in in_chunks(sorted(ids), CHUNK):
        statuses.update(dialect().share_jobs(chunk))
    return statuses


def count_open(edges: Sequence[Edge]) -> int:
    """Return how many of the edges still hold their job back."""
    return sum(edge.state == DependencyState.OPEN for edge in edges)


def store(edges: Edges) -> list[Ended]:
    """Write the edges of jobs just inserted; fail those that depend on a job that ended badly, and return what failed."""
    JobDependency.objects.bulk_create(
        (
            JobDependency(job_id=job_id, depends_on_id=one.depends_on, on_failure=one.on_failure, state=one.state)
            for job_id, wanted in edges.items()
            for one in wanted
        ),
        batch_size=CHUNK,
    )
    broken = [job_id for job_id, wanted in edges.items() if any(one.state == DependencyState.BROKEN for one in wanted)]
    return fail_broken(broken) if broken else []


def refuse_cycles(depends_on: Mapping[str, Sequence[str]]) -> None:
    """Raise CycleError with the path when the edges of a batch run in a circle.

    Stored jobs cannot depend on jobs that do not exist yet, so a circle of new jobs lies within their batch.
    """
    try:
        TopologicalSorter(depends_on).prepare()
    except FoundCycle as found:
        # graphlib names each node as a predecessor of the next; read backwards it says "depends on".
        raise CycleError("the jobs depend on each other: " + " → ".join(reversed(found.args[1]))) from None
