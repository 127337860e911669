"""Import: jobs from dicts or JSON Lines, checked as a whole, then written all or none, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from django.db import IntegrityError

from django_jobs.conf import get_settings
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.dependencies import locked_statuses
from django_jobs.lifecycle.dependents import cascade_all
from django_jobs.lifecycle.release import imported_status, wait_again
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
from django_jobs.payloads import canonical, read_json
from django_jobs.shell import SHELL
from django_jobs.text import shown

from .exporting import FORMAT, PAGE, VERSION, Progress, records_of, silent
from .import_index import ImportIndex
from .record import Record

LONGEST_LINE = 64 * 1024 * 1024
MOST_PROBLEMS = 20
PAGE_CHARACTERS = 2_000_000
# A job of the import: its place, which its problems are named by; its values; how many characters they were read from.
Item = tuple[str, Any, int]
# Reads the records from the start at each call.
Source = Callable[[], Iterator[Record]]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: jobs written, jobs that were there already, and job types without a handler in this process."""

    written: int
    known: int
    unknown_types: tuple[str, ...]


def import_dicts(
    data: Iterable[Mapping[str, Any]], *, include_running: bool = False, queue: str = "default"
) -> Imported:
    """Write jobs from `export_dicts` or `Job.to_dict`: all, or nothing with an InvalidJob that names each bad item.

    Args:
        queue: the queue of the jobs that name none.
    """
    if isinstance(data, Mapping | str | bytes) or not isinstance(data, Iterable):
        raise InvalidJob(f"give a list of jobs, not {shown(data)}")
    items = list(data)

    def read() -> Iterator[Item]:
        for index, item in enumerate(items):
            yield f"item {index}", {"queue": queue, **item} if isinstance(item, Mapping) else item, 1000

    return _import(read, len(items), include_running=include_running, progress=silent)


def import_file(file: BinaryIO, name: str, *, include_running: bool = False, progress: Progress = silent) -> Imported:
    """Write the jobs of an export, all or nothing, in constant memory; `file` is read more than once.

    Jobs that are there already with the same content are left alone. Raises InvalidJob that names `file:line:` of each problem.
    """
    total = _read_header(file, name)

    def read() -> Iterator[Item]:
        file.seek(0)
        _read_header(file, name)
        number = 1
        while line := file.readline(LONGEST_LINE):
            number += 1
            place = f"{name}:{number}"
            if not line.endswith(b"\n"):
                longer = len(line) >= LONGEST_LINE
                raise InvalidJob(f"{place}: the line is {'too long' if longer else 'cut off; the file is truncated'}")
            yield place, read_json(line, place), len(line)
        if number - 1 != total:
            raise InvalidJob(
                f"{name}: the first line announces {total} jobs, but {number - 1} follow; is it truncated?"
            )

    return _import(read, total, include_running=include_running, progress=progress)


def _read_header(file: BinaryIO, name: str) -> int:
    line = file.readline(LONGEST_LINE)
    if not line.strip():
        raise InvalidJob(f"{name}: the file is empty")
    header = read_json(line, f"{name}:1")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InvalidJob(f'{name}:1: this is no export of jobs; the first line of one says "format": "{FORMAT}"')
    version, jobs = header.get("version"), header.get("jobs")
    if isinstance(version, int) and version > VERSION:
        raise InvalidJob(f"{name}:1: format version {version} is newer than this release can read ({VERSION})")
    if version != VERSION or not isinstance(jobs, int):
        raise InvalidJob(f"{name}:1: format version {shown(version)} with {shown(jobs)} jobs cannot be read")
    return jobs


def _import(read: Callable[[], Iterator[Item]], total: int, *, include_running: bool, progress: Progress) -> Imported:
    index = ImportIndex()
    try:
        check = _Check(index, include_running)
        check.all(read(), total, progress)
        written = _write(
            lambda: map(_record, _with_progress(read(), total, progress)),
            lambda: map(_record, filter(_depends_on, read())),
            index,
        )
    finally:
        index.close()
    return Imported(written, index.count - written, tuple(sorted(check.unknown_types)))


def _record(item: Item) -> Record:
    _, values, size = item
    return Record.from_dict(values)._replace(size=size)


def _depends_on(item: Item) -> bool:
    _, values, _ = item
    return bool(values.get("depends_on"))


