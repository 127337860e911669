"""Log lines, written by receivers of our own signals: one for each retry and each death, none with a payload.

The record of a death has the exception as `exc_info`, by which error trackers group. That of a retry has none, because it is no
error yet; a receiver of `job_failed` gets the exception of each attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.dispatch import receiver

from django_jobs import signals
from django_jobs.lifecycle.told import Retry, retries_recorded

logger = logging.getLogger("django_jobs")


@receiver(retries_recorded, dispatch_uid="django_jobs.monitoring.logs.retried")
def log_retries(sender: type, retries: Sequence[Retry], **kwargs: Any) -> None:
    """Log that jobs failed and are tried again."""
    for job, retry_count, next_scheduled_at, error in retries:
        if retry_count == job.retry_count:  # its process died; that spends none
            logger.warning(
                "job %s (%s) crashed and starts again at %s: %s",
                job.id,
                job.job_type,
                next_scheduled_at,
                error,
                extra=_fields(job, retry_count),
            )
            continue
        logger.warning(
            "job %s (%s) failed and is retried at %s (retry %d of %d): %s",
            job.id,
            job.job_type,
            next_scheduled_at,
            retry_count,
            job.max_retries,
            error,
            extra=_fields(job, retry_count),
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
        extra=_fields(job, job.retry_count),
    )


def _fields(job: Any, retry_count: int) -> dict[str, Any]:
    return {"job_id": job.id, "job_type": job.job_type, "queue": job.queue, "retry_count": retry_count}
