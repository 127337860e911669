"""Children: jobs that a run submits and waits for, as a batch that is made with the record of its step.

The end of the batch is told as an event, which wakes the job as any other; what came of the children is read from their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django_jobs.db.dialects.words import StepRow
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Batch, Job, JobStatus, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY
from django_jobs.payloads import encode_result, readable
from django_jobs.submission import NewJob

from .batches import new_batch
from .events import BATCH_ENDED
from .steps import is_held, record

MOST_NAMED = 3
Stored = Callable[[Any], Any]  # makes of results what is stored of them
LONGEST_ERROR = 200


@transactional
def begin(job_id: str, fence: int, row: StepRow, new_jobs: Sequence[NewJob]) -> int | None:
    """Submit children and record the step that waits for them, in one transaction; return the step's key.

    Returns None, with nothing written, when the run lost its job; the step that is there, when an earlier try had committed and
    its reply was lost. Raises InvalidJob as `submit_many`.
    """
    if not is_held(job_id, fence):
        return None
    known = JobStep.objects.filter(job_id=job_id, position=row.position).values_list("pk", flat=True).first()
    if known is not None:
        return known
    if not new_jobs:
        return record(job_id, fence, row._replace(result="[]"))
    description, metadata = f"{row.name} of {job_id}"[:200], {"children": len(new_jobs)}
    with new_batch(description, metadata=metadata, callbacks={}, awaited_by=job_id) as batch:
        batch.submit_many(new_jobs)
    return record(job_id, fence, row._replace(has_ended=False, event_name=BATCH_ENDED, event_key=batch.pk))


class Answer(NamedTuple):
    """What has come of children: their results; or what failed, and the ids of that; neither while one has not ended."""

    results: list[Any] | None = None
    problem: str = ""
    failed: tuple[str, ...] = ()


def look(job_id: str, fence: int, step_id: int, stored: Stored) -> Answer | None:
    """Return what has come of the children of a step, and end the step with it; None when the run lost its job.

    Raises InvalidJob for results that are too long together.
    """
    answer = _look(job_id, fence, step_id, stored)
    # Woken too early, the step waits again; only once that is committed, who ends the batch sees it.
    return answer if answer is None or answer != Answer() else _look(job_id, fence, step_id, stored)


@transactional
def _look(job_id: str, fence: int, step_id: int, stored: Stored) -> Answer | None:
    if not is_held(job_id, fence):
        return None
    step = JobStep.objects.filter(pk=step_id)
    batch_id = step.values_list("event_key", flat=True).get()
    batch = Batch.objects.filter(pk=batch_id).first()
    if batch is not None and not batch.is_finished:
        step.update(result=None, event_id=None, ended_at=None)
        return Answer()
    answer = _answer(batch)
    result = {"failed": list(answer.failed)} if answer.problem else stored(answer.results)
    step.update(result=result, ended_at=DbNow())
    return answer


def _answer(batch: Batch | None) -> Answer:
    if batch is None:
        return Answer(problem="the children were deleted before their results were read")
    bad = batch.jobs.filter(status__in=ENDED_BADLY)
    if failed := list(bad[:MOST_NAMED]):
        more = bad.count() - len(failed)
        named = "; ".join(map(_failure, failed))
        return Answer(None, f"{named}; and {more} more" if more else named, tuple(job.pk for job in failed))
    number = batch.metadata["children"]
    rows = list(batch.jobs.values_list("status", "result")[:number])  # behind them are those that a child has added
    if len(rows) < number:
        return Answer(problem=f"{number - len(rows)} of {number} children were deleted before their results were read")
    results = [readable(result) for _, result in rows]
    encode_result(results, where="the children's results together")
    return Answer(results)


def _failure(job: Job) -> str:
    why = f": {job.error:.{LONGEST_ERROR}}" if job.error and job.status != JobStatus.CANCELLED else ""
    return f"child {job.pk} ({job.job_type}) is {job.status}{why}"


def checked(new_jobs: Any) -> list[NewJob]:
    """Return what is given as children as a list; raise InvalidJob for what cannot be one."""
    children = [] if isinstance(new_jobs, str | NewJob) else list(new_jobs)
    if isinstance(new_jobs, str | NewJob) or not all(isinstance(child, NewJob) for child in children):
        raise InvalidJob("give a list of NewJob(…)")
    if any(child.options.get("unique_key") is not None for child in children):
        raise InvalidJob("unique_key: a child cannot have it, for a job that holds the key would be no child")
    return children
