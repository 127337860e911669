"""What operators do: replay a job that ended badly, run a scheduled one now, acknowledge a dead letter."""

from __future__ import annotations

import logging
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
    """Let up to STEP jobs wait again whose broken dependency is live again; return how many.

    The rows say what is left: a broken edge to a job that is not ended. The first STEP jobs are part of the replay's own
    transaction; after a crash any process goes on with the others. Each step leaves the counts right.
    """
    edges = list(
        JobDependency.objects.using(using)
        .filter(REVIVABLE, ~Q(depends_on__status__in=ENDED_BADLY))
        .order_by("job_id")
        .values_list("pk", "job_id")[:STEP]
    )
    if not edges:
        return 0
    ids = sorted({job_id for _, job_id in edges})
    list(Job.objects.using(using).filter(pk__in=ids).order_by("pk").select_for_update().values_list("pk"))
    keys = [key for key, _ in edges]
    chosen = JobDependency.objects.using(using).filter(pk__in=keys)
    done = list(chosen.filter(depends_on__status=JobStatus.COMPLETED).values_list("pk", flat=True))
    JobDependency.objects.using(using).filter(pk__in=keys).exclude(pk__in=done).update(state=DependencyState.OPEN)
    JobDependency.objects.using(using).filter(pk__in=done).update(state=DependencyState.SATISFIED)
    failed = list(Job.objects.using(using).filter(pk__in=ids, status=JobStatus.FAILED).values_list("pk", "queue"))
    still_broken = set(
        JobDependency.objects.using(using)
        .filter(job_id__in=ids, state=DependencyState.BROKEN)
        .values_list("job_id", flat=True)
    )
    recount(ids, using)
    free = [job_id for job_id, _ in failed if job_id not in still_broken]
    if free:
        start_over(free, using)
        for job_id in free:
            announce(signals.job_replayed, job_id, using)
        for queue in {queue for job_id, queue in failed if job_id in free}:
            announce_work(queue, using)
    return len(edges)


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
