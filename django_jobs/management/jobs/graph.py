"""The verb graph: the jobs that are connected with a job by dependencies, as text, as JSON or as a Mermaid diagram."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from django_jobs.models import Job

from .jobs import find_job
from .output import Output
from .verbs import JOB, Verbs

# For each job the jobs that it depends on, with the state of that edge.
Edges = Mapping[str, Sequence[tuple[str, str]]]
MERMAID_STYLES = {"completed": "fill:#cfc", "dead": "fill:#fcc", "failed": "fill:#fcc", "running": "fill:#ccf"}


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add("graph", graph, "show the jobs that are connected with a job", "graph job-1 --mermaid", over=JOB)
    parser.add_argument("job_id", metavar="ID")
    parser.add_argument("--mermaid", action="store_true", help="print a Mermaid diagram")


def graph(options: dict[str, Any], out: Output) -> None:
    """Print the graph around a job."""
    found = Job.objects.graph_of(find_job(options["job_id"]))
    jobs = dict(sorted(found.nodes.items()))
    edges: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for job_id, depends_on, state in found.edges:
        edges[job_id].append((depends_on, state))
    if options["mermaid"]:
        _print_mermaid(jobs, edges, out)
    elif out.as_json:
        for job_id, job in jobs.items():
            depends_on_all = [{"id": depends_on, "edge": state} for depends_on, state in edges[job_id]]
            out.json({"id": job_id, "job_type": job.job_type, "state": str(job.status), "depends_on": depends_on_all})
    else:
        for job_id, job in jobs.items():
            out.line(f"{job_id} {job.job_type} {job.status}")
            for depends_on, state in edges[job_id]:
                out.line(f"  needs {depends_on} ({state})")
    if found.truncated:
        out.note(f"there are more jobs; these are the {len(jobs)} nearest")


def _print_mermaid(jobs: dict[str, Job], edges: Edges, out: Output) -> None:
    names = {job_id: f"n{number}" for number, job_id in enumerate(jobs)}
    out.line("graph TD")
    for job_id, job in jobs.items():
        label = f"{job.job_type} {job_id} {job.status}"
        label = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        out.line(f'  {names[job_id]}["{label}"]')
    for job_id, dependencies in edges.items():
        for depends_on, _ in dependencies:
            out.line(f"  {names[depends_on]} --> {names[job_id]}")
    for job_id, job in jobs.items():
        if style := MERMAID_STYLES.get(job.status):
            out.line(f"  style {names[job_id]} {style}")
