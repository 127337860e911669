"""Import: jobs from dicts, or all of an export's JSON Lines: checked as a whole, then written all or none, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from django.db import IntegrityError
from django.db.models import Model

from django_jobs.conf import get_settings
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_work
from django_jobs.db.transactions import transactional
from django_jobs.encryption import as_stored, compared
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.batches import settle_restored
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.dependencies import locked_statuses
from django_jobs.models import (
    Attempt,
    DeadLetter,
    DependencyState,
    Job,
    JobDependency,
    JobLog,
    JobStatus,
    JobStep,
    OnFailure,
)
from django_jobs.models.job import LIVE
from django_jobs.numbers import is_integer
from django_jobs.payloads import canonical, read_json
from django_jobs.shell import SHELL
from django_jobs.text import shown

from .batches import BatchImport
from .exporting import FORMAT, PAGE, VERSION, Progress, records_of, silent
from .import_index import ImportIndex
from .record import Record
from .rows import (
    DEPENDS_ON,
    FIELDS,
    ID,
    JOB_TYPE,
    ON_FAILURE,
    OPEN_EDGES,
    QUEUE,
    STATE,
    STATUS,
    RowReader,
    Rows,
    Spool,
    Values,
)  # fmt: skip
from .site_lines import COUNTS, SiteImport

LONGEST_LINE = 64 * 1024 * 1024
MOST_PROBLEMS = 20
PAGE_CHARACTERS = 2_000_000
# A job of the import: its place, which its problems are named by; its values; how many characters they were read from.
Item = tuple[str, Any, int]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: jobs written, jobs that were there already, and job types without a handler in this process.

    Of queues and schedules likewise: how many it changed, and how many were there already.
    """

    written: int
    known: int
    unknown_types: tuple[str, ...]
    queues: int = 0
    queues_known: int = 0
    schedules: int = 0
    schedules_known: int = 0


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

    read = (
        (f"item {index}", {"queue": queue, **item} if isinstance(item, Mapping) else item, 1000)
        for index, item in enumerate(items)
    )
    return _import(read, len(items), include_running=include_running, progress=silent)


def import_file(file: BinaryIO, name: str, *, include_running: bool = False, progress: Progress = silent) -> Imported:
    """Write all of an export, or nothing, in constant memory.

    Jobs and schedules that are there already with the same content are left alone, and a queue that is paused stays so.
    Raises InvalidJob that names `file:line:` of each problem.
    """
    total, counts = _read_header(file, name)
    site = SiteImport()
    lines = _lines(file, name, 1)
    for key, kind in COUNTS.items():
        for missing in range(counts[key], 0, -1):
            place, value, _ = next(lines, (None, None, 0))
            if place is None:
                found = counts[key] - missing
                raise InvalidJob(
                    f"{name}: the first line announces {counts[key]} {key}, but {found} follow; is it truncated?"
                )
            with as_stored():
                site.add(place, kind, value)

    def read() -> Iterator[Item]:
        number = 0
        for item in lines:
            number += 1
            yield item
        if number != total:
            raise InvalidJob(f"{name}: the first line announces {total} jobs, but {number} follow; is it truncated?")

    return _import(read(), total, include_running=include_running, progress=progress, site=site)


def _lines(file: BinaryIO, name: str, number: int) -> Iterator[Item]:
    """Yield the lines from where the file stands, behind so many."""
    while line := file.readline(LONGEST_LINE):
        number += 1
        place = f"{name}:{number}"
        if not line.endswith(b"\n"):
            longer = len(line) >= LONGEST_LINE
            raise InvalidJob(f"{place}: the line is {'too long' if longer else 'cut off; the file is truncated'}")
        yield place, read_json(line, place), len(line)


def _read_header(file: BinaryIO, name: str) -> tuple[int, dict[str, int]]:
    """Return how many jobs the first line announces, and how many lines of each other kind."""
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
    counts = {key: header.get(key, 0) for key in COUNTS}
    if unknown := [key for key in header if key not in {"format", "version", "jobs", *COUNTS}]:
        raise InvalidJob(f"{name}:1: {shown(unknown[0])} is nothing that this release can import; a newer one wrote it")
    for key, announced in counts.items():
        if not is_integer(announced, 0, 2**31 - 1):
            raise InvalidJob(f"{name}:1: {key}={shown(announced)} is no number of lines")
    return jobs, counts


def _import(
    items: Iterator[Item],
    total: int,
    *,
    include_running: bool,
    progress: Progress,
    site: SiteImport | None = None,
) -> Imported:
    index, spool = ImportIndex(), Spool()
    site = site or SiteImport()
    try:
        check = _Check(index, spool, include_running, site)
        with as_stored():
            check.all(items, total, progress)
        written = _write(spool, index, site, progress)
    finally:
        index.close()
        spool.close()
    return Imported(
        written,
        index.count - written,
        tuple(sorted(check.unknown_types | site.unknown_types)),
        site.queues_changed,
        site.queues - site.queues_changed,
        site.schedules - site.schedules_known,
        site.schedules_known,
    )


