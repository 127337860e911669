"""What a move on many answers, and what such moves share: chunks, one order of locking, the end of jobs that wait."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from django.db.models import F, QuerySet

from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.models import Job, JobStatus
from django_jobs.models.fields import DbNow

K = TypeVar("K")
CHUNK = 500


class Moved(NamedTuple):
    """The keys of the rows that a move changed, and for each one that it left why: JobNotFound, or InvalidJob."""

    done: list[Any]
    left: dict[Any, JobsError]

    @classmethod
    def of(cls, ids: Iterable[str], jobs: Mapping[str, Job], done: Collection[str], refusal: str) -> Moved:
        """Return what came of a move on the jobs of `ids`, of which `jobs` were found; the rest is as of `why_left`."""
        moved = set(done)
        return cls(list(done), {pk: why_left(pk, jobs.get(pk), refusal) for pk in ids if pk not in moved})

    def __add__(self, other: object) -> Moved:
        if not isinstance(other, Moved):
            return NotImplemented
        return Moved(self.done + other.done, self.left | other.left)

    def raise_if_left(self) -> None:
        """Raise the reason when a row was left: what a move on one row does."""
        for error in self.left.values():
            raise error


def why_left(job_id: str, job: Job | None, refusal: str) -> JobsError:
    """Return why a move left a job: there is none, or its status does not allow it; `refusal` goes on behind that status."""
    return JobNotFound(job_id) if job is None else InvalidJob(f"job {job_id!r} is {job.status}{refusal}")


def key_chunks(keys: Iterable[K]) -> Iterator[Sequence[K]]:
    """Return the keys, sorted and each once, in chunks for one transaction."""
    return in_chunks(sorted(set(keys)), CHUNK)  # type: ignore[type-var]


def in_chunks(values: Sequence[K], size: int) -> Iterator[Sequence[K]]:
    """Yield the values as they are, in chunks."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def lock_jobs(ids: Collection[str]) -> dict[str, Job]:
    """Lock jobs in the one order that all moves use, and return those that exist, as they are now."""
    columns = ("status", "queue", "worker_id", "batch_id", "pending_limits", "job_type", "limit_key", "queue_limit_key")
    found = (
        Job.objects.filter(pk__in=chunk).order_by("pk").select_for_update().only("pk", *columns)
        for chunk in in_chunks(sorted(ids), CHUNK)
    )
    return {job.pk: job for jobs in found for job in jobs}


def end_waiting(jobs: QuerySet[Job], status: JobStatus, **columns: Any) -> None:
    """End jobs that wait, whose rows the caller has locked, without a run."""
    jobs.update(
        status=status,
        fence=F("fence") + 1,
        finished_at=DbNow(),
        updated_at=DbNow(),
        unique_lock=None,
        pending_limits=0,
        **columns,
    )
