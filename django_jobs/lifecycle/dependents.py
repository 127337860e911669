"""Dependents: the last dependency wakes them in the transaction that settles it; a bad end fails them, in steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from django.db.models import Case, Count, F, OuterRef, Subquery, Value, When
from django.db.models.functions import Coalesce

from django_jobs import signals
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_cascade, notify_work
from django_jobs.db.transactions import transactional
from django_jobs.models import DependencyState, Job, JobDependency, JobStatus, OnFailure
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY, WAITING

T = TypeVar("T")
STEP = 500
CASCADE_SECONDS = 2.0  # as long as a caller who cancels may be kept; workers do the rest
CHUNK = 1000


class OpenEdge(NamedTuple):
    """An edge that still holds its dependent back."""

    id: int
    job_id: str
    depends_on_id: str
    on_failure: str


def wake_dependents(ids: Sequence[str]) -> None:
    """Take settled, completed jobs off their dependents' counts; those that reach zero become claimable.

    Call it in the settling transaction, after the settle: an edge that was committed meanwhile is seen by this statement of
    its own, and none can appear later because a submit that names a dependency shares the lock we now hold.
    """
    edges = _open_edges(ids)
    if edges:
        _satisfy(edges)


def settle_dependents(ids: Sequence[str]) -> None:
    """Treat the dependents of jobs that ended badly: free those that run anyway, fail the first STEP of the others.

    Call it in the settling transaction. What is left is done by `continue_cascade`: at once when this is a worker process,
    otherwise by the next sweep of any other one.
    """
    edges = _open_edges(ids)
    if not edges:
        return
    _satisfy([edge for edge in edges if edge.on_failure == OnFailure.RUN])
    broken = [edge for edge in edges if edge.on_failure == OnFailure.FAIL]
    failed = _break(broken[:STEP])
    if len(broken) > STEP or (failed and _open_edges(failed)):
        # Left to the sweep, the next layer would wait for up to a lease, and a drain would end before it.
        notify_cascade()


def dependents_of(ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of the jobs that still wait for each of these."""
    waiting: dict[str, list[str]] = {}
    for edge in _open_edges(ids):
        waiting.setdefault(edge.depends_on_id, []).append(edge.job_id)
    return waiting


@transactional
def continue_cascade() -> int:
    """Fail jobs whose dependency ended badly, and those behind them, along STEP edges or a few more; return how many edges.

    One transaction of its own. Nothing but the rows says what is left, so a killed process leaves nothing behind that
    another one does not find.
    """

    left = JobDependency.objects.filter(state=DependencyState.OPEN)
    columns = left.values_list("depends_on__status", *OpenEdge._fields)
    first = columns.filter(depends_on__status__in=ENDED_BADLY).order_by("depends_on_id", "job_id")[:STEP]
    found = _behind([OpenEdge._make(row[1:]) for row in first])
    if not found:
        return 0
    # Others may be at the same edges, or replay the dependency: what still holds under the locks is ours to treat.
    _locked({name for edge in found for name in (edge.job_id, edge.depends_on_id)})
    status = {row[1]: row[0] for row in columns.filter(pk__in=[edge.id for edge in found])}
    bad = {edge.depends_on_id for edge in found if status.get(edge.id) in ENDED_BADLY}
    edges = []
    for edge in found:  # a dependency's own edge comes before those to its dependents
        if edge.id in status and edge.depends_on_id in bad:
            edges.append(edge)
            if edge.on_failure == OnFailure.FAIL:
                bad.add(edge.job_id)
    _satisfy([edge for edge in edges if edge.on_failure == OnFailure.RUN])
    _break([edge for edge in edges if edge.on_failure == OnFailure.FAIL])
    return len(edges)


def _behind(edges: list[OpenEdge]) -> list[OpenEdge]:
    """Return edges with those behind the jobs that will fail by them, layer by layer, until there are STEP.

    A chain would else take a transaction a link.
    """
    found = list(edges)
    seen: set[str] = set()
    while edges and len(found) < STEP:
        failing = {edge.job_id for edge in edges if edge.on_failure == OnFailure.FAIL} - seen
        seen |= failing
        edges = _open_edges(sorted(failing))[: STEP - len(found)]
        found += edges
    return found


def cascade_all() -> int:
    """Repeat `continue_cascade` until nothing is left; return how many edges were treated."""
    return cascade_for(float("inf"))


def cascade_for(seconds: float) -> int:
    """Repeat `continue_cascade` until nothing is left or so much time is over; return how many edges were treated."""
    total, end = 0, time.monotonic() + seconds
    while treated := continue_cascade():
        total += treated
        if time.monotonic() > end:
            break
    return total


