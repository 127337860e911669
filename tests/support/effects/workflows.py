"""Workflows of the tests: every step leaves an effect whose kind begins with `step`."""

import time
from typing import Any

from django_jobs import NewJob, job

from .models import leave_effect

ATOMIC = ("step atomic 1", "step atomic 2")


@job("workflows.storm", takes_context=True, max_retries=20, base_delay=0.05, max_delay=0.2)
def storm(context: Any, payload: dict[str, Any]) -> Any:
    """Take six steps: two atomic, one plain, a sleep, an event of the job's own key, a loop."""
    context.step("first", leave_effect, context.job_id, context.fence, ATOMIC[0], atomic=True)
    context.step("plain", leave_effect, context.job_id, context.fence, "step plain")
    context.sleep("a while", payload["sleep"])
    event = context.wait_for_event("workflows.go", key=context.job_id)
    context.step("second", leave_effect, context.job_id, context.fence, ATOMIC[1], atomic=True)
    for _ in context.iterate("numbers", range(payload["rows"])):
        time.sleep(0.001)
    return event


@job("workflows.family", takes_context=True, isolation="process")
def family(context: Any, payload: dict[str, Any]) -> Any:
    """Let children record numbers, from a process of its own."""
    return context.run_children([NewJob("effects.record", {"result": number}) for number in payload["n"]])
