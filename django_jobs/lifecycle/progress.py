"""Progress: what a running handler writes and reads of its job: how far it is, a request to cancel, its dependencies. Fenced."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import DatabaseError

from django_jobs.db.errors import is_lock_timeout
from django_jobs.db.transactions import lock_wait, retried, transactional
from django_jobs.models import Job
from django_jobs.payloads import readable
from django_jobs.text import scrub

LOCK_WAIT_SECONDS = 0.5
MAX_MESSAGE = 200


class Dependency(NamedTuple):
    """A dependency as its dependent's handler sees it."""

    id: str
    job_type: str
    status: str
    result: Any


class Standing(NamedTuple):
    """Whether a run may go on."""

    is_held: bool
    cancel_requested: bool


def report_progress(job_id: str, fence: int, fraction: float, message: str) -> bool:
    """Write how far a run is; return False, having written nothing, when its fence has moved.

    A row that somebody else has locked for long is left as it is: progress is not worth waiting for.
    """
    try:
        with lock_wait(LOCK_WAIT_SECONDS):
            return _write_progress(job_id, fence, fraction, scrub(message)[:MAX_MESSAGE])
    except DatabaseError as error:
        if is_lock_timeout(error):
            return True
        raise


@transactional
def _write_progress(job_id: str, fence: int, fraction: float, message: str) -> bool:
    return Job.objects.held_under(job_id, fence).update(progress=fraction, progress_message=message) == 1


@retried
def standing(job_id: str, fence: int) -> Standing:
    """Read whether a run still holds its job, and whether somebody asked to cancel it."""
    row = Job.objects.held_under(job_id, fence).values_list("cancel_requested_at").first()
    return Standing(False, False) if row is None else Standing(True, row[0] is not None)


def dependencies(job_id: str) -> list[Dependency]:
    """Return the dependencies of a job with their results, in the order of their ids.

    Raises EncryptionError for a result that none of the site's keys reads.
    """
    jobs = Job.objects.filter(dependents__job_id=job_id).order_by("pk")
    found = [Dependency(*row) for row in jobs.values_list("pk", "job_type", "status", "result")]
    for one in found:
        readable(one.result)
    return found
