"""What operators do: replay a job that ended badly, run a scheduled one now, acknowledge a dead letter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q

from django_jobs import signals
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import DeadLetter, DependencyState, Job, JobDependency, JobStatus
from django_jobs.models.job import ENDED_BADLY

from .events import announce
from .notify import announce_work
from .transactions import DbNow, jobs_alias, run_transaction
from .wake import STEP, recount

logger = logging.getLogger("django_jobs")
REVIVABLE = Q(state=DependencyState.BROKEN) & Q(job__status=JobStatus.FAILED)
LIVE_AGAIN = ~Q(depends_on__status__in=ENDED_BADLY)


def replay(job_id: str, *, by: Any = None, dependents: bool = True, alias: str | None = None) -> None:
    """Run a dead, failed or cancelled job again from the start, and close its open dead letters as replayed.

    Args:
        by: the user who replays, or None.
        dependents: let the jobs that failed because of this one wait again; False leaves them failed for good.

    Raises JobNotFound, and InvalidJob when the job is in another state or a live job holds its unique key.
    """
    using = alias or jobs_alias()

    def move() -> str:
        queue = _replay(job_id, by, dependents, using)
        revived = 0
        while dependents and revived < STEP and (step := revive_step(using)):
            revived += step
        return queue

    announce_work(run_transaction(move, using), using)
    if dependents:
        revive_all(using)


def revive_all(alias: str | None = None) -> None:
    """Repeat `revive_step` until nothing is left."""
    using = alias or jobs_alias()
    while run_transaction(lambda: revive_step(using), using):
        pass


def finish_replays(alias: str | None = None) -> None:
    """Finish replays of many dependents whose process died midway; what a live unique key holds back waits for it."""
    try:
        revive_all(alias)
    except InvalidJob as error:
        logger.debug("a replay cannot be finished now: %s", error)


def _replay(job_id: str, by: Any, dependents: bool, using: str) -> str:
    job = Job.objects.using(using).filter(pk=job_id).select_for_update().first()
    if job is None:
        raise JobNotFound(job_id)
    if job.status not in ENDED_BADLY:
        raise InvalidJob(f"job {job_id!r} is {job.status}; only a dead, failed or cancelled job can be replayed")
    start_over([job_id], using)
    DeadLetter.objects.using(using).filter(job_id=job_id).open().update(replayed_at=DbNow(), replayed_by=by)
    if not dependents:
        # Their edges are closed, so that no later replay of another job takes them for its own.
        broken = JobDependency.objects.using(using).filter(depends_on_id=job_id, state=DependencyState.BROKEN)
        broken.update(state=DependencyState.SATISFIED)
    announce(signals.job_replayed, job_id, using)
    return str(job.queue)


def start_over(ids: list[str], using: str) -> None:
    """Make jobs wait again as if new. Their own dependencies that ended badly no longer hold them."""
    try:
        with transaction.atomic(using=using):
            Job.objects.using(using).filter(pk__in=ids).update(
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


def revive_step(using: str) -> int:
    """Let jobs wait again whose broken dependency is live again, and those behind them, along STEP edges; return how many.

    The rows say what is left: a broken edge to a job that is not ended. The first STEP jobs are part of the replay's own
    transaction; after a crash any process goes on with the others. Each step leaves the counts right.
    """
    broken = JobDependency.objects.using(using).filter(REVIVABLE)
    ids = _behind(
        broken, sorted(set(broken.filter(LIVE_AGAIN).order_by("job_id").values_list("job_id", flat=True)[:STEP]))
    )
    if not ids:
        return 0
    jobs = Job.objects.using(using).filter(pk__in=ids).order_by("pk").select_for_update()
    queue_of = dict(jobs.filter(status=JobStatus.FAILED).values_list("pk", "queue"))
    edges = list(broken.filter(job_id__in=ids).values_list("pk", "job_id", "depends_on_id", "depends_on__status"))
    free = _free(edges)
    satisfied = [pk for pk, _, _, status in edges if status == JobStatus.COMPLETED]
    again = [pk for pk, _, name, status in edges if status not in (*ENDED_BADLY, JobStatus.COMPLETED) or name in free]
    JobDependency.objects.using(using).filter(pk__in=again).update(state=DependencyState.OPEN)
    JobDependency.objects.using(using).filter(pk__in=satisfied).update(state=DependencyState.SATISFIED)
    recount(ids, using)
    chosen = sorted(free & queue_of.keys())
    if chosen:
        start_over(chosen, using)
        for job_id in chosen:
            announce(signals.job_replayed, job_id, using)
        for queue in {queue_of[job_id] for job_id in chosen}:
            announce_work(queue, using)
    return len(again) + len(satisfied)


def _behind(broken: Any, ids: list[str]) -> list[str]:
    """Return jobs with those behind them that may wait again, too, layer by layer, until there are STEP or a few more."""
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


def run_now(job_id: str, alias: str | None = None) -> None:
    """Make a scheduled job ready at once; a pending one is left as it is.

    Raises JobNotFound, and InvalidJob when the job is running or finished.
    """
    using = alias or jobs_alias()

    def move() -> str:
        job = Job.objects.using(using).filter(pk=job_id).select_for_update().only("status", "queue").first()
        if job is None:
            raise JobNotFound(job_id)
        if job.status == JobStatus.SCHEDULED:
            Job.objects.using(using).filter(pk=job_id).update(
                status=JobStatus.PENDING, fence=F("fence") + 1, available_at=DbNow(), updated_at=DbNow()
            )
        elif job.status != JobStatus.PENDING:
            raise InvalidJob(f"job {job_id!r} is {job.status}; only a waiting job can be run now")
        return str(job.queue)

    announce_work(run_transaction(move, using), using)


def acknowledge(letter_id: int, *, by: Any = None, note: str = "", alias: str | None = None) -> None:
    """Close a dead letter with a note; raise InvalidJob when it is closed already."""
    using = alias or jobs_alias()

    def move() -> None:
        open_letter = DeadLetter.objects.using(using).filter(pk=letter_id).open()
        changed = open_letter.update(acknowledged_at=DbNow(), acknowledged_by=by, note=note)
        letter = DeadLetter.objects.using(using).filter(pk=letter_id).select_related("job").first()
        if letter is None:
            raise JobNotFound(f"dead letter {letter_id}")
        if not changed:
            state = "acknowledged" if letter.acknowledged_at else "replayed"
            raise InvalidJob(f"the dead letter of job {letter.job_id!r} is {state} already")
        announce(signals.dead_letter_acknowledged, letter.job, using, letter=letter, note=note)

    run_transaction(move, using)


def replay_letter(letter_id: int, *, by: Any = None, alias: str | None = None) -> None:
    """Replay the job of an open dead letter; raise InvalidJob when the letter is closed already."""
    using = alias or jobs_alias()

    def move() -> str:
        letter = DeadLetter.objects.using(using).filter(pk=letter_id).select_for_update().first()
        if letter is None:
            raise JobNotFound(f"dead letter {letter_id}")
        if not letter.is_open:
            state = "acknowledged" if letter.acknowledged_at else "replayed"
            raise InvalidJob(f"the dead letter of job {letter.job_id!r} is {state} already")
        return str(letter.job_id)

    replay(run_transaction(move, using), by=by, alias=using)
