"""Replay: an operator runs jobs that ended badly again, and the dependents that failed because of them.

Steps that are on record are not done again, unless the job is to begin from the start.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from django.db import IntegrityError, transaction
from django.db.models import F

from django_jobs import signals
from django_jobs.db.connections import jobs_alias
from django_jobs.db.notify import notify_cascade, notify_work
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import BatchNotFound, InvalidJob
from django_jobs.handlers import encrypts_type, payload_problems, registry
from django_jobs.models import (
    Batch,
    BatchMember,
    DeadLetter,
    DependencyState,
    Job,
    JobDependency,
    JobStatus,
    JobStep,
    StepKind,
)
from django_jobs.models.fields import DbNow
from django_jobs.models.job import ENDED_BADLY
from django_jobs.payloads import encode_payload, sealed

from .acknowledge import why_closed
from .batches import reopen, with_nested
from .dependents import LIVE_AGAIN, REVIVABLE, STEP, locked_in_order, recount
from .moved import Moved, chunks, lock_jobs, why_left
from .steps import forget
from .users import known_here

logger = logging.getLogger("django_jobs")
REFUSAL = "; only a dead, failed or cancelled job can be replayed"


class Way(NamedTuple):
    """How jobs are replayed: the arguments of `replay`."""

    by: Any
    dependents: bool
    from_start: bool


def replay(
    ids: Iterable[str],
    *,
    by: Any = None,
    dependents: bool = True,
    from_start: bool = False,
) -> Moved:
    """Run dead, failed or cancelled jobs again, and close their open dead letters as replayed.

    Jobs in another state are left, and so are those whose unique key a live job holds.

    Args:
        by: the user who replays, or the key of one, or None.
        dependents: let the jobs that failed because of these wait again; False leaves them failed for good.
        from_start: forget which steps were done; otherwise the jobs go on behind them.
    """
    moved = _replay_in_chunks(ids, Way(by, dependents, from_start))
    if dependents and moved.done:
        revive_all()
    return moved


def _replay_children(ids: Sequence[str], by: Any) -> None:
    """Replay what failed of the children of jobs that go on behind their steps, before they look at them again."""
    steps = JobStep.objects.filter(job_id__in=ids, kind=StepKind.CHILDREN, event_key__isnull=False)
    batch_ids = steps.filter(job__status__in=ENDED_BADLY).order_by("pk").values_list("event_key", flat=True)
    for batch_id in list(batch_ids):
        with suppress(InvalidJob, BatchNotFound):  # none of them has failed
            replay_batch(str(batch_id), by=by)


def replay_some(ids: Iterable[str], *, by: Any = None, from_start: bool = False) -> Moved:
    """Replay jobs and the first ones behind them, and leave the others to the workers' next cascade."""
    moved = _replay_in_chunks(ids, Way(by, True, from_start))
    if moved.done:
        notify_cascade()
    return moved


def _replay_in_chunks(ids: Iterable[str], way: Way) -> Moved:
    moved = Moved([], {})
    for chunk in chunks(ids):
        if not way.from_start:
            _replay_children(chunk, way.by)
        moved += _replay(chunk, way)
    return moved


@transactional
def replay_edited(job_id: str, payload: dict[str, Any], *, by: Any = None) -> None:
    """Replay a job with another payload, from the start and in one transaction.

    Raises JobNotFound, and InvalidJob for a payload that cannot be stored or does not fit the handler, or when the job cannot
    be replayed.
    """
    encode_payload(payload)
    job = lock_jobs([job_id]).get(job_id)
    if job is None or job.status not in ENDED_BADLY:
        raise why_left(job_id, job, REFUSAL)
    if problems := payload_problems(registry.find(job.job_type), payload):
        raise InvalidJob(*problems)
    Job.objects.filter(pk=job_id).update(payload=sealed(payload) if encrypts_type(job.job_type) else payload)
    replay([job_id], by=by, from_start=True).raise_if_left()


def replay_dead_letters(dead_letter_ids: Iterable[int], *, by: Any = None, from_start: bool = False) -> Moved:
    """Replay the jobs of open dead letters, and close these; leave those that are closed. The keys are the dead letters'."""
    return _of_dead_letters(dead_letter_ids, partial(replay, by=by, from_start=from_start))


def replay_some_dead_letters(dead_letter_ids: Iterable[int], *, by: Any = None, from_start: bool = False) -> Moved:
    """Replay the jobs of open dead letters as `replay_some` does."""
    return _of_dead_letters(dead_letter_ids, partial(replay_some, by=by, from_start=from_start))


