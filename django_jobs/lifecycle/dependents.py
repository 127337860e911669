"""Dependents: the last dependency wakes them in the transaction that settles it; a bad end fails them, in steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from django.db.models import Case, Count, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce

from django_jobs import signals
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_cascade, notify_work
from django_jobs.models import DependencyState, Job, JobDependency, JobStatus, OnFailure
from django_jobs.models.job import ENDED_BADLY, WAITING

from .members import Ended
from .moved import end_waiting, in_chunks

STEP = 500
CHUNK = 1000
# The edges of failed jobs, and those of them whose dependency was replayed: a job all of whose edges are such waits again.
REVIVABLE = Q(state=DependencyState.BROKEN) & Q(job__status=JobStatus.FAILED)
LIVE_AGAIN = ~Q(depends_on__status__in=ENDED_BADLY)


class OpenEdge(NamedTuple):
    """An edge that still holds its dependent back."""

    id: int
    job_id: str
    depends_on_id: str
    on_failure: str


def wake_dependents(ids: Sequence[str]) -> dict[str, list[str]]:
    """Take settled, completed jobs off their dependents' counts; those that reach zero become claimable.

    Returns their ids by queue, for the caller to notify of. Call it in the settling transaction, after the settle: an edge that
    was committed meanwhile is seen by this statement of its own, and none can appear later because a submit that names a
    dependency shares the lock we now hold.
    """
    edges = open_edges(ids)
    return satisfy(edges) if edges else {}


class Cascaded(NamedTuple):
    """The jobs that failed by others, and whether that left some behind them to be failed."""

    failed: list[Ended]
    is_left: bool = False


def settle_dependents(ids: Sequence[str]) -> Cascaded:
    """Treat the dependents of jobs that ended badly: free those that run anyway, fail the first STEP of the others.

    Call it in the settling transaction. What is left is done by `continue_cascade`: at once when this is a worker process,
    otherwise by the next sweep of any other one.
    """
    edges = open_edges(ids)
    if not edges:
        return Cascaded([])
    free([edge for edge in edges if edge.on_failure == OnFailure.RUN])
    broken = [edge for edge in edges if edge.on_failure == OnFailure.FAIL]
    failed = break_edges(broken[:STEP])
    is_left = len(broken) > STEP or (bool(failed) and bool(open_edges([one.job_id for one in failed])))
    if is_left:
        # Left to the sweep, the next layer would wait for up to a lease, and a drain would end before it.
        notify_cascade()
    return Cascaded(failed, is_left)


def dependents_of(ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of the jobs that still wait for each of these."""
    waiting: dict[str, list[str]] = {}
    for edge in open_edges(ids):
        waiting.setdefault(edge.depends_on_id, []).append(edge.job_id)
    return waiting


def fail_broken(ids: Sequence[str]) -> list[Ended]:
    """Fail new jobs that depend on one that ended badly before they were submitted; return all that failed."""
    edges = JobDependency.objects.filter(job_id__in=ids, state=DependencyState.BROKEN)
    failed = _fail({edge.job_id: edge.depends_on_id for edge in edges.order_by("-depends_on_id")})
    return failed + settle_dependents([one.job_id for one in failed]).failed


def recount(ids: Iterable[str]) -> None:
    """Set `pending_dependencies` of jobs, whose rows the caller has locked, to the number of their open edges."""
    count = (
        JobDependency.objects.filter(job_id=OuterRef("pk"), state=DependencyState.OPEN)
        .order_by()
        .values("job_id")
        .annotate(number=Count("pk"))
        .values("number")
    )
    for chunk in in_chunks(sorted(ids), CHUNK):
        Job.objects.filter(pk__in=chunk).update(pending_dependencies=Coalesce(Subquery(count), 0))


def open_edges(ids: Sequence[str]) -> list[OpenEdge]:
    """Return the open edges to settled jobs; on the hot path, so one short statement that nearly always finds nothing."""
    found: list[OpenEdge] = []
    for chunk in in_chunks(ids, CHUNK):
        found += [OpenEdge._make(row) for row in dialect().open_edges(chunk)]
    return found


def locked_in_order(ids: Collection[str]) -> list[tuple[str, str, str, int]]:
    """Lock jobs in one order for all, so that settles that share dependents queue up instead of deadlocking.

    Returns (id, queue, status, pending_dependencies) of each.
    """
    return [row for chunk in in_chunks(sorted(ids), CHUNK) for row in dialect().lock_jobs(chunk)]


def free(edges: Sequence[OpenEdge]) -> None:
    """Close edges to jobs that ended badly, whose dependents run anyway, and notify of those that become claimable."""
    for queue in satisfy(edges) if edges else ():
        notify_work(queue)


def satisfy(edges: Sequence[OpenEdge]) -> dict[str, list[str]]:
    """Close edges and count their dependents down by as many; one update per job, however many of its edges closed.

    Returns the ids of those that become claimable, by queue.
    """
    freed: dict[str, list[str]] = {}
    for chunk in in_chunks(sorted(edges, key=lambda edge: edge.job_id), CHUNK):
        counts = Counter(edge.job_id for edge in chunk)
        for job_id, queue in dialect().satisfy([edge.id for edge in chunk], counts):
            freed.setdefault(queue, []).append(job_id)
    return freed


def set_edges(ids: Iterable[int], state: DependencyState) -> None:
    """Set the state of edges whose dependents the caller has locked, and counts anew."""
    for chunk in in_chunks(sorted(ids), CHUNK):
        dialect().set_edges(chunk, state.value)


def break_edges(edges: Sequence[OpenEdge]) -> list[Ended]:
    """Mark edges broken and fail their dependents, which are returned; what depends on those is for the next step."""
    if not edges:
        return []
    dependents = {edge.job_id for edge in edges}
    locked_in_order(dependents)
    set_edges((edge.id for edge in edges), DependencyState.BROKEN)
    recount(dependents)
    return _fail({edge.job_id: edge.depends_on_id for edge in edges})


def _fail(culprits: Mapping[str, str]) -> list[Ended]:
    """Fail jobs that still wait, each with an error that names the dependency it failed by; return those."""
    failed: dict[str, Ended] = {}
    for chunk in in_chunks(sorted(culprits), CHUNK):
        waiting = Job.objects.filter(pk__in=chunk, status__in=WAITING)
        chosen = dict(waiting.order_by("pk").values_list("pk", "batch_id"))
        failed.update((pk, Ended(pk, batch_id, JobStatus.FAILED)) for pk, batch_id in chosen.items())
        if chosen:
            errors = _errors({job_id: culprits[job_id] for job_id in chosen}, failed)
            error = Case(*(When(pk__in=ids, then=Value(error)) for error, ids in errors.items()))
            end_waiting(waiting, JobStatus.FAILED, error=error)
    _announce_failed(failed)
    return list(failed.values())


def _announce_failed(ids: Collection[str]) -> None:
    if ids and signals.job_failed.has_listeners(Job):
        for job in Job.objects.filter(pk__in=ids):
            signals.announce(signals.job_failed, job, error=job.error, exception=None)


def _errors(culprits: Mapping[str, str], failing: Collection[str]) -> dict[str, list[str]]:
    """Return the jobs of each error text."""
    named = Job.objects.filter(pk__in=set(culprits.values())).values_list("pk", "job_type", "status")
    ends = {pk: f"{pk} ({job_type}) ended {'failed' if pk in failing else status}" for pk, job_type, status in named}
    errors: dict[str, list[str]] = {}
    for job_id, culprit in culprits.items():
        errors.setdefault(f"dependency {ends.get(culprit, f'{culprit} is gone')}", []).append(job_id)
    return errors