def _with_progress(items: Iterator[Item], total: int, progress: Progress) -> Iterator[Item]:
    """Pass items through and report the progress: half of the way is the check, half the writing."""
    for done, item in enumerate(items, 1):
        if done % 1000 == 0 or done == total:
            progress(total + done, 2 * total)
        yield item


class _Check:
    """The first reading of an import: every problem is found before anything is written."""

    def __init__(self, index: ImportIndex, include_running: bool) -> None:
        self._index = index
        self._include_running = include_running
        self._problems: list[str] = []
        self._page: list[tuple[str, Record]] = []
        self.unknown_types: set[str] = set()

    def all(self, items: Iterator[Item], total: int, progress: Progress) -> None:
        """Check every item, then all together; raise InvalidJob with the first problems."""
        try:
            for done, item in enumerate(items, 1):
                self._add(item)
                if done % 1000 == 0:
                    progress(done, 2 * total)
        except InvalidJob as error:  # the text itself cannot be read on
            self._problems += error.problems
            self._refuse()
        self._compare()
        self._refuse()
        self._index.add_edge_indexes()
        self._problems += _missing_dependencies(self._index)
        self._problems += _taken_keys(self._index)
        circle = None if self._problems else self._index.circle()
        if circle:
            self._problems.append("the jobs depend on each other: " + " → ".join(circle))
        self._refuse()

    def _add(self, item: Item) -> None:
        place, values, size = item
        try:
            record = Record.from_dict(values)._replace(size=size)
        except InvalidJob as error:
            self._note(place, *error.problems)
            return
        job = record.job
        if "job_id" not in values:
            self._note(place, "job_id is missing")
        if job.status == "running" and not self._include_running:
            self._note(place, f"status: job {job.id!r} is running; stop its workers, or import it as pending with"
                       " include_running (--include-running)")  # fmt: skip
        if job.job_type == SHELL and not get_settings().SHELL_JOBS:
            self._note(place, "job_type 'shell': shell jobs are off (DJANGO_JOBS['SHELL_JOBS'])")
        if registry.find(job.job_type) is None and len(self.unknown_types) < MOST_PROBLEMS:
            self.unknown_types.add(job.job_type)
        problem = self._index.add(place, record, imported_status(job.status))
        if problem:
            self._note(place, problem)
        self._page.append((place, record))
        if len(self._page) >= PAGE or size > PAGE_CHARACTERS // 10:
            self._compare()

    def _compare(self) -> None:
        """Find the jobs of the page that exist: with equal content they are left alone, with other content refused."""
        page, self._page = self._page, []
        found = _existing([record.job.id for _, record in page]) if page else {}
        known = []
        for place, record in page:
            there = found.get(record.job.id)
            if there is None:
                continue
            if _content(record, full=record.is_full) == _content(there, full=record.is_full):
                known.append(record.job.id)
            else:
                self._note(place, f"job_id {record.job.id!r} exists already, with other content")
        self._index.know(known)

    def _note(self, place: str, *problems: str) -> None:
        self._problems += (f"{place}: {problem}" for problem in problems)
        if len(self._problems) > MOST_PROBLEMS:
            self._refuse()

    def _refuse(self) -> None:
        if self._problems:
            shown_problems = self._problems[:MOST_PROBLEMS]
            more = ["and more"] if len(self._problems) > MOST_PROBLEMS else []
            raise InvalidJob(*shown_problems, *more)


def _content(record: Record, *, full: bool) -> str:
    content = record.to_dict()
    if not full:
        del content["extra"]
    return canonical(content)


def _existing(ids: Sequence[str]) -> dict[str, Record]:
    """Return the records of those ids that exist."""
    jobs = list(Job.objects.filter(pk__in=ids))
    return {record.job.pk: record for record in records_of(jobs)}


def _missing_dependencies(index: ImportIndex) -> Iterator[str]:
    """Name the dependencies that are neither among the records nor in the database."""
    for page in index.outside(PAGE):
        found = set(Job.objects.filter(pk__in=[job_id for _, job_id in page]).values_list("pk", flat=True))
        yield from (f"{place}: depends_on: there is no job {job_id!r}" for place, job_id in page if job_id not in found)


def _taken_keys(index: ImportIndex) -> Iterator[str]:
    """Name the unique keys that two live jobs would hold."""
    for place, key in index.double_locks():
        yield f"{place}: extra.unique_key: another live job of the import holds {key!r}"
    for page in index.locks(PAGE):
        keys = [key for _, _, key in page]
        held = dict(Job.objects.filter(unique_lock__in=keys).values_list("unique_lock", "pk"))
        for place, job_id, key in page:
            if held.get(key, job_id) != job_id:
                yield f"{place}: extra.unique_key: the live job {held[key]!r} holds {key!r}"


