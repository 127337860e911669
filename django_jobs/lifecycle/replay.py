"""Replay: an operator runs jobs that ended badly again from the start, and the dependents that failed because of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q

from django_jobs import signals
from django_jobs.db.connections import jobs_alias
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.models import DeadLetter, DependencyState, Job, JobDependency, JobStatus
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY
from django_jobs.payloads import encode_payload

from .acknowledge import why_closed
from .dependents import STEP, recount
from .moved import Moved, chunks, lock_jobs

logger = logging.getLogger("django_jobs")
REVIVABLE = Q(state=DependencyState.BROKEN) & Q(job__status=JobStatus.FAILED)
LIVE_AGAIN = ~Q(depends_on__status__in=ENDED_BADLY)
NO_WAITS: Mapping[Any, float] = {}


def replay(
    ids: Iterable[str], *, by: Any = None, dependents: bool = True, waits: Mapping[str, float] = NO_WAITS
) -> Moved:
    """Run dead, failed or cancelled jobs again from the start, and close their open dead letters as replayed.

    Jobs in another state are left, and so are those whose unique key a live job holds.

    Args:
        by: the user who replays, or None.
        dependents: let the jobs that failed because of these wait again; False leaves them failed for good.
        waits: the seconds before which a job does not start; at once where nothing is said.
    """
    moved = Moved([], {})
    for chunk in chunks(ids):
        moved += _replay(chunk, by, dependents, waits)
    if dependents and moved.done:
        revive_all()
    return moved


@transactional
def replay_edited(job_id: str, payload: dict[str, Any], *, by: Any = None) -> None:
    """Replay a job with another payload, in one transaction.

    Raises JobNotFound, and InvalidJob for a payload that cannot be stored, or when the job cannot be replayed.
    """
    encode_payload(payload)
    job = lock_jobs([job_id]).get(job_id)
    if job is None or job.status not in ENDED_BADLY:
        raise _why_not(job_id, job)
    Job.objects.filter(pk=job_id).update(payload=payload)
    replay([job_id], by=by).raise_if_left()


def replay_dead_letters(
    dead_letter_ids: Iterable[int], *, by: Any = None, waits: Mapping[int, float] = NO_WAITS
) -> Moved:
    """Replay the jobs of open dead letters, and close these; leave those that are closed. The keys are the dead letters'."""
    ids = list(dead_letter_ids)
    job_of = {
        pk: job_id
        for chunk in chunks(ids)
        for pk, job_id in DeadLetter.objects.filter(pk__in=chunk).open().values_list("pk", "job_id")
    }
    moved = replay(job_of.values(), by=by, waits={job_id: waits[pk] for pk, job_id in job_of.items() if pk in waits})
    left = {pk: moved.left[job_id] for pk, job_id in job_of.items() if job_id in moved.left}
    return Moved([pk for pk in job_of if pk not in left], left | why_closed(set(ids) - job_of.keys()))


def _replay(ids: Sequence[str], by: Any, dependents: bool, waits: Mapping[str, float]) -> Moved:
    """Replay a chunk; when a unique key stops the whole of it, job by job."""
    try:
        return _replay_together(ids, by, dependents, waits)
    except InvalidJob as error:
        if len(ids) == 1:
            return Moved([], {ids[0]: error})
        return sum((_replay([job_id], by, dependents, waits) for job_id in ids), Moved([], {}))


@transactional
def _replay_together(ids: Sequence[str], by: Any, dependents: bool, waits: Mapping[str, float]) -> Moved:
    jobs = lock_jobs(ids)
    done = [job.pk for job in jobs.values() if job.status in ENDED_BADLY]
    left = {job_id: _why_not(job_id, jobs.get(job_id)) for job_id in ids if job_id not in done}
    if not done:
        return Moved(done, left)
    _start_over(done)
    _delay(done, waits)
    DeadLetter.objects.filter(job_id__in=done).open().update(replayed_at=DbNow(), replayed_by=by)
    if dependents:
        # The first ones in this very transaction: a replay that was cut off would be refused when somebody asks for it again.
        revived = 0
        while revived < STEP and (step := revive_step()):
            revived += step
    else:
        # Their edges are closed, so that no later replay of another job takes them for its own.
        broken = JobDependency.objects.filter(depends_on_id__in=done, state=DependencyState.BROKEN)
        broken.update(state=DependencyState.SATISFIED)
    for job_id in done:
        signals.announce(signals.job_replayed, job_id)
    for queue in {jobs[job_id].queue for job_id in done}:
        notify_work(queue)
    return Moved(done, left)


def _why_not(job_id: str, job: Job | None) -> JobsError:
    if job is None:
        return JobNotFound(job_id)
    return InvalidJob(f"job {job_id!r} is {job.status}; only a dead, failed or cancelled job can be replayed")


