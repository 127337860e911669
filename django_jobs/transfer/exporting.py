"""Export: jobs, queues and schedules as JSON Lines, or jobs as dicts: as they are at one moment, streamed in constant memory.

What is encrypted is written as it is stored: a copy that lies about is no less safe than the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from django.db.models import DateTimeField

from django_jobs.db.connections import use_database
from django_jobs.db.transactions import snapshot
from django_jobs.encryption import as_stored
from django_jobs.exceptions import InvalidJob
from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, JobLog, JobStep
from django_jobs.models.fields import UtcText
from django_jobs.models.job import JobQuerySet
from django_jobs.payloads import canonical

from .batches import written as batches_of
from .record import COLUMNS, Record, to_dict
from .site_lines import SiteLines, all_lines, count
from .times import unix_of_text

FORMAT = "django_jobs"
VERSION = 1
PAGE = 500

_TIMES = {field.name for field in Job._meta.concrete_fields if isinstance(field, DateTimeField)}
_PLACES_OF_TIMES = [place for place, name in enumerate(COLUMNS) if name in _TIMES]

# Called now and then with how many jobs are done, and how many there are in all (0: not known).
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Report no progress."""


def export_dicts(jobs: JobQuerySet) -> list[dict[str, Any]]:
    """Return the records of the jobs as they are at one moment, by id."""
    with use_database(jobs.db), snapshot(), as_stored():
        return list(_dicts(jobs))


class Exported(NamedTuple):
    """How much an export wrote."""

    jobs: int
    queues: int = 0
    schedules: int = 0


def export_file(
    jobs: JobQuerySet, file: BinaryIO, progress: Progress = silent, site_lines: SiteLines = all_lines
) -> Exported:
    """Write jobs, queues and schedules as they are at one moment: a line with their numbers, then one line for each.

    Equal jobs give equal bytes, whatever database they are in.
    """
    done = 0
    with use_database(jobs.db), snapshot(), as_stored():
        total = jobs.count()
        lines = site_lines()
        numbers = count(lines)
        _write_line(file, {"format": FORMAT, "version": VERSION, "jobs": total, **numbers})
        for line in lines:
            _write_line(file, line)
        for done, job in enumerate(_dicts(jobs), 1):
            _write_line(file, job)
            if done % 1000 == 0:
                progress(done, total)
    progress(done, total)
    return Exported(done, **numbers)


def _write_line(file: BinaryIO, value: Mapping[str, Any]) -> None:
    try:
        text = canonical(value)
    except ValueError:  # PostgreSQL and SQLite take 1e400 from a hand
        raise InvalidJob(f"job {value.get('job_id')!r}: a number in its row is too large for JSON") from None
    file.write(text.encode() + b"\n")


def all_jobs(queue: str | None = None) -> JobQuerySet:
    """Return the jobs of one queue, or all."""
    jobs = Job.objects.all()
    return jobs if queue is None else jobs.filter(queue=queue)


def _dicts(jobs: Any) -> Iterator[dict[str, Any]]:
    """Yield what is written of a queryset of jobs in the order of their ids; one page is in memory at a time."""
    last = None
    columns = [UtcText(name) if name in _TIMES else name for name in COLUMNS]
    while True:
        page = list(
            (jobs if last is None else jobs.filter(pk__gt=last)).order_by("pk").values_list(*columns, "batch_id")[:PAGE]
        )
        if not page:
            return
        first, last = page[0][0], page[-1][0]
        if jobs.query.where:  # between these lie others, perhaps millions
            parts = list(_parts(job_id__in=[row[0] for row in page]))
        else:  # a list of ids takes longer to read than most pages' parts
            parts = list(_parts(job_id__gte=first, job_id__lte=last))
        batches = batches_of({row[0]: row[-1] for row in page})
        for row in page:
            job = list(row[:-1])
            for place in _PLACES_OF_TIMES:
                if job[place] is not None:
                    job[place] = unix_of_text(job[place])
            edges, attempts, dead_letters, steps, logs = (part.get(job[0], ()) for part in parts)
            yield to_dict(job, edges, attempts, dead_letters, steps, batches.get(job[0]), logs)


def records_of(jobs: Sequence[Job]) -> list[Record]:
    """Return the records of jobs, in their order, with one query for each kind of row."""
    edges, attempts, dead_letters, steps, logs = _parts(job_id__in=[job.pk for job in jobs])
    batches = batches_of({job.pk: job.batch_id for job in jobs})
    return [
        Record(
            job,
            edges.get(job.pk, []),
            attempts.get(job.pk, []),
            dead_letters.get(job.pk, []),
            steps.get(job.pk, []),
            batch=batches.get(job.pk),
            logs=logs.get(job.pk, []),
        )
        for job in jobs
    ]


def _parts(**jobs: Any) -> Iterator[dict[str, list[Any]]]:
    """Yield the edges, the attempts, the dead letters, the steps and the logs of jobs, each by the job's id."""
    for model in (JobDependency, Attempt, DeadLetter, JobStep, JobLog):
        found: dict[str, list[Any]] = defaultdict(list)
        for row in model.objects.filter(**jobs).order_by("pk"):
            found[row.job_id].append(row)
        yield found
