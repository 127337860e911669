"""Add a dependency: a job that still waits gets one more job to wait for, unless that closes a circle."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import F

from django_jobs.db.transactions import transactional
from django_jobs.exceptions import CycleError, InvalidJob, JobNotFound
from django_jobs.models import DependencyState, Job, JobDependency
from django_jobs.models.job import WAITING
from django_jobs.names import id_problem

from . import slots
from .batches import settle_members
from .dependencies import Edge, state_of, store


@transactional
def add_dependency(job_id: str, depends_on: str, on_failure: str = "fail") -> None:
    """Make a job that still waits depend on one more; raise InvalidJob or CycleError and change nothing otherwise."""
    if on_failure not in ("fail", "run"):
        raise InvalidJob(f"on_failure={on_failure!r}: give 'fail' or 'run'")
    if problem := id_problem(depends_on):
        raise InvalidJob(f"depends_on: {problem}")
    if job_id == depends_on:
        raise CycleError(f"the jobs depend on each other: {job_id} → {job_id}")
    statuses = _lock_ancestors(job_id, depends_on)
    if job_id not in statuses:
        raise JobNotFound(job_id)
    if depends_on not in statuses:
        raise InvalidJob(f"depends_on: there is no job {depends_on!r} (it may have been pruned)")
    if statuses[job_id] not in WAITING:
        raise InvalidJob(f"job {job_id!r} is {statuses[job_id]}; only a job that still waits can get a dependency")
    if JobDependency.objects.filter(job_id=job_id, depends_on_id=depends_on).exists():
        raise InvalidJob(f"job {job_id!r} depends on {depends_on!r} already")
    edge = Edge(depends_on, on_failure, state_of(statuses[depends_on], on_failure))
    if edge.state != DependencyState.SATISFIED:
        job = Job.objects.filter(pk=job_id)
        slots.leave(job)
        more = int(edge.state == DependencyState.OPEN)
        job.update(pending_dependencies=F("pending_dependencies") + more, pending_limits=0)
    settle_members(store({job_id: [edge]}))


def _lock_ancestors(job_id: str, depends_on: str) -> dict[str, str]:
    """Lock the job and all that the new dependency waits for, and refuse it when the job is among them; return their statuses.

    Two calls that close a circle together each lock a row that the other one needs, so one of them sees the other's edge.
    """
    wanted: set[str] = set()
    statuses: dict[str, str] = {}
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
        locked, wanted = wanted, {job_id, depends_on, *parents}
        if wanted <= locked:
            return statuses
        rows = Job.objects.filter(pk__in=wanted | locked).order_by("pk").select_for_update()
        statuses = dict(rows.values_list("pk", "status"))


def _path(job_id: str, depends_on: str, parents: Mapping[str, str]) -> list[str]:
    """Return the circle job → new dependency → … → job."""
    back = [job_id]
    while back[-1] != depends_on:
        back.append(parents[back[-1]])
    return [job_id, *reversed(back)]
