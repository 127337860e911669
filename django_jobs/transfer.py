"""Export and import: jobs as dicts or as JSON Lines, streamed in constant memory; an import writes all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.jsontext import canonical, read_json
from django_jobs.lifecycle import transfer
from django_jobs.lifecycle.scratch import Scratch, imported_status
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Job
from django_jobs.models.job import JobQuerySet
from django_jobs.models.records import Record
from django_jobs.shell import SHELL
from django_jobs.text import shown

FORMAT = "django_jobs"
VERSION = 1
LONGEST_LINE = 64 * 1024 * 1024
MOST_PROBLEMS = 20

# Called now and then with how many jobs are done, and how many there are in all (0: not known).
Progress = Callable[[int, int], None]
# A job's place, to be named when something is wrong with it, its values, and how many characters they were read from.
Item = tuple[str, Any, int]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: jobs written, jobs that were there already, and job types without a handler in this process."""

    written: int
    known: int
    unknown_types: tuple[str, ...]


# --- export


def export_dicts(jobs: JobQuerySet) -> list[dict[str, Any]]:
    """Return the records of the jobs as they are at one moment, by id."""
    alias = jobs.db
    with transfer.snapshot(alias):
        return [record.to_dict() for record in transfer.records(jobs, alias)]


def export_file(jobs: JobQuerySet, file: BinaryIO, progress: Progress = _silent) -> int:
    """Write the jobs as they are at one moment: a first line that says how many, then one line a job; return how many.

    Equal jobs give equal bytes, whatever database they are in.
    """
    alias = jobs.db
    done = 0
    with transfer.snapshot(alias):
        total = jobs.count()
        _write_line(file, {"format": FORMAT, "version": VERSION, "jobs": total})
        for done, record in enumerate(transfer.records(jobs, alias), 1):
            _write_line(file, record.to_dict())
            if done % 1000 == 0:
                progress(done, total)
    progress(done, total)
    return done


def _write_line(file: BinaryIO, value: Mapping[str, Any]) -> None:
    file.write(canonical(value).encode() + b"\n")


# --- import


def import_dicts(
    data: Iterable[Mapping[str, Any]], *, include_running: bool = False, queue: str = "default"
) -> Imported:
    """Write what `export_dicts` or `Job.to_dict` gave; all, or nothing with an InvalidJob that names each bad item.

    `queue` is for those that name none.
    """
    if isinstance(data, Mapping | str | bytes) or not isinstance(data, Iterable):
        raise InvalidJob(f"give a list of jobs, not {shown(data)}")
    items = list(data)

    def read() -> Iterator[Item]:
        for index, item in enumerate(items):
            yield f"item {index}", {"queue": queue, **item} if isinstance(item, Mapping) else item, 1000

    return _import(read, len(items), include_running=include_running, progress=_silent)


def import_file(file: BinaryIO, name: str, *, include_running: bool = False, progress: Progress = _silent) -> Imported:
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
    alias = jobs_alias()
    scratch = Scratch()
    try:
        check = _Check(scratch, alias, include_running)
        check.all(read(), total, progress)
        written = transfer.write(
            lambda: map(_record, _told(read(), total, progress)),
            lambda: map(_record, filter(_depends_on, read())),
            scratch,
            alias,
        )
    finally:
        scratch.close()
    return Imported(written, scratch.count - written, tuple(sorted(check.unknown_types)))


def _record(item: Item) -> Record:
    _, values, size = item
    return Record.from_dict(values)._replace(size=size)


def _depends_on(item: Item) -> bool:
    _, values, _ = item
    return bool(values.get("depends_on"))


def _told(items: Iterator[Item], total: int, progress: Progress) -> Iterator[Item]:
    """Pass items through and tell the progress: half of the way is the check, half the writing."""
    for done, item in enumerate(items, 1):
        if done % 1000 == 0 or done == total:
            progress(total + done, 2 * total)
        yield item


class _Check:
    """The first reading of an import: every problem is found before anything is written."""

    def __init__(self, scratch: Scratch, alias: str, include_running: bool) -> None:
        self._scratch = scratch
        self._alias = alias
        self._include_running = include_running
        self._problems: list[str] = []
        self._page: list[tuple[str, Record]] = []
        self.unknown_types: set[str] = set()

    def all(self, items: Iterator[Item], total: int, progress: Progress) -> None:
        """Check every item, then all together; raise InvalidJob with the first problems."""
        try:
            for done, item in enumerate(items, 1):
                self._one(item)
                if done % 1000 == 0:
                    progress(done, 2 * total)
        except InvalidJob as error:  # the text itself cannot be read on
            self._problems += error.problems
            self._refuse()
        self._compare()
        self._refuse()
        self._scratch.close_reading()
        self._problems += transfer.missing_dependencies(self._scratch, self._alias)
        self._problems += transfer.taken_keys(self._scratch, self._alias)
        circle = None if self._problems else self._scratch.circle()
        if circle:
            self._problems.append("the jobs depend on each other: " + " → ".join(circle))
        self._refuse()

    def _one(self, item: Item) -> None:
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
        problem = self._scratch.add(place, record, imported_status(job.status))
        if problem:
            self._note(place, problem)
        self._page.append((place, record))
        if len(self._page) >= transfer.PAGE or size > transfer.PAGE_CHARACTERS // 10:
            self._compare()

    def _compare(self) -> None:
        """Find the jobs of the page that exist: with equal content they are left alone, with other content refused."""
        page, self._page = self._page, []
        found = transfer.existing([record.job.id for _, record in page], self._alias) if page else {}
        known = []
        for place, record in page:
            there = found.get(record.job.id)
            if there is None:
                continue
            if _content(record, full=record.is_full) == _content(there, full=record.is_full):
                known.append(record.job.id)
            else:
                self._note(place, f"job_id {record.job.id!r} exists already, with other content")
        self._scratch.know(known)

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


def all_jobs(queue: str | None = None) -> JobQuerySet:
    """Return the jobs of one queue, or all."""
    jobs = Job.objects.using(jobs_alias())
    return jobs if queue is None else jobs.filter(queue=queue)
