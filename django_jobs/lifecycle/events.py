"""Events: emitted in the caller's transaction, they wake the jobs that wait for them, and stay for those that come later.

A wait and an emit may each commit without having seen the other. So a job looks for events once its wait is committed, and every
event is delivered once more after its own commit, by any worker process: one of these two sees the other. Whoever ends a wait has
locked its job's row first, so a wait ends once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models import Exists, OuterRef, Q, QuerySet

from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_alias
from django_jobs.db.transactions import database_now, retried, transactional
from django_jobs.encryption import as_stored
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Event, Job, JobStatus, JobStep, StepKind
from django_jobs.models.fields import DbNow
from django_jobs.models.job import LIVE
from django_jobs.names import event_key_problem, event_name_problem
from django_jobs.numbers import LONGEST_SECONDS, seconds_of
from django_jobs.payloads import decode, encode_payload, opened, readable, sealed
from django_jobs.rules import check, flag
from django_jobs.text import shown

from .moved import key_chunks
from .steps import LONGEST_WAIT, is_held, make_ready

BATCH = 500
KEPT_LONGER = timedelta(minutes=1)  # for a wait that began before an event expired, and has not looked for it yet
DAY = 86_400.0
BATCH_ENDED = "django_jobs.batch_ended"


def emit(
    name: str, *, key: str | None = None, payload: Any = None, retention: Any = None, encrypt: bool | None = None
) -> Event:
    """Write an event in the caller's transaction and wake the jobs that wait for it; see `django_jobs.emit`."""
    problems = [problem for problem in (event_name_problem(name), event_key_problem(key)) if problem]
    text = "{}"
    try:
        text = encode_payload({} if payload is None else payload)
    except InvalidJob as error:
        problems += error.problems
    seconds = _retention(retention, problems)
    try:
        encrypts = get_settings().ENCRYPT if encrypt is None else check("encrypt", encrypt, flag)
    except InvalidJob as error:
        problems += error.problems
    if problems:
        raise InvalidJob(*problems)
    given = decode(text)
    event = _emit(name, key, sealed(given) if encrypts else given, seconds)
    event.payload = given
    return event


def _retention(given: Any, problems: list[str]) -> float | None:
    if given is None:
        days = get_settings().RETENTION["events"]
        return None if days is None else days * DAY
    seconds = seconds_of(given)
    if seconds is None or not 0 <= seconds <= LONGEST_SECONDS:
        problems.append(f"retention={shown(given)}: give seconds or a timedelta, from 0 to ten years")
    return seconds


@transactional
def _emit(name: str, key: str | None, payload: dict[str, Any], seconds: float | None) -> Event:
    """Write an event with a payload as it is to be stored, which the steps that waited for it keep as it is."""
    now = database_now()
    expires_at = None if seconds is None else now + timedelta(seconds=seconds)
    event = Event.objects.create(name=name, key=key, payload=payload, created_at=now, expires_at=expires_at)
    _wake(event)
    return event


def tell_end(batch_id: str, status: str) -> None:
    """Wake the job whose children a batch is; who looks later reads the batch itself."""
    _emit(BATCH_ENDED, batch_id, {"batch": str(status)}, 0.0)


def deliver() -> int:
    """Wake what waits for events that have been committed and were not delivered yet; return how many events were.

    What somebody has locked just now is left for the next time, and so is its event.
    """
    delivered = 0
    while (step := _deliver_some()) == BATCH:
        delivered += step
    return delivered + step


@transactional
def _deliver_some() -> int:
    with as_stored():
        events = list(_free(Event.objects.undelivered().order_by("pk"))[:BATCH])
    if not events:
        return 0
    names, keys = {event.name for event in events}, {event.key for event in events}
    waits = _open_waits().filter(Q(event_key__in=keys - {None}) | Q(event_key=None), event_name__in=names)
    awaited = set(waits.order_by().values_list("event_name", "event_key").distinct())
    done = [event.pk for event in events if (event.name, event.key) not in awaited or _wake(event)]
    Event.objects.filter(pk__in=done).update(delivered_at=DbNow())
    return len(done)