def fail_broken(ids: Sequence[str]) -> list[str]:
    """Fail new jobs that depend on one that ended badly before they were submitted; return their ids."""
    edges = JobDependency.objects.filter(job_id__in=ids, state=DependencyState.BROKEN)
    failed = _fail({edge.job_id: edge.depends_on_id for edge in edges.order_by("-depends_on_id")})
    settle_dependents(failed)
    return failed


def recount(ids: Iterable[str]) -> None:
    """Set `pending_dependencies` of jobs, whose rows the caller has locked, to the number of their open edges."""
    count = (
        JobDependency.objects.filter(job_id=OuterRef("pk"), state=DependencyState.OPEN)
        .order_by()
        .values("job_id")
        .annotate(number=Count("pk"))
        .values("number")
    )
    for chunk in _chunks(sorted(ids)):
        Job.objects.filter(pk__in=chunk).update(pending_dependencies=Coalesce(Subquery(count), 0))


def _open_edges(ids: Sequence[str]) -> list[OpenEdge]:
    """Return the open edges to settled jobs; on the hot path, so one short statement that nearly always finds nothing."""
    found: list[OpenEdge] = []
    for chunk in _chunks(ids):
        found += [OpenEdge._make(row) for row in dialect().open_edges(chunk)]
    return found


def _locked(ids: Collection[str]) -> list[tuple[str, str, str, int]]:
    """Lock jobs in one order for all, so that settles that share dependents queue up instead of deadlocking.

    Returns (id, queue, status, pending_dependencies) of each.
    """
    return [row for chunk in _chunks(sorted(ids)) for row in dialect().lock_jobs(chunk)]


def _satisfy(edges: Sequence[OpenEdge]) -> None:
    """Close edges and count their dependents down by as many; one update per job, however many of its edges closed."""
    counts = Counter(edge.job_id for edge in edges)
    if not counts:
        return
    dependents = _locked(counts)
    _close(edges, DependencyState.SATISFIED)
    by_number: dict[int, list[str]] = {}
    freed_queues: set[str] = set()
    for job_id, queue, status, pending in dependents:
        number = counts[job_id]
        by_number.setdefault(number, []).append(job_id)
        if status == JobStatus.PENDING and pending == number:
            freed_queues.add(queue)
    for number, ids in by_number.items():
        for chunk in _chunks(ids):
            dialect().count_down(chunk, number)
    for queue in freed_queues:
        notify_work(queue)


def _close(edges: Sequence[OpenEdge], state: DependencyState) -> None:
    for chunk in _chunks(sorted(edge.id for edge in edges)):
        dialect().close_edges(chunk, state.value)


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def _break(edges: Sequence[OpenEdge]) -> list[str]:
    """Mark edges broken and fail their dependents, which are returned; what depends on those is for the next step."""
    if not edges:
        return []
    dependents = {edge.job_id for edge in edges}
    _locked(dependents)
    _close(edges, DependencyState.BROKEN)
    recount(dependents)
    return _fail({edge.job_id: edge.depends_on_id for edge in edges})


def _fail(culprits: Mapping[str, str]) -> list[str]:
    """Fail jobs that still wait, each with an error that names the dependency it failed by; return those."""
    failed: list[str] = []
    for chunk in _chunks(sorted(culprits)):
        waiting = Job.objects.filter(pk__in=chunk, status__in=WAITING)
        chosen = list(waiting.order_by("pk").values_list("pk", flat=True))
        failed += chosen
        if chosen:
            errors = _errors({job_id: culprits[job_id] for job_id in chosen}, set(failed))
            waiting.update(
                status=JobStatus.FAILED,
                fence=F("fence") + 1,
                error=Case(*(When(pk__in=ids, then=Value(error)) for error, ids in errors.items())),
                finished_at=DbNow(),
                updated_at=DbNow(),
                unique_lock=None,
            )
    _announce_failed(failed)
    return failed


def _announce_failed(ids: Sequence[str]) -> None:
    if ids and signals.job_failed.has_listeners(Job):
        for job in Job.objects.filter(pk__in=ids):
            signals.announce(signals.job_failed, job, error=job.error)


def _errors(culprits: Mapping[str, str], failing: Collection[str]) -> dict[str, list[str]]:
    """Return the jobs of each error text."""
    named = Job.objects.filter(pk__in=set(culprits.values())).values_list("pk", "job_type", "status")
    ends = {pk: f"{pk} ({job_type}) ended {'failed' if pk in failing else status}" for pk, job_type, status in named}
    errors: dict[str, list[str]] = {}
    for job_id, culprit in culprits.items():
        errors.setdefault(f"dependency {ends.get(culprit, f'{culprit} is gone')}", []).append(job_id)
    return errors
