"""What an export holds besides jobs: a line for each queue that somebody paused or resumed, and one for each schedule.

Such a line is an object with one key that says what it is, {"queue": {…}} or {"schedule": {…}}. These lines stand between the
first line, which says how many there are of each kind, and the jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Q, QuerySet, Subquery

from django_jobs.conf import MAX_SITE, get_settings
from django_jobs.encryption import compared
from django_jobs.exceptions import EncryptionError, InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.queues import restore_pauses
from django_jobs.models import Queue, Schedule, ScheduleTick
from django_jobs.models.schedule import CatchUp, Overlap, ScheduleKind
from django_jobs.names import job_type_problem, queue_problem, schedule_name_problem
from django_jobs.payloads import canonical, opened
from django_jobs.rules import RULES, flag, integer, number, one_of
from django_jobs.scheduling.store import ScheduleState, is_untouched, restore_schedules
from django_jobs.shell import SHELL
from django_jobs.submission import unix_moment
from django_jobs.text import shown

from .values import Check, by, json_object, named, nullable, plain, read_row, text

QUEUE, SCHEDULE = "queue", "schedule"
# The key of the first line that counts the lines of a kind.
COUNTS = {"queues": QUEUE, "schedules": SCHEDULE}
PAGE = 500
_seconds = by(number(-1e15, 1e15))
_number = by(integer(0, 2**31 - 1))


def _queue_or_none(path: str, value: Any) -> Any:
    return value if value == "" else named(queue_problem)(path, value)


_QUEUE: dict[str, Check] = {"name": named(queue_problem), "paused_at": nullable(unix_moment)}
# The columns as they are in the row, and not as a declaration may be: a broken schedule that is disabled moves as well.
_SCHEDULE: dict[str, Check] = {
    "name": named(schedule_name_problem),
    "job_type": named(job_type_problem),
    "payload": json_object,
    "kind": by(one_of(*ScheduleKind.values)),
    "run_at": nullable(unix_moment),
    "interval_seconds": nullable(_seconds),
    "cron": text(100),
    "timezone": text(64),
    "queue": _queue_or_none,
    "priority": nullable(by(integer(0, 32_767))),
    "max_retries": nullable(_number),
    "timeout_seconds": nullable(_seconds),
    "metadata": json_object,
    "limit_key": nullable(by(RULES["limit_key"])),
    "fair_key": nullable(by(RULES["fair_key"])),
    "catch_up": by(one_of(*CatchUp.values)),
    "grace_seconds": nullable(_seconds),
    "overlap": by(one_of(*Overlap.values)),
    "jitter_seconds": _seconds,
    "enabled": by(flag),
    "declared": by(flag),
    "site": text(MAX_SITE),
    "next_run_at": nullable(unix_moment),
    "last_run_at": nullable(unix_moment),
    "last_error": text(),
}
_LAST_TICK: dict[str, Check] = {"due_at": unix_moment, "job_id": text(64)}


# --- writing

# Returns the lines of an export that are no jobs.
SiteLines = Callable[[], list[dict[str, Any]]]


def no_lines() -> list[dict[str, Any]]:
    """Return none: jobs alone."""
    return []


def all_lines() -> list[dict[str, Any]]:
    """Return the lines of all queues and schedules."""
    return _lines(Q(), Q())


def lines_of_queue(name: str) -> list[dict[str, Any]]:
    """Return the lines of one queue and of the schedules that name it."""
    return _lines(Q(name=name), Q(queue=name))


def count(lines: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return what the first line says of these lines; kinds of which there are none are left out."""
    numbers = {key: sum(kind in line for line in lines) for key, kind in COUNTS.items()}
    return {key: number for key, number in numbers.items() if number}


def _lines(queues: Q, schedules: Q) -> list[dict[str, Any]]:
    rows = sorted(Queue.objects.filter(queues), key=lambda row: row.name)
    found = sorted(_with_last_tick(Schedule.objects.filter(schedules)), key=lambda row: row.name)
    return [*map(_queue_line, rows), *map(_schedule_line, found)]


def _with_last_tick(rows: QuerySet[Schedule]) -> QuerySet[Any]:
    """Add the last tick that has a job: what `overlap="skip"` looks at."""
    ticks = ScheduleTick.objects.filter(schedule_id=OuterRef("pk"), job__isnull=False).order_by("-due_at")
    return rows.annotate(
        last_tick_due_at=Subquery(ticks.values("due_at")[:1]), last_tick_job_id=Subquery(ticks.values("job_id")[:1])
    )


def _queue_line(row: Queue) -> dict[str, Any]:
    return {QUEUE: {name: plain(getattr(row, name)) for name in _QUEUE}}


