"""What a running handler may write and read: its progress, a cancel request, its dependencies' results. All fenced."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import DatabaseError

from django_jobs.models import Job, JobStatus
from django_jobs.payloads import scrub

from .transactions import LOCK_WAIT_SECONDS, is_lock_timeout, jobs_alias, retry_transient, run_transaction

MAX_MESSAGE = 200


class Dependency(NamedTuple):
    """A dependency as its dependent's handler sees it."""

    id: str
    job_type: str
    status: str
    result: Any


def report_progress(job_id: str, fence: int, fraction: float, message: str, alias: str | None = None) -> bool:
    """Write how far a run is; return False, having written nothing, when its fence has moved.

    A row that somebody else has locked for long is left as it is: progress is not worth waiting for.
    """
    using = alias or jobs_alias()
    held = Job.objects.using(using).filter(pk=job_id, fence=fence, status=JobStatus.RUNNING)
    text = scrub(message)[:MAX_MESSAGE]

    def move() -> int:
        return held.update(progress=fraction, progress_message=text)

    try:
        return run_transaction(move, using, lock_wait=LOCK_WAIT_SECONDS) == 1
    except DatabaseError as error:
        if is_lock_timeout(error):
            return True
        raise


class Standing(NamedTuple):
    """Whether a run may go on."""

    held: bool
    cancel_requested: bool


def standing(job_id: str, fence: int, alias: str | None = None) -> Standing:
    """Read whether a run still holds its job, and whether somebody asked to cancel it."""
    rows = Job.objects.using(alias or jobs_alias()).filter(pk=job_id, fence=fence, status=JobStatus.RUNNING)
    row = retry_transient(lambda: rows.values_list("cancel_requested_at").first())
    return Standing(False, False) if row is None else Standing(True, row[0] is not None)


def dependencies(job_id: str, alias: str | None = None) -> list[Dependency]:
    """Return the dependencies of a job with their results, in the order of their ids."""
    jobs = Job.objects.using(alias or jobs_alias()).filter(dependents__job_id=job_id).order_by("pk")
    return [Dependency(*row) for row in jobs.values_list("pk", "job_type", "status", "result")]
