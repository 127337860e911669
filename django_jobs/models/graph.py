"""The dependency graph around a job, read layer by layer up to a limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Job

MOST_NODES = 200
COLUMNS = ("pk", "job_type", "status", "queue", "cancel_requested_at")


@dataclass(frozen=True, kw_only=True)
class JobGraph:
    """Jobs by id, and edges (job, the job it depends on, state). `truncated`: there is more than was read."""

    nodes: dict[str, Job]
    edges: list[tuple[str, str, str]] = field(default_factory=list)
    truncated: bool = False


def graph_of(job: Job, limit: int = MOST_NODES) -> JobGraph:
    """Return the jobs that are connected with a job, nearest first, at most `limit`, and the edges between them.

    Two queries for each layer of distance, and one for the jobs.
    """
    from .dependency import JobDependency
    from .job import Job

    edges = JobDependency.objects.using(job._state.db)
    found = {job.pk: 0}
    layer: list[Any] = [job.pk]
    truncated = False
    while layer and not truncated:
        up = edges.filter(job_id__in=layer).order_by("depends_on_id").values_list("depends_on_id", flat=True)
        down = edges.filter(depends_on_id__in=layer).order_by("job_id").values_list("job_id", flat=True)
        near = [*up[: limit * 2], *down[: limit * 2]]
        layer = [pk for pk in dict.fromkeys(near) if pk not in found]
        room = limit - len(found)
        truncated = len(layer) > room or len(near) > limit * 2
        layer = layer[:room]
        found.update(dict.fromkeys(layer, 0))
    inside = edges.filter(job_id__in=found, depends_on_id__in=found)
    between = inside.order_by("job_id", "depends_on_id").values_list("job_id", "depends_on_id", "state")
    jobs = Job.objects.using(job._state.db).only(*COLUMNS).in_bulk(list(found))
    nodes = {pk: jobs[pk] for pk in found if pk in jobs}
    return JobGraph(nodes=nodes, edges=list(between[: limit * limit]), truncated=truncated)


def root_cause(graph: JobGraph, job_id: str) -> Job | None:
    """Return the job upstream that ended badly although nothing it depends on did: why this one failed, or will not run.

    None when nothing upstream of the job ended badly. Of several the first by id.
    """
    from .job import ENDED_BADLY

    bad = {pk for pk, job in graph.nodes.items() if job.status in ENDED_BADLY}
    before: dict[str, set[str]] = {}
    for job, depends_on, _ in graph.edges:
        if depends_on in bad:
            before.setdefault(job, set()).add(depends_on)
    seen: set[str] = set()
    layer = before.get(job_id, set())
    while layer - seen:
        seen |= layer
        layer = set().union(*(before.get(pk, set()) for pk in layer))
    roots = sorted(pk for pk in seen if pk not in before)
    return graph.nodes[roots[0]] if roots else None
