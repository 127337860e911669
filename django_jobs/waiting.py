"""Wait for a job to finish: by looks that come ever more seldom, and on PostgreSQL by notification."""

from __future__ import annotations

import time

from django.db import DatabaseError

from django_jobs.db.notify import FINISHED_CHANNEL, QUIET_SECONDS, Subscription, has_notifications
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import Job
from django_jobs.models.job import TERMINAL
from django_jobs.text import shown

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.1
# A notification may get lost, so even then it looks now and then. After one it looks again soon: what finishes within
# QUIET_SECONDS of it is not told.
NOTIFIED_PAUSE = 0.5
PAUSE_AFTER_NOTIFICATION = 2 * QUIET_SECONDS


def wait(job_id: str, timeout: float | None = None) -> str:
    """Return the final status of a job once it is finished.

    Raises TimeoutError after `timeout` seconds (None waits for ever), JobNotFound when there is no such job, and InvalidJob
    when the timeout is no number.
    """
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout
    ):
        raise InvalidJob(f"timeout={shown(timeout)}: give seconds, or None to wait for ever")
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_PAUSE
    subscription: Subscription | None = None
    refused = False
    try:
        while True:
            status = Job.objects.filter(pk=job_id).values_list("status", flat=True).first()
            if status is None:
                raise JobNotFound(job_id)
            if status in TERMINAL:
                return status
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id!r} is still {status} after {timeout} seconds")
            if pause == LONGEST_PAUSE and subscription is None and not refused:
                # Only now: a connection of its own costs more than a few looks.
                subscription = _subscribe()
                refused = subscription is None
                if subscription is not None:
                    continue  # it may have finished before the subscription began
            if subscription is None:
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, LONGEST_PAUSE)
            else:
                has_finished = bool(list(subscription.wait(min(pause, left))))
                pause = PAUSE_AFTER_NOTIFICATION if has_finished else NOTIFIED_PAUSE
    finally:
        if subscription is not None:
            subscription.close()


def _subscribe() -> Subscription | None:
    """Return a subscription where notifications work; None elsewhere, or when the server has no connection to spare."""
    if not has_notifications():
        return None
    try:
        return Subscription(FINISHED_CHANNEL)
    except DatabaseError:
        return None
