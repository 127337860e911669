"""Steps: what a workflow has done is recorded under the fence of its run; a run that lost its job records nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import BooleanField, Case, Min, Q, Value, When

from django_jobs.db.connections import jobs_alias
from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.words import StepRow
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import database_now, retried, transactional
from django_jobs.models import Job, JobStatus, JobStep, StepKind
from django_jobs.models.fields import DbNow

LONGEST_WAIT = 36_525 * 86_400.0  # seconds: a hundred years, for what nothing but an event ends


class Record(NamedTuple):
    """A step as an earlier run has left it. `is_due`: its time to wait was over when this was read."""

    id: int
    position: int
    name: str
    kind: str
    result: Any
    has_ended: bool
    is_due: bool
    due_at: datetime | None
    event_name: str | None
    event_key: str | None


@retried
def recorded(job_id: str) -> list[Record]:
    """Return what is on record of a job's steps, in their order."""
    steps = JobStep.objects.filter(job_id=job_id).order_by("position").annotate(
        has_ended=_whether(Q(ended_at__isnull=False)), is_due=_whether(Q(due_at__lte=DbNow()))
    )  # fmt: skip
    return [Record(*row) for row in steps.values_list(*Record._fields)]


def _whether(condition: Q) -> Case:
    return Case(When(condition, then=Value(True)), default=Value(False), output_field=BooleanField())


@retried
def record(job_id: str, fence: int, row: StepRow) -> int | None:
    """Record a step and return its key; None, with nothing written, when the run lost its job.

    In a transaction that is open, as that of an atomic step, the record is part of it. Otherwise it is one statement.
    """
    return dialect().insert_step(job_id, fence, row)


def record_again(job_id: str, fence: int, row: StepRow) -> int | None:
    """Record a step whose first record may have been committed although its reply was lost."""
    known = JobStep.objects.filter(job_id=job_id, position=row.position).values_list("pk", flat=True).first()
    return record(job_id, fence, row) if known is None else known


@retried
def record_done(job_id: str, fence: int, row: StepRow) -> bool:
    """Do as `record`, for a step of the kind `step`; return False when the run lost its job."""
    return dialect().insert_done_step(job_id, fence, row)


def record_done_again(job_id: str, fence: int, row: StepRow) -> bool:
    """Do as `record_again`, for a step of the kind `step`."""
    return JobStep.objects.filter(job_id=job_id, position=row.position).exists() or record_done(job_id, fence, row)


@retried
def forget_crashes(job_id: str, fence: int) -> None:
    """Count a run's crashes anew: a job that gets on is no crash loop, however often its process is killed."""
    Job.objects.held_under(job_id, fence).update(crash_count=0)


@transactional
def change(job_id: str, fence: int, step_id: int, *, result: Any = None, has_ended: bool) -> bool:
    """Write the cursor of a loop, or end a loop or a wait; return False when the run lost its job."""
    if not is_held(job_id, fence):
        return False
    ended_at = {"ended_at": DbNow()} if has_ended else {}
    JobStep.objects.filter(pk=step_id, ended_at=None).update(result=result, **ended_at)
    return True


def is_held(job_id: str, fence: int) -> bool:
    """Lock a run's job, in the transaction that is open, and say whether the run still holds it."""
    return Job.objects.held_under(job_id, fence).select_for_update().values_list("pk").first() is not None


def seconds_until(moment: datetime) -> float:
    """Return the seconds from now to a moment, negative when it is over, by the database's clock."""
    return (moment - database_now()).total_seconds()


def put_to_wait(waits: Mapping[str, Collection[int]]) -> None:
    """Let jobs, which have just been scheduled at the end of a run, wait for what ends a wait of theirs first.

    Call it in the transaction that scheduled them, with the keys of the waits that each run has begun or found open. What was
    ended meanwhile, by an event, makes its job ready at once.
    """
    keys = {key for chosen in waits.values() for key in chosen}
    ended = set(JobStep.objects.filter(pk__in=keys, ended_at__isnull=False).values_list("job_id", flat=True))
    due_at = dict(
        JobStep.objects.filter(job_id__in=waits.keys() - ended, ended_at=None, due_at__isnull=False)
        .order_by()
        .values_list("job_id")
        .annotate(first=Min("due_at"))
    )
    for job_id, moment in sorted(due_at.items()):
        Job.objects.filter(pk=job_id, status=JobStatus.SCHEDULED).update(available_at=moment)
    if ended:
        make_ready(ended)


def make_ready(ids: Iterable[str]) -> None:
    """Make scheduled jobs, whose rows the caller has locked, ready: what they waited for has come."""
    jobs = Job.objects.filter(pk__in=list(ids), status=JobStatus.SCHEDULED)
    queues = set(jobs.order_by().values_list("queue", flat=True).distinct())
    jobs.update(status=JobStatus.PENDING, available_at=DbNow(), updated_at=DbNow())
    for queue in sorted(queues):
        notify_work(queue)


def end_sleeps(ids: Iterable[str]) -> None:
    """End the sleeps that jobs, whose rows the caller has locked, wait in: an operator runs them now."""
    open_sleeps = JobStep.objects.filter(job_id__in=list(ids), kind=StepKind.SLEEP, ended_at=None)
    open_sleeps.filter(due_at__gt=DbNow()).update(due_at=DbNow())


def forget(ids: Iterable[str]) -> None:
    """Delete all that is on record of jobs' steps: they begin again from the start."""
    JobStep.objects.filter(job_id__in=list(ids))._raw_delete(jobs_alias())
