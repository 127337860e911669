"""The verbs of jobs: list, show, cancel, retry; and how a job is printed, by keys for machines and in rows for people."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Count, IntegerField, OuterRef, Subquery
from django.db.models.functions import Coalesce

from django_jobs.exceptions import JobNotFound
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.moved import Moved
from django_jobs.lifecycle.promote import run_now
from django_jobs.lifecycle.replay import replay
from django_jobs.models import Attempt, DeadLetter, Job, JobStatus
from django_jobs.models.job import JobQuerySet
from django_jobs.shell import SHELL

from .output import Output, as_text, streamed
from .verbs import Verbs

HEADS = ("ID", "TYPE", "QUEUE", "STATUS", "PRIORITY", "ATTEMPTS", "CREATED", "ERROR")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "list", list_jobs, "list jobs, the newest first", "list --status pending", "list --queue mail --limit 0 --json"
    )
    add_filters(parser)
    parser.add_argument("--type", dest="job_type")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")
    parser = verbs.add("show", show, "show a job with its attempts", "show job-1")
    parser.add_argument("job_id", metavar="ID")
    parser = verbs.add("cancel", cancel_jobs, "cancel jobs; a running one is asked to stop", "cancel job-1")
    parser.add_argument("job_ids", nargs="+", metavar="ID")
    parser = verbs.add(
        "retry", retry_jobs, "run scheduled jobs now, and dead, failed or cancelled ones again", "retry job-1 job-2"
    )
    parser.add_argument("job_ids", nargs="+", metavar="ID")


def add_filters(parser: CommandParser) -> None:
    """Declare the options that `filtered` reads."""
    parser.add_argument("--status", choices=JobStatus.values)
    parser.add_argument("--queue")


def filtered(options: dict[str, Any]) -> JobQuerySet:
    """Return the jobs that the options choose; all without one."""
    names = ("status", "queue", "job_type")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    return Job.objects.filter(**chosen)


def list_jobs(options: dict[str, Any], out: Output) -> None:
    """Print jobs, newest first."""
    limit = options["limit"] if options["limit"] > 0 else None
    with streamed(_with_attempts(filtered(options)).order_by("-pk")[:limit]) as jobs:
        if out.as_json:
            for job in jobs:
                out.json(job_values(job))
        else:
            out.table(HEADS, [_row(job) for job in jobs])


def show(options: dict[str, Any], out: Output) -> None:
    """Print all that is known of one job."""
    job = find_job(options["job_id"])
    values = {**job_values(job), "depends_on": job.depends_on}
    attempts = list(
        Attempt.objects.filter(job=job)
        .order_by("pk")
        .values("number", "outcome", "started_at", "ended_at", "worker_id", "error", "traceback")
    )
    dead_letters = list(
        DeadLetter.objects.filter(job=job)
        .order_by("pk")
        .values("reason", "died_at", "acknowledged_at", "replayed_at", "note")
    )
    if out.as_json:
        out.json({**values, "tries": attempts, "dead_letters": dead_letters})
        return
    for name, value in values.items():
        if value not in (None, {}, []):
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value)
            out.line(f"{name}: {text}")
    for row in attempts:
        out.line(f"attempt {row['number']}: {row['outcome']} at {as_text(row['ended_at'])} by {row['worker_id']}")
        out.line("    " + (row["traceback"] or row["error"]).strip().replace("\n", "\n    "))
    for dead in dead_letters:
        state = "acknowledged" if dead["acknowledged_at"] else "replayed" if dead["replayed_at"] else "open"
        out.line(f"dead letter: {dead['reason']} at {as_text(dead['died_at'])}, {state} {dead['note']}".rstrip())


def cancel_jobs(options: dict[str, Any], out: Output) -> None:
    """Cancel each job."""
    moved = cancel(options["job_ids"])
    jobs = Job.objects.only("status").in_bulk(moved.done)

    def state(job_id: str) -> str:
        waited = job_id not in jobs or jobs[job_id].status == JobStatus.CANCELLED  # not there: pruned since
        return "cancelled" if waited else "was asked to stop"

    out.moved(options["job_ids"], moved, state)


def retry_jobs(options: dict[str, Any], out: Output) -> None:
    """Make each job ready."""
    started = run_now(options["job_ids"])
    replayed = replay(started.left)
    out.moved(options["job_ids"], Moved(started.done + replayed.done, replayed.left), lambda job_id: "pending")


def find_job(job_id: str) -> Job:
    """Return a job as `job_values` wants it; raise JobNotFound."""
    job: Job | None = _with_attempts(Job.objects.filter(pk=job_id)).first()
    if job is None:
        raise JobNotFound(job_id)
    return job


def _with_attempts(jobs: Any) -> Any:
    """Add to each job the number of its attempts on record."""
    attempts = Attempt.objects.filter(job_id=OuterRef("pk")).order_by().values("job_id")
    number = Subquery(attempts.annotate(number=Count("pk")).values("number"), output_field=IntegerField())
    return jobs.annotate(attempts_on_record=Coalesce(number, 0))


def _attempts(job: Any) -> int:
    # A run that goes on, or that completed, has no attempt row.
    return int(job.attempts_on_record) + (job.status in (JobStatus.RUNNING, JobStatus.COMPLETED))


def job_values(job: Job) -> dict[str, Any]:
    """Return a job for machines."""
    return {
        "id": job.id,
        "job_type": job.job_type,
        "command": job.payload.get("command") if job.job_type == SHELL else None,
        "queue": job.queue,
        "status": str(job.status),
        "state": str(job.status),
        "priority": job.priority,
        "attempts": _attempts(job),
        "max_retries": job.max_retries,
        "retry_count": job.retry_count,
        "timeout_seconds": job.timeout_seconds,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "scheduled_at": job.scheduled_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worker_id": job.worker_id,
        "unique_key": job.unique_key,
        "payload": job.payload,
        "result": job.result,
        "error": job.error,
        "metadata": job.metadata,
        "pending_dependencies": job.pending_dependencies,
        "progress": job.progress,
    }


def _row(job: Job) -> tuple[Any, ...]:
    """Return a job for a table with HEADS."""
    error = (job.error or "").partition("\n")[0][:60]
    return (job.id, job.job_type, job.queue, job.status, job.priority, _attempts(job), job.created_at, error)
