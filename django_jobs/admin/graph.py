"""Draw a dependency graph as SVG without script or style: dependencies to the left, dependents to the right."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

if TYPE_CHECKING:
    from django_jobs.models import Job
    from django_jobs.models.graph import JobGraph

WIDTH, HEIGHT = 170, 40
GAP_X, GAP_Y = 46, 12
MARGIN = 6
LONGEST = 24


def layers_of(graph: JobGraph) -> dict[str, int]:
    """Return the column of each job: one more than its farthest dependency. Jobs of a circle keep 0."""
    inside = [(job, other) for job, other, _ in graph.edges if job in graph.nodes and other in graph.nodes]
    waiting = dict.fromkeys(graph.nodes, 0)
    dependents: dict[str, list[str]] = {}
    for job, other in inside:
        waiting[job] += 1
        dependents.setdefault(other, []).append(job)
    layer = dict.fromkeys(graph.nodes, 0)
    ready = deque(pk for pk, number in waiting.items() if number == 0)
    while ready:
        pk = ready.popleft()
        for dependent in dependents.get(pk, ()):
            layer[dependent] = max(layer[dependent], layer[pk] + 1)
            waiting[dependent] -= 1
            if waiting[dependent] == 0:
                ready.append(dependent)
    return layer


def places_of(graph: JobGraph, center: str) -> dict[str, tuple[int, int]]:
    """Return column and row of each job; in a column they stand in the order of the jobs that they depend on.

    The job that the picture is about and its neighbours come first: among hundreds, they are the ones looked for.
    """
    layer = layers_of(graph)
    near = {center}.union(*((job, other) for job, other, _ in graph.edges if center in (job, other)))
    parents: dict[str, list[str]] = {}
    for job, other, _ in graph.edges:
        parents.setdefault(job, []).append(other)
    places: dict[str, tuple[int, int]] = {}
    for column in range(max(layer.values(), default=-1) + 1):

        def height(pk: str) -> tuple[bool, bool, float, str]:
            rows = [places[parent][1] for parent in parents.get(pk, ()) if parent in places]
            return (pk != center, pk not in near, sum(rows) / len(rows) if rows else 0.0, pk)

        for row, pk in enumerate(sorted((pk for pk in layer if layer[pk] == column), key=height)):
            places[pk] = (column, row)
    return places


def draw(graph: JobGraph, center: str, url_of: Callable[[str], str], label: object) -> SafeString:
    """Return the picture; `center` is the job it is about, `url_of` gives the address of a job's page."""
    places = places_of(graph, center)
    columns = max((column for column, _ in places.values()), default=0) + 1
    rows = max((row for _, row in places.values()), default=0) + 1
    width = columns * WIDTH + (columns - 1) * GAP_X + 2 * MARGIN
    height = rows * HEIGHT + (rows - 1) * GAP_Y + 2 * MARGIN
    at = {pk: (MARGIN + c * (WIDTH + GAP_X), MARGIN + r * (HEIGHT + GAP_Y)) for pk, (c, r) in places.items()}
    edges = format_html_join(
        "",
        '<path class="jobs-edge jobs-edge-{}" d="{}"/>',
        ((state, _curve(at[other], at[job])) for job, other, state in graph.edges if job in at and other in at),
    )
    nodes = format_html_join(
        "", "{}", ((_node(job, at[pk], pk == center, url_of(pk)),) for pk, job in graph.nodes.items())
    )
    return format_html(
        '<svg class="jobs-graph" role="group" aria-label="{}" width="{}" height="{}" viewBox="0 0 {} {}"'
        ' xmlns="http://www.w3.org/2000/svg">{}{}</svg>',
        label, width, height, width, height, edges, nodes,
    )  # fmt: skip


def _curve(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + WIDTH, start[1] + HEIGHT // 2
    x2, y2 = end[0], end[1] + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"


def _node(job: Job, place: tuple[int, int], is_center: bool, url: str) -> SafeString:
    x, y = place
    return format_html(
        '<a href="{}" class="jobs-node jobs-{}{}"{}><title>{} {} ({})</title>'
        '<rect x="{}" y="{}" width="{}" height="{}" rx="5"/>'
        '<text x="{}" y="{}">{}</text><text class="jobs-small" x="{}" y="{}">{} · {}</text></a>',
        url, job.status, " jobs-center" if is_center else "",
        SafeString(' aria-current="true"') if is_center else "",
        job.job_type, job.pk, job.get_status_display(),
        x, y, WIDTH, HEIGHT,
        x + 9, y + 17, _short(job.job_type),
        x + 9, y + 32, job.get_status_display(), _short(job.pk[-12:], 14),
    )  # fmt: skip


def _short(text: str, limit: int = LONGEST) -> str:
    return text if len(text) <= limit else f"…{text[-limit + 1 :]}"
