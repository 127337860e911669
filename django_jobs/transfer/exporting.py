"""Export: jobs as dicts or as JSON Lines, as they are at one moment, streamed in constant memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from django_jobs.db.connections import use_database
from django_jobs.db.transactions import snapshot
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency
from django_jobs.models.job import JobQuerySet
from django_jobs.payloads import canonical

from .record import Record

FORMAT = "django_jobs"
VERSION = 1
PAGE = 500

# Called now and then with how many jobs are done, and how many there are in all (0: not known).
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Report no progress."""


def export_dicts(jobs: JobQuerySet) -> list[dict[str, Any]]:
    """Return the records of the jobs as they are at one moment, by id."""
    with use_database(jobs.db), snapshot():
        return [record.to_dict() for record in records(jobs)]


def export_file(jobs: JobQuerySet, file: BinaryIO, progress: Progress = silent) -> int:
    """Write the jobs as they are at one moment: a line with their number, then one line for each job; return the number.

    Equal jobs give equal bytes, whatever database they are in.
    """
    done = 0
    with use_database(jobs.db), snapshot():
        total = jobs.count()
        _write_line(file, {"format": FORMAT, "version": VERSION, "jobs": total})
        for done, record in enumerate(records(jobs), 1):
            _write_line(file, record.to_dict())
            if done % 1000 == 0:
                progress(done, total)
    progress(done, total)
    return done


def _write_line(file: BinaryIO, value: Mapping[str, Any]) -> None:
    file.write(canonical(value).encode() + b"\n")


def all_jobs(queue: str | None = None) -> JobQuerySet:
    """Return the jobs of one queue, or all."""
    jobs = Job.objects.all()
    return jobs if queue is None else jobs.filter(queue=queue)


def records(jobs: Any) -> Iterator[Record]:
    """Yield the records of a queryset of jobs in the order of their ids; one page is in memory at a time."""
    last = None
    while True:
        page = list((jobs if last is None else jobs.filter(pk__gt=last)).order_by("pk")[:PAGE])
        if not page:
            return
        yield from records_of(page)
        last = page[-1].pk


def records_of(jobs: Sequence[Job]) -> list[Record]:
    """Return the records of jobs, in their order, with one query for each kind of row."""
    ids = [job.pk for job in jobs]
    edges, attempts, dead_letters = (
        _by_job(model.objects.filter(job_id__in=ids).order_by("pk")) for model in (JobDependency, Attempt, DeadLetter)
    )
    return [Record(job, edges[job.pk], attempts[job.pk], dead_letters[job.pk]) for job in jobs]


def _by_job(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.job_id].append(row)
    return found
