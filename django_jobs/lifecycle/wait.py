"""Wait for a job to finish, by polling that starts fast and slows down."""

from __future__ import annotations

import time

from django_jobs.exceptions import JobNotFound
from django_jobs.models import Job
from django_jobs.models.job import TERMINAL

from .transactions import jobs_alias

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1


def wait(job_id: str, timeout: float | None = None, alias: str | None = None) -> str:
    """Return the final status of a job once it is finished.

    Raises TimeoutError after `timeout` seconds (None waits for ever), and JobNotFound when there is no such job.
    """
    using = alias or jobs_alias()
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        status = Job.objects.using(using).filter(pk=job_id).values_list("status", flat=True).first()
        if status is None:
            raise JobNotFound(job_id)
        if status in TERMINAL:
            return status
        left = float("inf") if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"job {job_id!r} is still {status} after {timeout} seconds")
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)