def _wake(event: Event) -> bool:
    """End the waits for an event, and make their jobs ready, in the order of their ids; return False when some are locked.

    No lock is waited for: neither an emit nor a delivery is held up by a worker that has such a job in hand.
    """
    waits = _open_waits().filter(event_name=event.name, event_key=event.key, job__status__in=LIVE)
    # Children end after their parent has begun to wait for them, whatever a clock that was set back says.
    if event.expires_at is not None and event.name != BATCH_ENDED:
        waits = waits.filter(started_at__lte=event.expires_at)
    first: dict[str, int] = {}  # a job sees an event once, whatever number of its waits asks for it
    for key, job_id in waits.order_by("job_id", "position").values_list("pk", "job_id"):
        first.setdefault(job_id, key)
    found = sum(_wake_some(event, chunk, first) for chunk in key_chunks(first))
    return found == len(first)


def _wake_some(event: Event, job_ids: Sequence[str], first: dict[str, int]) -> int:
    """Wake those of the jobs that nobody has locked, and return how many need no further look."""
    jobs = dict(_free(Job.objects.filter(pk__in=job_ids).order_by("pk")).values_list("pk", "status"))
    seen = JobStep.objects.filter(job_id=OuterRef("job_id"), event_id=event.pk)
    waits = JobStep.objects.filter(~Exists(seen), pk__in=[first[job_id] for job_id in jobs], ended_at=None)
    woken = dict(waits.values_list("job_id", "pk"))
    if woken:
        JobStep.objects.filter(pk__in=woken.values(), ended_at=None).update(
            result=event.payload, event_id=event.pk, ended_at=DbNow()
        )
        if waiting := [job_id for job_id in woken if jobs[job_id] == JobStatus.SCHEDULED]:
            make_ready(waiting)
    return len(jobs)


def _open_waits() -> QuerySet[JobStep]:
    return JobStep.objects.filter(kind__in=(StepKind.EVENT, StepKind.CHILDREN), ended_at=None)


def _free(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Lock rows, leaving those out that somebody else has locked."""
    return rows.select_for_update(skip_locked=True)


class Answer(NamedTuple):
    """What a wait has come to: the event's payload, None after its timeout; or how many seconds there are left."""

    is_over: bool
    payload: dict[str, Any] | None = None
    seconds_left: float = LONGEST_WAIT


@transactional
def take(job_id: str, fence: int, step_id: int) -> Answer | None:
    """End a wait, which is committed, if its event is there or its time is over; return None when the run lost its job.

    The event is the oldest kept one that the job has not seen.
    """
    if not is_held(job_id, fence):
        return None
    wait = JobStep.objects.filter(pk=step_id).annotate(now=DbNow()).get()
    if wait.ended_at is not None:
        return Answer(True, readable(wait.result))
    seen = JobStep.objects.filter(job_id=job_id, event_id=OuterRef("pk"))
    kept = Event.objects.called(str(wait.event_name), wait.event_key)
    with as_stored():
        event = (
            kept.filter(~Exists(seen), Q(expires_at=None) | Q(expires_at__gte=wait.started_at)).order_by("pk").first()
        )
    left = LONGEST_WAIT if wait.due_at is None else (wait.due_at - wait.now).total_seconds()
    if event is None and left > 0:
        return Answer(False, seconds_left=left)
    payload = None if event is None else event.payload
    JobStep.objects.filter(pk=step_id).update(
        result=payload, event_id=None if event is None else event.pk, ended_at=DbNow()
    )
    return Answer(True, opened(payload))


@retried
def prune_events(limit: int = BATCH) -> int:
    """Delete up to `limit` events that have expired; return how many."""
    old = Event.objects.filter(expires_at__lt=DbNow() - KEPT_LONGER, delivered_at__isnull=False)
    ids = list(old.order_by("expires_at").values_list("pk", flat=True)[:limit])
    if ids:
        Event.objects.filter(pk__in=ids)._raw_delete(jobs_alias())
    return len(ids)