def _start_over(ids: Sequence[str]) -> None:
    """Make jobs wait again as if new. Their own dependencies that ended badly no longer hold them."""
    try:
        with transaction.atomic(using=jobs_alias()):
            Job.objects.filter(pk__in=ids).update(
                status=JobStatus.PENDING,
                fence=F("fence") + 1,
                retry_count=0,
                crash_count=0,
                available_at=DbNow(),
                updated_at=DbNow(),
                started_at=None,
                finished_at=None,
                cancel_requested_at=None,
                error=None,
                result=None,
                progress=None,
                progress_message="",
                unique_lock=F("unique_key"),
            )
    except IntegrityError:
        raise InvalidJob(
            f"a live job holds the unique key of {', '.join(map(repr, ids[:3]))}; wait for it, or cancel it, then replay"
        ) from None


def _delay(ids: Sequence[str], waits: Mapping[str, float]) -> None:
    """Schedule jobs that just became pending, each after its wait; one statement for those that share a wait."""
    by_wait: dict[float, list[str]] = {}
    for job_id in ids:
        by_wait.setdefault(waits.get(job_id, 0.0), []).append(job_id)
    for wait, delayed in sorted(by_wait.items()):
        if wait > 0:
            due = DbNow() + timedelta(seconds=wait)
            Job.objects.filter(pk__in=delayed).update(status=JobStatus.SCHEDULED, available_at=due)


def revive_all() -> None:
    """Let all dependents wait again whose failed dependency is live again: what a replay, or its process, left undone.

    What a live unique key holds back waits for it.
    """
    try:
        while revive_step():
            pass
    except InvalidJob as error:
        logger.debug("a replay cannot be finished now: %s", error)


@transactional
def revive_step() -> int:
    """Let jobs wait again whose broken dependency is live again, and those behind them, along STEP edges; return how many.

    The rows say what is left: a broken edge to a job that is not ended. The first STEP jobs are part of the replay's own
    transaction; after a crash any process goes on with the others. Each step leaves the counts right.
    """
    broken = JobDependency.objects.filter(REVIVABLE)
    first = broken.filter(LIVE_AGAIN).order_by("job_id").values_list("job_id", flat=True)[:STEP]
    ids = _behind(broken, sorted(set(first)))
    if not ids:
        return 0
    jobs = Job.objects.filter(pk__in=ids).order_by("pk").select_for_update()
    queue_of = dict(jobs.filter(status=JobStatus.FAILED).values_list("pk", "queue"))
    edges = list(broken.filter(job_id__in=ids).values_list("pk", "job_id", "depends_on_id", "depends_on__status"))
    free = _free(edges)
    satisfied = [pk for pk, _, _, status in edges if status == JobStatus.COMPLETED]
    again = [pk for pk, _, name, status in edges if status not in (*ENDED_BADLY, JobStatus.COMPLETED) or name in free]
    JobDependency.objects.filter(pk__in=again).update(state=DependencyState.OPEN)
    JobDependency.objects.filter(pk__in=satisfied).update(state=DependencyState.SATISFIED)
    recount(ids)
    revived = sorted(free & queue_of.keys())
    if revived:
        _start_over(revived)
        for job_id in revived:
            signals.announce(signals.job_replayed, job_id)
        for queue in {queue_of[job_id] for job_id in revived}:
            notify_work(queue)
    return len(again) + len(satisfied)


def _behind(broken: Any, ids: list[str]) -> list[str]:
    """Return jobs with those behind them that may wait again, too, layer by layer, until there are STEP or a few more.

    A step a layer took 20 ms a link of a chain of 2,000; this takes 1.6 ms (PostgreSQL).
    """
    found = dict.fromkeys(ids)
    layer = ids
    while layer and len(found) < STEP:
        behind = broken.filter(depends_on_id__in=layer).order_by("job_id").values_list("job_id", flat=True)
        layer = [job_id for job_id in dict.fromkeys(behind[:STEP]) if job_id not in found]
        found.update(dict.fromkeys(layer))
    return sorted(found)


def _free(edges: Sequence[tuple[int, str, str, str]]) -> set[str]:
    """Return the jobs none of whose broken edges leads to a job that stays ended badly."""
    behind: dict[str, list[str]] = {}
    held = Counter(job_id for _, job_id, _, _ in edges)
    for _, job_id, depends_on, status in edges:
        if status in ENDED_BADLY:
            behind.setdefault(depends_on, []).append(job_id)
        else:
            held[job_id] -= 1
    layer = [job_id for job_id, number in held.items() if not number]
    free = set(layer)
    while layer:
        for job_id in behind.get(layer.pop(), []):
            held[job_id] -= 1
            if not held[job_id]:
                free.add(job_id)
                layer.append(job_id)
    return free
