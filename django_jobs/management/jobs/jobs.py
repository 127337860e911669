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
from django_jobs.masking import masked
from django_jobs.models import Attempt, Job, JobStatus, JobStep
from django_jobs.models.job import JobQuerySet
from django_jobs.payloads import Unreadable
from django_jobs.shell import SHELL

from .output import Output, as_text, streamed
from .verbs import EACH, JOB, JOBS, Verbs

ATTEMPT = ("number", "outcome", "started_at", "ended_at", "worker_id", "error", "traceback")
STEP = ("position", "name", "kind", "state", "started_at", "ended_at", "due_at", "result")
DEAD_LETTER = ("reason", "died_at", "acknowledged_at", "replayed_at", "note")
AS_STORED = (
    "max_retries", "retry_count", "timeout_seconds", "created_at", "updated_at", "scheduled_at", "started_at",
    "finished_at", "worker_id", "unique_key", "payload", "result", "error", "metadata", "pending_dependencies",
    "limit_key", "fair_key", "held_back_by", "held_back_until", "progress",
)  # fmt: skip
HEADS = ("ID", "TYPE", "QUEUE", "STATUS", "PRIORITY", "ATTEMPTS", "CREATED", "ERROR")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "list",
        list_jobs,
        "list jobs, the newest first",
        "list --status pending",
        "list --queue mail --limit 0 --json",
        over=EACH,
    )
    add_filters(parser)
    parser.add_argument("--type", dest="job_type")
    parser.add_argument("--batch", metavar="ID", help="the members of this batch")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, 0: all (default: 50)")
    parser = verbs.add(
        "show", show, "show a job with its attempts and steps", "show job-1", "show job-1 --logs", over=JOB
    )
    parser.add_argument("job_id", metavar="ID")
    parser.add_argument("--logs", action="store_true", help="what its handler logged, where `log_level` had that kept")
    parser = verbs.add("cancel", cancel_jobs, "cancel jobs; a running one is asked to stop", "cancel job-1", over=JOBS)
    parser.add_argument("job_ids", nargs="+", metavar="ID")
    parser = verbs.add(
        "retry",
        retry_jobs,
        "run scheduled jobs now, and dead, failed or cancelled ones again",
        "retry job-1 job-2",
        over=JOBS,
    )
    parser.add_argument("job_ids", nargs="+", metavar="ID")
    parser.add_argument("--from-start", action="store_true", help="forget which steps were done, and do them again")


def add_filters(parser: CommandParser) -> None:
    """Declare the options that `filtered` reads."""
    parser.add_argument("--status", choices=JobStatus.values)
    parser.add_argument("--queue")


def filtered(options: dict[str, Any]) -> JobQuerySet:
    """Return the jobs that the options choose; all without one."""
    names = ("status", "queue", "job_type")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    if options.get("batch") is not None:
        chosen["membership__batch"] = options["batch"]
    return Job.objects.filter(**chosen)


def list_jobs(options: dict[str, Any], out: Output) -> None:
    """Print jobs, newest first."""
    limit = options["limit"] if options["limit"] > 0 else None
    with streamed(_with_attempts(filtered(options)).order_by("-pk")[:limit]) as jobs:
        out.rows(jobs, job_values, HEADS, _row)


def show(options: dict[str, Any], out: Output) -> None:
    """Print all that is known of one job."""
    job = find_job(options["job_id"])
    values = {**job_values(job), "depends_on": job.depends_on}
    attempts = list(job.attempts.order_by("pk").values(*ATTEMPT))
    dead_letters = list(job.dead_letters.order_by("pk").values(*DEAD_LETTER))
    steps = [_step(step) for step in job.steps.order_by("position")]
    with_logs = options.get("logs")  # `dlq show` has no such option
    logs = list(job.logs.order_by("number").values("number", "text")) if with_logs else []
    if out.as_json:
        told = {**values, "tries": attempts, "dead_letters": dead_letters, "steps": steps}
        out.json({**told, "logs": logs} if with_logs else told)
        return
    del values["state"]  # the status, under the name that it has in the answers of other verbs
    for name, value in values.items():
        if value not in (None, {}, []):
            value = masked(value) if isinstance(value, Unreadable) else value
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value)
            out.line(f"{name}: {text}")
    for step in steps:
        out.line(_step_line(step))
    for row in attempts:
        out.line(f"attempt {row['number']}: {row['outcome']} at {as_text(row['ended_at'])} by {row['worker_id']}")
        out.line("    " + (row["traceback"] or row["error"]).strip().replace("\n", "\n    "))
    for dead in dead_letters:
        state = "acknowledged" if dead["acknowledged_at"] else "replayed" if dead["replayed_at"] else "open"
        out.line(f"dead letter: {dead['reason']} at {as_text(dead['died_at'])}, {state} {dead['note']}".rstrip())
    for log in logs:
        out.line(f"log of attempt {log['number']}:")
        out.line("    " + log["text"].rstrip("\n").replace("\n", "\n    "))


def _step(step: JobStep) -> dict[str, Any]:
    return {**{name: getattr(step, name) for name in STEP}, "result": masked(step.result)}


def _step_line(step: dict[str, Any]) -> str:
    ended = step["ended_at"] or step["due_at"]
    until = "" if ended is None else f" until {as_text(ended)}"
    result = "" if step["result"] is None else f": {json.dumps(step['result'], ensure_ascii=False)}"
    line = (
        f"step {step['position']}: {step['name']} ({step['kind']}, {step['state']}) from {as_text(step['started_at'])}"
    )
    return f"{line}{until}{result}"


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
    replayed = replay(started.left, from_start=options["from_start"])
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
        "batch": job.batch_id,
        "priority": job.priority,
        "attempts": _attempts(job),
        **{name: getattr(job, name) for name in AS_STORED},
    }


def _row(job: Job) -> tuple[Any, ...]:
    """Return a job for a table with HEADS."""
    error = (job.error or "").partition("\n")[0][:60]
    return (job.id, job.job_type, job.queue, job.status, job.priority, _attempts(job), job.created_at, error)
