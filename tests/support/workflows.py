"""Records of steps for tests of what is shown of them."""

from typing import Any

from django_jobs.models import Job, JobStep
from django_jobs.models.fields import DbNow


def add_step(job: Job, name: str, result: Any = None, **fields: Any) -> JobStep:
    """Add a step that is done behind those that the job has."""
    position = job.steps.count() + 1
    values = {"kind": "step", "started_at": DbNow(), "ended_at": DbNow(), **fields}
    return JobStep.objects.create(job=job, position=position, name=name, result=result, **values)