def _schedule_line(row: Any) -> dict[str, Any]:
    values = {name: plain(getattr(row, name)) for name in _SCHEDULE}
    tick = {name: plain(getattr(row, f"last_tick_{name}")) for name in _LAST_TICK}
    return {SCHEDULE: {**values, "last_tick": tick if tick["job_id"] else None}}


# --- reading


class SiteImport:
    """The queues and schedules of an import: read and checked line by line, compared with what is here, then written."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._queues: dict[str, datetime | None] = {}
        self._schedules: dict[str, ScheduleState] = {}
        self._lines: dict[str, dict[str, Any]] = {}  # of each schedule
        self._places: dict[tuple[str, str], str] = {}
        self._known: set[str] = set()  # schedules that are here already, with equal content
        self.queues_changed = 0

    @property
    def queues(self) -> int:
        """The number of queues that were read."""
        return len(self._queues)

    @property
    def schedules(self) -> int:
        """The number of schedules that were read."""
        return len(self._schedules)

    @property
    def schedules_known(self) -> int:
        """The number of schedules that were here already."""
        return len(self._known)

    @property
    def unknown_types(self) -> set[str]:
        """The job types of schedules that have no handler in this process."""
        types = {state.columns["job_type"] for state in self._schedules.values()}
        return {job_type for job_type in types if registry.find(job_type) is None}

    def add(self, place: str, kind: str, line: Any) -> None:
        """Read a line that is to be of a kind; add what is wrong with it to `problems`."""
        problems: list[str] = []
        if not isinstance(line, dict) or list(line) != [kind]:
            problems.append(f'a line {{"{kind}": …}} is due here, not {shown(line)}')
        elif kind == QUEUE:
            self._add_queue(place, line, problems)
        else:
            self._add_schedule(place, line, problems)
        self.problems += (f"{place}: {problem}" for problem in problems)

    def _add_queue(self, place: str, line: dict[str, Any], problems: list[str]) -> None:
        values = read_row(QUEUE, line[QUEUE], _QUEUE, problems)
        if not problems and self._is_first(QUEUE, values["name"], place, problems):
            self._queues[values["name"]] = values["paused_at"]

    def _add_schedule(self, place: str, line: dict[str, Any], problems: list[str]) -> None:
        checks = {**_SCHEDULE, "last_tick": nullable(lambda path, tick: read_row(path, tick, _LAST_TICK, problems))}
        columns = read_row(SCHEDULE, line[SCHEDULE], checks, problems)
        tick = columns.pop("last_tick")
        if columns["enabled"] and not problems:
            problems += _tick_problems(Schedule(**columns))
        if not problems and self._is_first(SCHEDULE, columns["name"], place, problems):
            last_tick = (tick["due_at"], tick["job_id"]) if tick else None
            self._schedules[columns["name"]] = ScheduleState(columns, last_tick)
            self._lines[columns["name"]] = line

    def _is_first(self, kind: str, name: str, place: str, problems: list[str]) -> bool:
        first = self._places.setdefault((kind, name), place)
        if first != place:
            problems.append(f"{kind} {name!r} is taken by {first}")
        return first == place

    def compare(self) -> None:
        """Find the schedules that are here: equal ones are left alone, declared ones that have not ticked are restored."""
        names = sorted(self._schedules)
        for start in range(0, len(names), PAGE):
            for row in _with_last_tick(Schedule.objects.filter(name__in=names[start : start + PAGE])):
                if _said(_schedule_line(row)) == _said(self._lines[row.name]):
                    self._known.add(row.name)
                elif not (is_untouched(row) and self._schedules[row.name].columns["declared"]):
                    place = self._places[SCHEDULE, row.name]
                    self.problems.append(f"{place}: schedule {row.name!r} exists already, with other content")

    def write(self) -> None:
        """Write what is not here, inside the transaction in which the jobs were written."""
        self.queues_changed = restore_pauses(self._queues)
        restore_schedules([state for name, state in self._schedules.items() if name not in self._known])


def _said(line: dict[str, Any]) -> str:
    """Return what the line of a schedule says, whichever keys it is encrypted with."""
    with compared(), suppress(EncryptionError):
        values = line[SCHEDULE]
        return canonical({SCHEDULE: {**values, "payload": opened(values["payload"])}})
    return canonical(line)


def _tick_problems(row: Schedule) -> list[str]:
    """Return why an enabled schedule could not tick here."""
    problems: list[str] = []
    try:
        row.checked()
    except InvalidJob as error:
        problems += (f"schedule.{problem}" for problem in error.problems)
    if row.job_type == SHELL and not get_settings().SHELL_JOBS:
        problems.append("schedule.job_type 'shell': shell jobs are off (DJANGO_JOBS['SHELL_JOBS'])")
    return problems