class _Check:
    """The reading of an import: every problem is found before anything is written."""

    def __init__(self, index: ImportIndex, spool: Spool, include_running: bool, site: SiteImport) -> None:
        self._index = index
        self._spool = spool
        self._reader = RowReader()
        self._others = Job.objects.exists()
        self._include_running = include_running
        site.compare()
        self._problems: list[str] = site.problems
        self._page: list[tuple[str, Any, Rows]] = []
        self._page_size = 0
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
            rows = self._reader.read(values)
        except InvalidJob as error:
            self._note(place, *error.problems)
            return
        job = rows.job
        if "job_id" not in values:
            self._note(place, "job_id is missing")
        if values.get("status") == JobStatus.RUNNING and not self._include_running:
            self._note(place, f"status: job {job[ID]!r} is running; stop its workers, or import it as pending with"
                       " include_running (--include-running)")  # fmt: skip
        if job[JOB_TYPE] == SHELL and not get_settings().SHELL_JOBS:
            self._note(place, "job_type 'shell': shell jobs are off (DJANGO_JOBS['SHELL_JOBS'])")
        if registry.find(job[JOB_TYPE]) is None and len(self.unknown_types) < MOST_PROBLEMS:
            self.unknown_types.add(job[JOB_TYPE])
        self._page.append((place, values if self._others else None, rows))
        self._page_size += size
        if len(self._page) >= PAGE or self._page_size >= PAGE_CHARACTERS:
            self._compare()

    def _compare(self) -> None:
        """Find the jobs of the page that exist: with equal content they are left alone, with other content refused."""
        page, self._page, self._page_size = self._page, [], 0
        for place, problem in self._index.add([(place, rows) for place, _, rows in page]):
            self._note(place, problem)
        found = _existing([rows.job[ID] for _, _, rows in page]) if page and self._others else {}
        known = []
        for place, values, rows in page:
            there = found.get(rows.job[ID])
            if there is None:
                continue
            with compared():
                record = Record.from_dict(values)
            if _content(record, full=record.is_full) == _content(there, full=record.is_full):
                known.append(rows.job[ID])
            else:
                self._note(place, f"job_id {rows.job[ID]!r} exists already, with other content")
        self._index.know(known)
        self._spool.add([rows for _, _, rows in page if rows.job[ID] not in found])

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
    with compared():
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


def _write(spool: Spool, index: ImportIndex, site: SiteImport, progress: Progress) -> int:
    """Write checked rows, queues and schedules in one transaction; return how many jobs.

    Raises InvalidJob when the database changed meanwhile, so that they cannot be written.
    """
    try:
        written = _write_together(spool, index, site, progress)
    except IntegrityError as error:
        raise InvalidJob(f"the database has changed since the import was checked; start it again ({error})") from None
    if index.edges:
        cascade_all()
    return written


@transactional
def _write_together(spool: Spool, index: ImportIndex, site: SiteImport, progress: Progress) -> int:
    written = 0
    queues: set[str] = set()
    batches = BatchImport()
    for page in spool.pages():
        progress(index.count + written, 2 * index.count)
        _write_page(page, index)
        batches.write([(rows.job[ID], rows.job[STATUS], rows.place, rows.batches) for rows in page if rows.batches])
        written += len(page)
        queues.update(rows.job[QUEUE] for rows in page)
    if index.count:
        progress(2 * index.count, 2 * index.count)
    # The edges come last: a job may depend on one that stands further down.
    for page in spool.pages() if index.edges else ():
        waiting = [rows for rows in page if rows.edges]
        _close_edges(waiting, index)
        _insert(JobDependency, [edge for rows in waiting for edge in rows.edges])
    settle_restored(batches.ids)
    site.write()  # behind the jobs, which the schedules' last ticks name
    for queue in sorted(queues):
        notify_work(queue, is_old=True)
    return written


def _write_page(page: Sequence[Rows], index: ImportIndex) -> None:
    waiting = [rows for rows in page if rows.edges]
    _close_edges(waiting, index)
    for rows in waiting:
        rows.job[OPEN_EDGES] = sum(edge[STATE] == DependencyState.OPEN for edge in rows.edges)
    _insert(Job, [rows.job for rows in page])
    _insert(Attempt, [attempt for rows in page for attempt in rows.attempts])
    _insert(DeadLetter, [dead_letter for rows in page for dead_letter in rows.dead_letters])
    _insert(JobStep, [step for rows in page for step in rows.steps])
    _insert(JobLog, [log for rows in page for log in rows.logs])


def _insert(model: type[Model], rows: Sequence[Values]) -> None:
    if rows:
        dialect().insert_rows(model._meta.db_table, [field.column for field in FIELDS[model]], rows)


def _close_edges(page: Sequence[Rows], index: ImportIndex) -> None:
    """Set the states that the edges of a page have here."""
    statuses = _statuses(page, index)
    for rows in page:
        for edge in rows.edges:
            edge[STATE] = str(_state(edge, rows.job[STATUS], statuses.get(edge[DEPENDS_ON])))


def _statuses(page: Sequence[Rows], index: ImportIndex) -> dict[str, str]:
    """Return the statuses of the dependencies: those that are not imported are locked until the import commits."""
    ids = sorted({edge[DEPENDS_ON] for rows in page for edge in rows.edges})
    statuses: dict[str, str] = {}
    for start in range(0, len(ids), PAGE):
        statuses |= index.statuses(ids[start : start + PAGE])
    return statuses | locked_statuses([job_id for job_id in ids if job_id not in statuses])


def _state(edge: Values, status: str, of_dependency: str | None) -> str:
    """Return the state of an edge here: the record's, unless that would free the job too early or hold it for ever."""
    completed = of_dependency == JobStatus.COMPLETED
    if edge[STATE] == DependencyState.OPEN and completed:
        return DependencyState.SATISFIED
    early = edge[STATE] == DependencyState.SATISFIED and edge[ON_FAILURE] == OnFailure.FAIL and not completed
    return DependencyState.OPEN if status in LIVE and early else edge[STATE]
