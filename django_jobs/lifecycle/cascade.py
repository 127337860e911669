"""Cascade: fail what is left behind jobs that ended badly, in steps; the rows say what that is."""

from __future__ import annotations

import time

from django_jobs.db.transactions import transactional
from django_jobs.models import DependencyState, JobDependency, OnFailure
from django_jobs.models.job import ENDED_BADLY

from .batches import settle_members
from .dependents import STEP, OpenEdge, break_edges, free, locked_in_order, open_edges

CASCADE_SECONDS = 2.0  # as long as a caller who cancels may be kept; workers do the rest


@transactional
def continue_cascade() -> int:
    """Fail jobs whose dependency ended badly, and those behind them, along STEP edges or a few more; return how many edges.

    One transaction of its own. Nothing but the rows says what is left, so a killed process leaves nothing behind that
    another one does not find.
    """

    left = JobDependency.objects.filter(state=DependencyState.OPEN)
    first = left.filter(depends_on__status__in=ENDED_BADLY).order_by("depends_on_id", "job_id")
    found = _behind([OpenEdge._make(row) for row in first.values_list(*OpenEdge._fields)[:STEP]])
    if not found:
        return 0
    # Others may be at the same edges, or replay the dependency: what still holds under the locks is ours to treat.
    rows = locked_in_order({name for edge in found for name in (edge.job_id, edge.depends_on_id)})
    bad = {pk for pk, _, status, _ in rows if status in ENDED_BADLY}
    still_open = set(left.filter(pk__in=[edge.id for edge in found]).values_list("pk", flat=True))
    edges = []
    for edge in found:  # a dependency's own edge comes before those to its dependents
        if edge.id in still_open and edge.depends_on_id in bad:
            edges.append(edge)
            if edge.on_failure == OnFailure.FAIL:
                bad.add(edge.job_id)
    free([edge for edge in edges if edge.on_failure == OnFailure.RUN])
    settle_members(break_edges([edge for edge in edges if edge.on_failure == OnFailure.FAIL]))
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
        edges = open_edges(sorted(failing))[: STEP - len(found)]
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
