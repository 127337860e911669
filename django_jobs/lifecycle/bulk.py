"""What operators do to many rows at once: one short transaction for a chunk of ids, whatever states they are in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models import F

from django_jobs import signals
from django_jobs.exceptions import InvalidJob
from django_jobs.models import DeadLetter, Job, JobStatus
from django_jobs.models.job import ENDED_BADLY

from .events import announce
from .notify import announce_work, tell_process
from .replay import revive_all, start_over
from .transactions import DbNow, jobs_alias, run_transaction
from .wake import CASCADE_SECONDS, cascade_for, settle_dependents

CHUNK = 500
WAITING = (JobStatus.PENDING, JobStatus.SCHEDULED)


class Tally(NamedTuple):
    """How many rows a move changed, and how many it left because of the state they were in."""

    done: int = 0
    left: int = 0

    def __add__(self, other: object) -> Tally:
        if not isinstance(other, Tally):
            return NotImplemented
        return Tally(self.done + other.done, self.left + other.left)


def replay_many(
    ids: Sequence[str], *, by: Any = None, delays: Sequence[float] | None = None, alias: str | None = None
) -> Tally:
    """Run jobs that ended badly again from the start, as `replay` does for one; leave the others as they are.

    Args:
        by: the user who replays, or None.
        delays: seconds before which each of them does not start; None: all start at once.
    """
    using = alias or jobs_alias()
    waits = dict(zip(ids, delays, strict=True)) if delays is not None else {}
    tally = Tally()
    for chunk in _chunks(sorted(ids)):
        tally += _replay(chunk, by, waits, using)
    revive_all(using)
    return tally


def replay_letters(
    letter_ids: Sequence[int], *, by: Any = None, delays: Sequence[float] | None = None, alias: str | None = None
) -> Tally:
    """Replay the jobs of dead letters that are open, and close those letters; leave the others as they are."""
    using = alias or jobs_alias()
    waits = dict(zip(letter_ids, delays, strict=True)) if delays is not None else {}
    letters = DeadLetter.objects.using(using).open()
    job_of = {
        pk: job for chunk in _chunks(letter_ids) for pk, job in letters.filter(pk__in=chunk).values_list("pk", "job_id")
    }
    jobs = {job: waits.get(pk, 0.0) for pk, job in job_of.items()}
    tally = replay_many(list(jobs), by=by, delays=list(jobs.values()) if waits else None, alias=using)
    return Tally(tally.done, len(letter_ids) - tally.done)


def acknowledge_many(letter_ids: Sequence[int], *, by: Any = None, note: str = "", alias: str | None = None) -> Tally:
    """Close dead letters that are open, each with the same note; leave the others as they are."""
    using = alias or jobs_alias()
    return sum((_acknowledge(chunk, by, note, using) for chunk in _chunks(letter_ids)), Tally())


def cancel_many(ids: Sequence[str], *, alias: str | None = None) -> Tally:
    """Cancel jobs that wait, and ask the workers of those that run; leave those that are finished."""
    using = alias or jobs_alias()
    tally = sum((_cancel(chunk, using) for chunk in _chunks(sorted(ids))), Tally())
    cascade_for(CASCADE_SECONDS, using)
    return tally


def run_many_now(ids: Sequence[str], *, alias: str | None = None) -> Tally:
    """Make scheduled jobs ready at once; pending ones are so already; leave the others."""
    using = alias or jobs_alias()
    return sum((_run_now(chunk, using) for chunk in _chunks(sorted(ids))), Tally())


def _chunks(ids: Sequence[Any]) -> list[Sequence[Any]]:
    return [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]


def _locked(ids: Sequence[str], using: str) -> list[Job]:
    """Return jobs as they are, locked in the one order that all moves use."""
    rows = Job.objects.using(using).filter(pk__in=ids).order_by("pk").select_for_update()
    return list(rows.only("pk", "status", "queue", "worker_id"))


def _replay(ids: Sequence[str], by: Any, waits: dict[str, float], using: str) -> Tally:
    """Replay a chunk; when a unique key stops the whole of it, job by job."""
    try:
        return run_transaction(lambda: _replay_chunk(ids, by, waits, using), using)
    except InvalidJob:
        if len(ids) == 1:
            return Tally(0, 1)
        return sum((_replay([job_id], by, waits, using) for job_id in ids), Tally())


def _replay_chunk(ids: Sequence[str], by: Any, waits: dict[str, float], using: str) -> Tally:
    jobs = [job for job in _locked(ids, using) if job.status in ENDED_BADLY]
    chosen = [job.pk for job in jobs]
    if chosen:
        start_over(chosen, using)
        _delay(chosen, waits, using)
        DeadLetter.objects.using(using).filter(job_id__in=chosen).open().update(replayed_at=DbNow(), replayed_by=by)
    for job_id in chosen:
        announce(signals.job_replayed, job_id, using)
    for queue in {job.queue for job in jobs}:
        announce_work(queue, using)
    return Tally(len(chosen), len(ids) - len(chosen))


def _delay(ids: Sequence[str], waits: dict[str, float], using: str) -> None:
    """Schedule jobs that just became pending, each after its wait; one statement for those that share a wait."""
    by_wait: dict[float, list[str]] = {}
    for job_id in ids:
        by_wait.setdefault(waits.get(job_id, 0.0), []).append(job_id)
    for wait, chosen in sorted(by_wait.items()):
        if wait > 0:
            Job.objects.using(using).filter(pk__in=chosen).update(
                status=JobStatus.SCHEDULED, available_at=DbNow() + timedelta(seconds=wait)
            )


def _acknowledge(letter_ids: Sequence[int], by: Any, note: str, using: str) -> Tally:
    def move() -> Tally:
        letters = DeadLetter.objects.using(using).filter(pk__in=letter_ids).open()
        closed = list(letters.order_by("pk").select_for_update().only("pk", "job_id"))
        DeadLetter.objects.using(using).filter(pk__in=[letter.pk for letter in closed]).update(
            acknowledged_at=DbNow(), acknowledged_by=by, note=note
        )
        for letter in closed:
            announce(signals.dead_letter_acknowledged, letter.job_id, using, letter=letter, note=note)
        return Tally(len(closed), len(letter_ids) - len(closed))

    return run_transaction(move, using)


def _cancel(ids: Sequence[str], using: str) -> Tally:
    def move() -> tuple[Tally, set[str]]:
        jobs = _locked(ids, using)
        waiting = [job.pk for job in jobs if job.status in WAITING]
        running = [job for job in jobs if job.status == JobStatus.RUNNING]
        rows = Job.objects.using(using)
        rows.filter(pk__in=waiting).update(
            status=JobStatus.CANCELLED, fence=F("fence") + 1, finished_at=DbNow(), updated_at=DbNow(), unique_lock=None
        )
        rows.filter(pk__in=[job.pk for job in running], cancel_requested_at=None).update(cancel_requested_at=DbNow())
        settle_dependents(waiting, using)
        for job_id in waiting:
            announce(signals.job_cancelled, job_id, using)
        done = len(waiting) + len(running)
        return Tally(done, len(ids) - done), {job.worker_id or "" for job in running}

    tally, workers = run_transaction(move, using)
    for worker_id in workers:
        tell_process(worker_id, using)
    return tally


def _run_now(ids: Sequence[str], using: str) -> Tally:
    def move() -> Tally:
        jobs = [job for job in _locked(ids, using) if job.status in WAITING]
        chosen = [job.pk for job in jobs if job.status == JobStatus.SCHEDULED]
        Job.objects.using(using).filter(pk__in=chosen).update(
            status=JobStatus.PENDING, fence=F("fence") + 1, available_at=DbNow(), updated_at=DbNow()
        )
        for queue in {job.queue for job in jobs}:
            announce_work(queue, using)
        return Tally(len(jobs), len(ids) - len(jobs))

    return run_transaction(move, using)
