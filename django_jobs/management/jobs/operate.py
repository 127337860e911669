"""Verbs that move jobs and queues: cancel, retry, pause, resume, prune."""

from __future__ import annotations

from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.processes import pause, resume
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.replay import replay, run_now
from django_jobs.models import JobStatus
from django_jobs.names import did_you_mean
from django_jobs.text import shown

from .look import all_queues
from .output import Output
from .values import find_job
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add("cancel", cancel_jobs, "cancel jobs; a running one is asked to stop", "cancel job-1")
    parser.add_argument("job_ids", nargs="+", metavar="ID")
    parser = verbs.add(
        "retry", retry_jobs, "run scheduled jobs now, and dead, failed or cancelled ones again", "retry job-1 job-2"
    )
    parser.add_argument("job_ids", nargs="+", metavar="ID")
    parser = verbs.add("pause", pause_queue, "let no worker claim from a queue", "pause mail")
    parser.add_argument("queue", metavar="QUEUE")
    parser = verbs.add("resume", resume_queue, "let workers claim from a queue again", "resume mail")
    parser.add_argument("queue", metavar="QUEUE")
    verbs.add("prune", prune_jobs, "delete finished jobs past the RETENTION setting", "prune --yes", asks=True)


def cancel_jobs(options: dict[str, Any], out: Output) -> None:
    """Cancel each job."""

    def move(job_id: str) -> str:
        return "cancelled" if cancel(job_id) == JobStatus.CANCELLED else "was asked to stop"

    out.each(options["job_ids"], move)


def retry_jobs(options: dict[str, Any], out: Output) -> None:
    """Make each job ready."""

    def move(job_id: str) -> str:
        job = find_job(job_id)
        if job.status in (JobStatus.PENDING, JobStatus.SCHEDULED):
            run_now(job_id)
        else:
            replay(job_id)
        return "pending"

    out.each(options["job_ids"], move)


def pause_queue(options: dict[str, Any], out: Output) -> None:
    """Pause one queue."""
    pause(_known(options["queue"]))
    out.each([options["queue"]], lambda name: "paused")


def resume_queue(options: dict[str, Any], out: Output) -> None:
    """Resume one queue."""
    resume(_known(options["queue"]))
    out.each([options["queue"]], lambda name: "resumed")


def _known(queue: str) -> str:
    known = all_queues()
    if queue not in known:
        raise InvalidJob(f"there is no queue {shown(queue)}.{did_you_mean(queue, known)}")
    return queue


def prune_jobs(options: dict[str, Any], out: Output) -> None:
    """Delete what is too old."""
    out.confirm("This deletes every finished job past its retention.")
    deleted = prune()
    if out.as_json:
        out.json({"deleted": deleted})
    else:
        out.line(f"{deleted} jobs deleted")
