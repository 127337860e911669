"""Verbs that only look: list, show, stats, queues, graph."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from django.utils import timezone

from django_jobs.conf import get_settings
from django_jobs.handlers import registry
from django_jobs.lifecycle.figures import queue_figures
from django_jobs.lifecycle.processes import known_queues
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Attempt, DeadLetter, Job, JobStatus, WorkerProcess
from django_jobs.models.graph import graph_of
from django_jobs.transfer import all_jobs

from .output import Output, as_text
from .values import HEADS, find_job, job_row, job_values, with_attempts
from .verbs import Verbs

MERMAID_STYLES = {"completed": "fill:#cfc", "dead": "fill:#fcc", "failed": "fill:#fcc", "running": "fill:#ccf"}


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "list", list_jobs, "list jobs, the newest first", "list --status pending", "list --queue mail --limit 0 --json"
    )
    parser.add_argument("--status", choices=JobStatus.values)
    parser.add_argument("--queue")
    parser.add_argument("--type", dest="job_type")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")
    parser = verbs.add("show", show, "show a job with its attempts", "show job-1")
    parser.add_argument("job_id", metavar="ID")
    verbs.add("stats", stats, "count jobs by status, workers and open dead letters", "stats --json")
    verbs.add("queues", queues, "list queues with what is ready and running in them")
    parser = verbs.add("graph", graph, "show the jobs that are connected with a job", "graph job-1 --mermaid")
    parser.add_argument("job_id", metavar="ID")
    parser.add_argument("--mermaid", action="store_true", help="print a Mermaid diagram")


def list_jobs(options: dict[str, Any], out: Output) -> None:
    """Print jobs, newest first."""
    jobs = all_jobs(options["queue"])
    if options["status"]:
        jobs = jobs.filter(status=options["status"])
    if options["job_type"]:
        jobs = jobs.filter(job_type=options["job_type"])
    limit = options["limit"] if options["limit"] > 0 else None
    chosen = with_attempts(islice(jobs.order_by("-pk").iterator(chunk_size=500), limit))
    if out.as_json:
        for job, attempts in chosen:
            out.json(job_values(job, attempts))
    else:
        out.table(HEADS, [job_row(job, attempts) for job, attempts in chosen])


def show(options: dict[str, Any], out: Output) -> None:
    """Print all that is known of one job."""
    job = find_job(options["job_id"])
    values = job_values(*next(with_attempts([job])))
    attempts = Attempt.objects.using(jobs_alias()).filter(job=job).order_by("pk")
    rows = list(attempts.values("number", "outcome", "started_at", "ended_at", "worker_id", "error", "traceback"))
    letters = DeadLetter.objects.using(jobs_alias()).filter(job=job).order_by("pk")
    letter_rows = list(letters.values("reason", "died_at", "acknowledged_at", "replayed_at", "note"))
    if out.as_json:
        out.json({**values, "depends_on": job.depends_on, "tries": rows, "dead_letters": letter_rows})
        return
    for name, value in {**values, "depends_on": job.depends_on}.items():
        if value not in (None, {}, []):
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value)
            out.line(f"{name}: {text}")
    for row in rows:
        out.line(f"attempt {row['number']}: {row['outcome']} at {as_text(row['ended_at'])} by {row['worker_id']}")
        out.line("    " + (row["traceback"] or row["error"]).strip().replace("\n", "\n    "))
    for one in letter_rows:
        closed = "acknowledged" if one["acknowledged_at"] else "replayed" if one["replayed_at"] else "open"
        out.line(f"dead letter: {one['reason']} at {as_text(one['died_at'])}, {closed} {one['note']}".rstrip())


def stats(options: dict[str, Any], out: Output) -> None:
    """Print the counts."""
    alias = jobs_alias()
    values = {
        **all_jobs().counts_by_status(),
        "workers": WorkerProcess.objects.using(alias).alive().count(),
        "dead_letters": DeadLetter.objects.using(alias).open().count(),
    }
    if out.as_json:
        out.json(values)
    else:
        for name, value in values.items():
            out.line(f"{name.replace('_', ' ') + ':':14}{value}")


def queues(options: dict[str, Any], out: Output) -> None:
    """Print every queue that a handler, a setting, a row or a job names."""
    now = timezone.now()
    rows = []
    for name, figures in queue_figures(sorted(all_queues())).items():
        waits = None if figures.oldest is None else max(0.0, round((now - figures.oldest).total_seconds(), 1))
        rows.append((name, figures.ready, figures.running, waits, figures.paused_at))
    if out.as_json:
        for row in rows:
            out.json(dict(zip(("queue", "ready", "running", "oldest_seconds", "paused_at"), row, strict=True)))
    else:
        out.table(("QUEUE", "READY", "RUNNING", "OLDEST (S)", "PAUSED SINCE"), rows)


def all_queues() -> set[str]:
    """Return every queue that is known."""
    return {"default", *registry.queues(), *get_settings().QUEUES, *known_queues()}


def graph(options: dict[str, Any], out: Output) -> None:
    """Print the graph around a job."""
    found = graph_of(find_job(options["job_id"]))
    jobs = dict(sorted(found.nodes.items()))
    needs: dict[str, list[tuple[str, str]]] = {}
    for job_id, depends_on, state in found.edges:
        needs.setdefault(job_id, []).append((depends_on, state))
    if options["mermaid"]:
        _mermaid(jobs, needs, out)
    for job_id, job in jobs.items() if not options["mermaid"] else ():
        if out.as_json:
            edges = [{"id": one, "edge": state} for one, state in needs.get(job_id, [])]
            out.json({"id": job_id, "job_type": job.job_type, "state": str(job.status), "depends_on": edges})
            continue
        out.line(f"{job_id} {job.job_type} {job.status}")
        for depends_on, state in needs.get(job_id, []):
            out.line(f"  needs {depends_on} ({state})")
    if found.truncated:
        out.note(f"there are more jobs; these are the {len(jobs)} nearest")


def _mermaid(jobs: dict[str, Job], needs: dict[str, list[tuple[str, str]]], out: Output) -> None:
    names = {job_id: f"n{number}" for number, job_id in enumerate(jobs)}
    out.line("graph TD")
    for job_id, job in jobs.items():
        label = (
            f"{job.job_type} {job_id} {job.status}".replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        )
        out.line(f'  {names[job_id]}["{label}"]')
    for job_id, edges in needs.items():
        for depends_on, _ in edges:
            out.line(f"  {names[depends_on]} --> {names[job_id]}")
    for job_id, job in jobs.items():
        if style := MERMAID_STYLES.get(job.status):
            out.line(f"  style {names[job_id]} {style}")
