"""Handlers with limits, 1 to 5 of each key at once, or 100 a second. They write down when they begin and when they end."""

import time
from typing import Any

from django_jobs import Limit, job

from .models import leave_effect

MOST = 5


TYPES = [f"effects.limited_{number}" for number in range(1, MOST + 1)]


def run(context: Any, payload: dict[str, Any]) -> None:
    """Take `seconds`."""
    leave_effect(context.job_id, context.fence, "start")
    time.sleep(payload["seconds"])
    leave_effect(context.job_id, context.fence, "end")


RATED, PER_SECOND = "effects.rated", 100


def run_rated(context: Any, payload: dict[str, Any]) -> None:
    """Take `seconds`."""
    leave_effect(context.job_id, context.fence, "start")
    time.sleep(payload["seconds"])


def declare_rated() -> None:
    """Register the handler with a rate, where a test needs it."""
    job(RATED, takes_context=True, limit=Limit(rate=f"{PER_SECOND}/s"))(run_rated)


def declare() -> None:
    """Register the handlers; only where a test needs them, for with a limit in the code every claim asks."""
    for number, job_type in enumerate(TYPES, 1):
        job(job_type, takes_context=True, limit=Limit(concurrency=number, key="key"))(run)
