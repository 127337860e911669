"""Transfer: read records as they were at one moment, and write those of an import, all or none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import IntegrityError, connections, transaction

from django_jobs.exceptions import InvalidJob
from django_jobs.models import (
    Attempt,
    DeadLetter,
    DeadLetterReason,
    DependencyState,
    Job,
    JobDependency,
    JobStatus,
    OnFailure,
)
from django_jobs.models.job import LIVE
from django_jobs.models.records import Record

from .graph import locked_statuses
from .notify import announce_work
from .scratch import Scratch, imported_status
from .transactions import jobs_alias, run_transaction
from .wake import cascade_all

PAGE = 500
PAGE_CHARACTERS = 2_000_000


# Gives all records anew at each call.
Source = Callable[[], Iterator[Record]]


@contextmanager
def snapshot(alias: str) -> Iterator[None]:
    """See the database as it is now until the end of the block, however long that takes; nobody is held up by it.

    Inside a transaction of the caller it is that transaction's view.
    """
    connection = connections[alias]
    if connection.in_atomic_block:
        yield
        return
    connection.ensure_connection()
    mode = getattr(connection, "transaction_mode", None)
    if connection.vendor == "sqlite":
        connection.transaction_mode = None  # type: ignore[attr-defined]  # a reader needs no write lock
    try:
        with transaction.atomic(using=alias):
            if connection.vendor != "sqlite":
                with connection.cursor() as cursor:
                    # It holds for the transaction that the next statement begins (MariaDB) or has just begun.
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield
    finally:
        if connection.vendor == "sqlite":
            connection.transaction_mode = mode  # type: ignore[attr-defined]


def records(jobs: Any, alias: str) -> Iterator[Record]:
    """Return the records of a queryset of jobs in the order of their ids, a page at a time."""
    last = None
    while True:
        page = list((jobs if last is None else jobs.filter(pk__gt=last)).order_by("pk")[:PAGE])
        if not page:
            return
        yield from records_of(page, alias)
        last = page[-1].pk


def records_of(jobs: Sequence[Job], alias: str) -> list[Record]:
    """Return the records of jobs, in their order, with one query for each kind of row."""
    ids = [job.pk for job in jobs]
    edges, attempts, letters = (
        _by_job(model.objects.using(alias).filter(job_id__in=ids).order_by("pk"))
        for model in (JobDependency, Attempt, DeadLetter)
    )
    return [Record(job, edges[job.pk], attempts[job.pk], letters[job.pk]) for job in jobs]


def _by_job(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.job_id].append(row)
    return found


def existing(ids: Sequence[str], alias: str) -> dict[str, Record]:
    """Return the records of those ids that exist."""
    jobs = list(Job.objects.using(alias).filter(pk__in=ids))
    return {record.job.pk: record for record in records_of(jobs, alias)}


def missing_dependencies(scratch: Scratch, alias: str) -> Iterator[str]:
    """Say which dependencies are neither among the records nor in the database."""
    for page in scratch.outside(PAGE):
        found = set(Job.objects.using(alias).filter(pk__in=[one for _, one in page]).values_list("pk", flat=True))
        yield from (f"{place}: depends_on: there is no job {one!r}" for place, one in page if one not in found)


def taken_keys(scratch: Scratch, alias: str) -> Iterator[str]:
    """Say which unique keys two live jobs would hold."""
    for place, key in scratch.double_locks():
        yield f"{place}: extra.unique_key: another live job of the import holds {key!r}"
    for page in scratch.locks(PAGE):
        keys = [key for _, _, key in page]
        held = dict(Job.objects.using(alias).filter(unique_lock__in=keys).values_list("unique_lock", "pk"))
        for place, job_id, key in page:
            if held.get(key, job_id) != job_id:
                yield f"{place}: extra.unique_key: the live job {held[key]!r} holds {key!r}"


def write(source: Source, dependents: Source, scratch: Scratch, alias: str | None = None) -> int:
    """Write checked records in one transaction, those that the database has already left out; return how many.

    `dependents` gives those of the records again that depend on others.
    Raises InvalidJob when the database changed meanwhile, so that they cannot be written.
    """
    using = alias or jobs_alias()
    queues: set[str] = set()

    def move() -> int:
        written = 0
        for page in _pages(source, scratch):
            _write_jobs(page, scratch, using)
            written += len(page)
            queues.update(record.job.queue for record in page)
        # The edges come last: a job may depend on one that stands further down.
        for page in _pages(dependents, scratch) if scratch.edges else ():
            _write_edges(page, scratch, using)
        return written

    try:
        written = run_transaction(move, using)
    except IntegrityError as error:
        raise InvalidJob(f"the database has changed since the import was checked; start it again ({error})") from None
    if scratch.edges:
        cascade_all(using)
    for queue in sorted(queues):
        announce_work(queue, using)
    return written


def _pages(source: Source, scratch: Scratch) -> Iterator[list[Record]]:
    """Return the records that are to be written, in pages that are neither too long nor too large."""
    page: list[Record] = []
    size = 0
    for record in source():
        page.append(record)
        size += record.size
        if len(page) >= PAGE or size >= PAGE_CHARACTERS:
            yield _unknown(page, scratch)
            page, size = [], 0
    if page:
        yield _unknown(page, scratch)


def _unknown(page: list[Record], scratch: Scratch) -> list[Record]:
    known = scratch.known([record.job.id for record in page])
    return [record for record in page if record.job.id not in known]


def _write_jobs(page: Sequence[Record], scratch: Scratch, using: str) -> None:
    statuses = _statuses(page, scratch, using)
    for record in page:
        _arrive(record.job)
        record.job.pending_dependencies = sum(
            _state(edge, record.job, statuses) == DependencyState.OPEN for edge in record.dependencies
        )
    Job.objects.using(using).bulk_create([record.job for record in page], batch_size=PAGE)
    attempts = [attempt for record in page for attempt in record.attempts]
    letters = [letter for record in page for letter in (record.letters or _letters(record))]
    Attempt.objects.using(using).bulk_create(attempts, batch_size=PAGE)
    DeadLetter.objects.using(using).bulk_create(letters, batch_size=PAGE)


def _arrive(job: Job) -> None:
    """Make a job that ran elsewhere wait here, under a fence that its old worker does not know."""
    if job.status == JobStatus.RUNNING:
        job.status = JobStatus(imported_status(job.status))
        job.fence += 1
        job.started_at = job.cancel_requested_at = None
        job.worker_id = job.progress = None
        job.progress_message = ""


def _letters(record: Record) -> list[DeadLetter]:
    """Put a dead job that came without its `extra` in front of an operator."""
    job = record.job
    if record.is_full or job.status != JobStatus.DEAD:
        return []
    reason = DeadLetterReason.RETRIES_EXHAUSTED
    return [DeadLetter(job_id=job.id, reason=reason, error=job.error or "", died_at=job.finished_at or job.updated_at)]


def _statuses(page: Sequence[Record], scratch: Scratch, using: str) -> dict[str, str]:
    """Return the statuses of the dependencies: those that are not imported are locked until the import commits."""
    ids = sorted({edge.depends_on_id for record in page for edge in record.dependencies})
    statuses: dict[str, str] = {}
    for start in range(0, len(ids), PAGE):
        statuses |= scratch.statuses(ids[start : start + PAGE])
    return statuses | locked_statuses([one for one in ids if one not in statuses], using)


def _write_edges(page: Sequence[Record], scratch: Scratch, using: str) -> None:
    statuses = _statuses(page, scratch, using)
    edges = []
    for record in page:
        for edge in record.dependencies:
            edge.state = _state(edge, record.job, statuses)
            edges.append(edge)
    JobDependency.objects.using(using).bulk_create(edges, batch_size=PAGE)


def _state(edge: JobDependency, job: Job, statuses: dict[str, str]) -> DependencyState:
    """Return how an edge stands here: as the record says, unless that would free the job too early or hold it for ever."""
    completed = statuses.get(edge.depends_on_id) == JobStatus.COMPLETED
    if edge.state == DependencyState.OPEN and completed:
        return DependencyState.SATISFIED
    waits = job.status in LIVE
    early = edge.state == DependencyState.SATISFIED and edge.on_failure == OnFailure.FAIL and not completed
    return DependencyState.OPEN if waits and early else DependencyState(edge.state)
