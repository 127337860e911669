"""The job graph: look up what a new job waits for, refuse cycles before anything is written, keep the edges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError as FoundCycle
from graphlib import TopologicalSorter
from typing import NamedTuple

from django.db.models import F

from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import CycleError, InvalidJob, JobNotFound
from django_jobs.models import DependencyState, Job, JobDependency, JobStatus
from django_jobs.models.job import ENDED_BADLY, WAITING
from django_jobs.names import id_problem

from .dependents import fail_broken

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
        job_id: [Edge(one, on_failure, _state(statuses.get(one), on_failure)) for one in depends_on]
        for job_id, (depends_on, on_failure) in wanted.items()
    }


def _state(status: str | None, on_failure: str) -> str:
    if status == JobStatus.COMPLETED or (status in ENDED_BADLY and on_failure == "run"):
        return DependencyState.SATISFIED
    return DependencyState.BROKEN if status in ENDED_BADLY else DependencyState.OPEN


def locked_statuses(ids: Iterable[str]) -> dict[str, str]:
    """Return the status of each job that exists, its row locked against change, in one order so that nobody deadlocks."""
    ordered = sorted(ids)
    statuses: dict[str, str] = {}
    for start in range(0, len(ordered), CHUNK):
        statuses.update(dialect().share_jobs(ordered[start : start + CHUNK]))
    return statuses


def count_open(edges: Sequence[Edge]) -> int:
    """Return how many of the edges still hold their job back."""
    return sum(edge.state == DependencyState.OPEN for edge in edges)


def store(edges: Edges) -> list[str]:
    """Write the edges of jobs just inserted; fail those that depend on a job that ended badly, and return their ids."""
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


@transactional
def add_dependency(job_id: str, depends_on: str, on_failure: str = "fail") -> None:
    """Make a job that still waits depend on one more; raise InvalidJob or CycleError and change nothing otherwise."""
    if on_failure not in ("fail", "run"):
        raise InvalidJob(f"on_failure={on_failure!r}: give 'fail' or 'run'")
    if problem := id_problem(depends_on):
        raise InvalidJob(f"depends_on: {problem}")
    if job_id == depends_on:
        raise CycleError(f"the jobs depend on each other: {job_id} → {job_id}")
    _lock_ancestors(job_id, depends_on)
    statuses = dict(Job.objects.filter(pk__in=(job_id, depends_on)).values_list("pk", "status"))
    if job_id not in statuses:
        raise JobNotFound(job_id)
    if depends_on not in statuses:
        raise InvalidJob(f"depends_on: there is no job {depends_on!r} (it may have been pruned)")
    if statuses[job_id] not in WAITING:
        raise InvalidJob(f"job {job_id!r} is {statuses[job_id]}; only a job that still waits can get a dependency")
    if JobDependency.objects.filter(job_id=job_id, depends_on_id=depends_on).exists():
        raise InvalidJob(f"job {job_id!r} depends on {depends_on!r} already")
    edge = Edge(depends_on, on_failure, _state(statuses[depends_on], on_failure))
    if edge.state == DependencyState.OPEN:
        Job.objects.filter(pk=job_id).update(pending_dependencies=F("pending_dependencies") + 1)
    store({job_id: [edge]})


def _lock_ancestors(job_id: str, depends_on: str) -> None:
    """Lock the job and all that the new dependency waits for, and refuse it when the job is among them.

    Two calls that close a circle together each lock a row that the other one needs, so one of them sees the other's edge.
    """
    locked: set[str] = set()
    while True:
        parents: dict[str, str] = {}  # ancestor -> the job on the way back that depends on it
        layer = {depends_on}
        while layer:
            found = JobDependency.objects.filter(job_id__in=layer).values_list("job_id", "depends_on_id")
            layer = set()
            for child, parent in found:
                if parent not in parents and parent != depends_on:
                    parents[parent] = child
                    layer.add(parent)
        if job_id in parents:
            raise CycleError("the jobs depend on each other: " + " → ".join(_path(job_id, depends_on, parents)))
        wanted = {job_id, depends_on, *parents}
        if wanted <= locked:
            return
        list(Job.objects.filter(pk__in=wanted).order_by("pk").select_for_update().values_list("pk"))
        locked |= wanted


def _path(job_id: str, depends_on: str, parents: Mapping[str, str]) -> list[str]:
    """Return the circle job → new dependency → … → job."""
    back = [job_id]
    while back[-1] != depends_on:
        back.append(parents[back[-1]])
    return [job_id, *reversed(back)]
