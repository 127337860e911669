"""The logs on a job's page: what its handler logged in the newest attempts, where that is kept."""

from __future__ import annotations

from typing import Any

from django_jobs.models import Job
from django_jobs.models.job import LIVE
from django_jobs.run_log import MOST_BYTES

from .widgets import cut

MOST_LOGS = 5


def logs_of(job: Job, may_see: bool) -> dict[str, Any]:
    """Return the context of `job_logs.html`, the newest attempt first; nothing for who may not see payloads."""
    newest = job.logs.order_by("-number")
    if not may_see:
        return {"logs": [], "logs_hidden": newest.exists()}
    found = list(newest[: MOST_LOGS + 1])
    shown = [{"number": log.number, "text": cut(log.text, MOST_BYTES)} for log in found[:MOST_LOGS]]
    return {"logs": shown, "more_logs": len(found) > MOST_LOGS, "log_goes_on": job.status in LIVE}
