"""Log lines, written by receivers of our own signals: one for each retry and each death, none with a payload.

The record of a death has the exception as `exc_info`, by which error trackers group. That of a retry has none, because it is no
error yet; a receiver of `job_failed` gets the exception of each attempt.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import receiver

from django_jobs import signals

logger = logging.getLogger("django_jobs")


@receiver(signals.job_retried, dispatch_uid="django_jobs.monitoring.logs.retried")
def log_retry(sender: type, job: Any, next_scheduled_at: Any, **kwargs: Any) -> None:
    """Log that a job failed and is tried again."""
    logger.warning(
        "job %s (%s) failed and is retried at %s (retry %d of %d): %s",
        job.id,
        job.job_type,
        next_scheduled_at,
        job.retry_count,
        job.max_retries,
        job.error,
        extra=_fields(job),
    )


@receiver(signals.job_dead, dispatch_uid="django_jobs.monitoring.logs.dead")
def log_death(sender: type, job: Any, exception: BaseException | None = None, **kwargs: Any) -> None:
    """Log that a job was given up and waits for an operator."""
    logger.error(
        "job %s (%s) is %s after %d retries: %s",
        job.id,
        job.job_type,
        job.status,
        job.retry_count,
        job.error,
        exc_info=exception,
        extra=_fields(job),
    )


def _fields(job: Any) -> dict[str, Any]:
    return {"job_id": job.id, "job_type": job.job_type, "queue": job.queue, "retry_count": job.retry_count}