def _of_dead_letters(dead_letter_ids: Iterable[int], move: Callable[[Iterable[str]], Moved]) -> Moved:
    ids = list(dead_letter_ids)
    job_of = {
        pk: job_id
        for chunk in chunks(ids)
        for pk, job_id in DeadLetter.objects.filter(pk__in=chunk).open().values_list("pk", "job_id")
    }
    moved = move(job_of.values())
    left = {pk: moved.left[job_id] for pk, job_id in job_of.items() if job_id in moved.left}
    return Moved([pk for pk in job_of if pk not in left], left | why_closed(set(ids) - job_of.keys()))


@transactional
def replay_batch(batch_id: str, *, by: Any = None) -> int:
    """Replay the members that ended badly of a batch and of those nested in it; return how many these are.

    One transaction: a batch that is replayed in parts could finish between two of them, and would call back twice. Members
    that failed by another member wait for that one again. Raises BatchNotFound, and InvalidJob when there is nothing to
    replay, or when live jobs hold the unique keys of all that there is.
    """
    if not Batch.objects.filter(pk=batch_id).exists():
        raise BatchNotFound(batch_id)
    places = BatchMember.objects.filter(batch__in=with_nested(batch_id), bad_end__in=sorted(ENDED_BADLY))
    bad = list(places.values_list("job_id", flat=True))
    if not bad:
        raise InvalidJob(
            f"batch {batch_id!r} has no member that is dead, failed or cancelled: there is nothing to replay"
        )
    behind = _failed_by_another(bad)
    left = replay([job_id for job_id in bad if job_id not in behind], by=by).left
    left |= replay(_ended_badly(bad), by=by).left
    replayed = len(bad) - len(_ended_badly(bad))
    if not replayed:
        raise next(iter(left.values()))
    return replayed


def _failed_by_another(ids: Collection[str]) -> set[str]:
    """Return those of the jobs that failed because another one of them did."""
    among = set(ids)
    behind: set[str] = set()
    for chunk in chunks(ids):
        edges = JobDependency.objects.filter(REVIVABLE, job_id__in=chunk).values_list("job_id", "depends_on_id")
        behind.update(job_id for job_id, depends_on in edges if depends_on in among)
    return behind


def _ended_badly(ids: Iterable[str]) -> list[str]:
    found = (Job.objects.filter(pk__in=chunk, status__in=ENDED_BADLY) for chunk in chunks(ids))
    return [job_id for jobs in found for job_id in jobs.values_list("pk", flat=True)]


def _replay(ids: Sequence[str], way: Way) -> Moved:
    """Replay a chunk; when a unique key stops the whole of it, job by job."""
    try:
        return _replay_together(ids, way)
    except InvalidJob as error:
        if len(ids) == 1:
            return Moved([], {ids[0]: error})
        return sum((_replay([job_id], way) for job_id in ids), Moved([], {}))


@transactional
def _replay_together(ids: Sequence[str], way: Way) -> Moved:
    jobs = lock_jobs(ids)
    done = [job.pk for job in jobs.values() if job.status in ENDED_BADLY]
    moved = Moved.of(ids, jobs, done, REFUSAL)
    if not done:
        return moved
    _start_over(done)
    if way.from_start:
        forget(done)
    DeadLetter.objects.filter(job_id__in=done).open().update(replayed_at=DbNow(), replayed_by=known_here(way.by))
    if way.dependents:
        # The first ones in this very transaction: a replay that was cut off would be refused when somebody asks for it again.
        revived = 0
        while revived < STEP and (step := revive_step()):
            revived += step
    else:
        # Their edges are closed, so that no later replay of another job takes them for its own.
        broken = JobDependency.objects.filter(depends_on_id__in=done, state=DependencyState.BROKEN)
        broken.update(state=DependencyState.SATISFIED)
    reopen(done)
    for job_id in done:
        signals.announce(signals.job_replayed, job_id)
    for queue in {jobs[job_id].queue for job_id in done}:
        notify_work(queue)
    return moved


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
    # With their dependencies, for one that completed between the look at it and our commit would not see the edge that we open.
    names = {*ids, *broken.filter(job_id__in=ids).values_list("depends_on_id", flat=True)}
    queue_of = {pk: queue for pk, queue, status, _ in locked_in_order(names) if status == JobStatus.FAILED}
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
        reopen(revived)
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
