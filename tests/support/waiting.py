"""Wait for a condition instead of hoping that a sleep is long enough; show the rows when it does not come."""

import time
from collections.abc import Callable
from typing import TypeVar

from django.db import DatabaseError

from django_jobs.models import Attempt, Job

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 60, what: str = "") -> T:
    """Call `condition` until it is true and return its value.

    After `timeout` seconds raise an AssertionError that says `what` was awaited and shows all jobs and attempts.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what or 'a condition'}\n{dump_rows()}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return value


def dump_rows(limit: int = 200) -> str:
    """Return the jobs and attempts as text, one a line, for the message of a failing test."""
    try:
        jobs, attempts = (
            list(Job.objects.order_by("id")[: limit + 1]),
            list(Attempt.objects.order_by("id")[: limit + 1]),
        )
    except DatabaseError as error:
        return f"(the rows cannot be read: {error})"
    lines = [
        f"job {job.id} {job.job_type} {job.status} fence={job.fence} retry_count={job.retry_count} "
        f"pending_dependencies={job.pending_dependencies} pending_limits={job.pending_limits} worker_id={job.worker_id} "
        f"error={job.error!r:.200}"
        for job in jobs[:limit]
    ]
    lines += [
        f"attempt {a.job_id} #{a.number} {a.outcome} worker_id={a.worker_id} {a.error!r:.200}" for a in attempts[:limit]
    ]
    if max(len(jobs), len(attempts)) > limit:
        lines.append(f"(only the first {limit} of each)")
    return "\n".join(lines) or "(no jobs)"