# --- the writing


def _write(source: Source, dependents: Source, index: ImportIndex) -> int:
    """Write checked records in one transaction, those that the database has already left out; return how many.

    `dependents` gives those of the records again that depend on others.
    Raises InvalidJob when the database changed meanwhile, so that they cannot be written.
    """
    try:
        written = _write_together(source, dependents, index)
    except IntegrityError as error:
        raise InvalidJob(f"the database has changed since the import was checked; start it again ({error})") from None
    if index.edges:
        cascade_all()
    return written


@transactional
def _write_together(source: Source, dependents: Source, index: ImportIndex) -> int:
    written = 0
    queues: set[str] = set()
    for page in _pages(source, index):
        _write_jobs(page, index)
        written += len(page)
        queues.update(record.job.queue for record in page)
    # The edges come last: a job may depend on one that stands further down.
    for page in _pages(dependents, index) if index.edges else ():
        _write_edges(page, index)
    for queue in sorted(queues):
        notify_work(queue)
    return written


def _pages(source: Source, index: ImportIndex) -> Iterator[list[Record]]:
    """Yield the records to be written, in pages of at most PAGE records and about PAGE_CHARACTERS."""
    page: list[Record] = []
    size = 0
    for record in source():
        page.append(record)
        size += record.size
        if len(page) >= PAGE or size >= PAGE_CHARACTERS:
            yield _unknown(page, index)
            page, size = [], 0
    if page:
        yield _unknown(page, index)


def _unknown(page: list[Record], index: ImportIndex) -> list[Record]:
    known = index.known([record.job.id for record in page])
    return [record for record in page if record.job.id not in known]


def _write_jobs(page: Sequence[Record], index: ImportIndex) -> None:
    statuses = _statuses(page, index)
    for record in page:
        wait_again(record.job)
        record.job.pending_dependencies = sum(
            _state(edge, record.job, statuses) == DependencyState.OPEN for edge in record.dependencies
        )
    Job.objects.bulk_create([record.job for record in page], batch_size=PAGE)
    attempts = [attempt for record in page for attempt in record.attempts]
    dead_letters = [row for record in page for row in (record.dead_letters or _dead_letters(record))]
    Attempt.objects.bulk_create(attempts, batch_size=PAGE)
    DeadLetter.objects.bulk_create(dead_letters, batch_size=PAGE)


def _dead_letters(record: Record) -> list[DeadLetter]:
    """Return the dead letter of a dead job that came without its `extra`, so that an operator sees it."""
    job = record.job
    if record.is_full or job.status != JobStatus.DEAD:
        return []
    reason = DeadLetterReason.RETRIES_EXHAUSTED
    return [DeadLetter(job_id=job.id, reason=reason, error=job.error or "", died_at=job.finished_at or job.updated_at)]


def _statuses(page: Sequence[Record], index: ImportIndex) -> dict[str, str]:
    """Return the statuses of the dependencies: those that are not imported are locked until the import commits."""
    ids = sorted({edge.depends_on_id for record in page for edge in record.dependencies})
    statuses: dict[str, str] = {}
    for start in range(0, len(ids), PAGE):
        statuses |= index.statuses(ids[start : start + PAGE])
    return statuses | locked_statuses([job_id for job_id in ids if job_id not in statuses])


def _write_edges(page: Sequence[Record], index: ImportIndex) -> None:
    statuses = _statuses(page, index)
    edges = []
    for record in page:
        for edge in record.dependencies:
            edge.state = _state(edge, record.job, statuses)
            edges.append(edge)
    JobDependency.objects.bulk_create(edges, batch_size=PAGE)


def _state(edge: JobDependency, job: Job, statuses: dict[str, str]) -> DependencyState:
    """Return the state of an edge here: the record's, unless that would free the job too early or hold it for ever."""
    completed = statuses.get(edge.depends_on_id) == JobStatus.COMPLETED
    if edge.state == DependencyState.OPEN and completed:
        return DependencyState.SATISFIED
    waits = job.status in LIVE
    early = edge.state == DependencyState.SATISFIED and edge.on_failure == OnFailure.FAIL and not completed
    return DependencyState.OPEN if waits and early else DependencyState(edge.state)
