"""The rows of an import: what a record becomes in the tables, kept in a file between the check and the writing. Saves nothing.

A job that is like an earlier one is checked in what is its own alone; all others, and whatever is wrong, are left to `Record`.
"""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

from django.db.models import JSONField, Model

from django_jobs.encryption import MARK, encrypted
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import encrypts_type
from django_jobs.lifecycle.release import wait_again
from django_jobs.models import Attempt, DeadLetter, DeadLetterReason, Job, JobDependency, JobLog, JobStatus, JobStep
from django_jobs.models.job import LAST_FENCE, LIVE
from django_jobs.payloads import compact, encode_payload, encode_result
from django_jobs.rules import RULES, Refused, integer
from django_jobs.submission import EMPTY, OPTION_RULES

from .batches import Chain
from .batches import read as read_batch
from .record import EXTRA_KEYS, KEYS, Reading, Record
from .times import text_of_unix
from .values import plain, text_rule

MOST_KINDS = 10_000
LENGTH = 8  # the bytes that say how long a page is
_error_text, _fence = text_rule(), integer(0, LAST_FENCE)
FIELDS: Mapping[type[Model], Sequence[Any]] = {
    Job: Job._meta.concrete_fields,
    **{
        model: [field for field in model._meta.concrete_fields if not field.primary_key]
        for model in (JobDependency, Attempt, DeadLetter, JobStep, JobLog)
    },
}
Values = list[Any]


def _places(model: type[Model], *names: str) -> list[int]:
    columns = [field.attname for field in FIELDS[model]]
    return [columns.index(name) for name in names]


ID, JOB_TYPE, QUEUE, STATUS, UNIQUE_LOCK, OPEN_EDGES = _places(
    Job, "id", "job_type", "queue", "status", "unique_lock", "pending_dependencies"
)
DEPENDS_ON, ON_FAILURE, STATE = _places(JobDependency, "depends_on_id", "on_failure", "state")
_PAYLOAD, _METADATA, _RESULT, _ERROR, _UNIQUE_KEY, _FENCE, _LIMIT_KEY, _QUEUE_LIMIT_KEY, _FAIR_KEY = _places(
    Job, "payload", "metadata", "result", "error", "unique_key", "fence", "limit_key", "queue_limit_key", "fair_key"
)
_CREATED, _AVAILABLE, _UPDATED, _SCHEDULED, _STARTED, _FINISHED, _CANCEL_REQUESTED = _places(
    Job,
    "created_at",
    "available_at",
    "updated_at",
    "scheduled_at",
    "started_at",
    "finished_at",
    "cancel_requested_at",
)
(_STEP_RESULT,) = _places(JobStep, "result")
# What many jobs have in common, and is checked once for all that are alike.
_SHARED = itemgetter("job_type", "queue", "priority", "max_retries", "timeout_seconds", "status", "retry_count")
_SHARED_EXTRA = itemgetter("rank", "worker_id", "crash_count", "progress", "progress_message")


class Rows(NamedTuple):
    """The rows of a record in six tables, each the values of its FIELDS as text, numbers and None."""

    job: Values
    edges: Sequence[Values] = ()
    attempts: Sequence[Values] = ()
    dead_letters: Sequence[Values] = ()
    steps: Sequence[Values] = ()
    logs: Sequence[Values] = ()
    place: int | None = None  # in the batch; None: no member
    batches: Chain = []


class RowReader:
    """Reads records as rows."""

    def __init__(self) -> None:
        self._alike: dict[Hashable, Values] = {}

    def read(self, data: Any) -> Rows:
        """Return the rows of a checked record; raise InvalidJob with every problem, each under its path."""
        kind = _kind(data)
        template = None if kind is None else self._alike.get(kind)
        if template is not None:
            try:
                return _encrypted(_like(template, data))
            except (InvalidJob, Refused):
                pass  # a `Record` finds all that is wrong
        rows = _rows(Record.from_dict(data))
        if kind is not None and template is None:
            if len(self._alike) >= MOST_KINDS:
                self._alike.clear()
            self._alike[kind] = rows.job
        return _encrypted(rows)


def _encrypted(rows: Rows) -> Rows:
    """Return rows as they are to be stored: encrypted where those of the type's jobs are."""
    if encrypts_type(rows.job[JOB_TYPE]):
        rows = rows._replace(job=rows.job.copy())  # it may be what others are made of
        for values, places in ((rows.job, (_PAYLOAD, _RESULT)), *((step, (_STEP_RESULT,)) for step in rows.steps)):
            for place in places:
                if values[place] is not None and not values[place].startswith(MARK):
                    values[place] = encrypted(values[place])
    return rows


def _kind(data: Any) -> Hashable:
    """Return a key that is equal for records that differ in a job's own values alone; None when it has to be read by itself."""
    if type(data) is not dict or data.keys() != KEYS:
        return None
    extra = data["extra"]
    if type(extra) is not dict or extra.keys() != EXTRA_KEYS or data["status"] == JobStatus.RUNNING:
        return None
    if extra["batch"] is not None:
        return None
    shared = (*_SHARED(data), *_SHARED_EXTRA(extra), extra["finished_at"] is None)
    key = (shared, *map(type, shared))  # with the types: 1, True and 1.0 are equal, and not equally good
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _like(template: Values, data: Mapping[str, Any]) -> Rows:
    """Return the rows of a job that is like another in what they share; raise InvalidJob or Refused for another problem."""
    extra = data["extra"]
    metadata, result, error, unique_key = data["metadata"], data["result"], data["error"], extra["unique_key"]
    row = template.copy()
    row[ID] = RULES["job_id"](data["job_id"])
    row[_PAYLOAD] = encode_payload(data["payload"])
    row[_METADATA] = EMPTY if metadata == {} else encode_payload(metadata)
    row[_RESULT] = None if result is None else encode_result(result)
    row[_ERROR] = None if error is None else _error_text(error)
    row[_UNIQUE_KEY] = None if unique_key is None else RULES["unique_key"](unique_key)
    row[UNIQUE_LOCK] = row[_UNIQUE_KEY] if row[STATUS] in LIVE else None
    row[_FENCE] = _fence(extra["fence"])
    for place, key, rule in (
        (_LIMIT_KEY, extra["limit_key"], "limit_key"),
        (_QUEUE_LIMIT_KEY, extra["queue_limit_key"], "limit_key"),
        (_FAIR_KEY, extra["fair_key"], "fair_key"),
    ):
        row[place] = None if key is None else RULES[rule](key)
    row[_CREATED] = text_of_unix(data["created_at"])
    row[_AVAILABLE] = text_of_unix(extra["available_at"])
    row[_UPDATED] = text_of_unix(extra["updated_at"])
    for place, seconds in (
        (_SCHEDULED, data["scheduled_at"]),
        (_STARTED, extra["started_at"]),
        (_FINISHED, extra["finished_at"]),
        (_CANCEL_REQUESTED, extra["cancel_requested_at"]),
    ):
        row[place] = None if seconds is None else text_of_unix(seconds)
    if data["depends_on"] == extra["dependencies"] == extra["attempts"] == extra["dead_letters"] == []:
        return Rows(row)
    depends_on = OPTION_RULES["depends_on"](data["depends_on"])
    if row[ID] in depends_on:
        raise Refused("another job than itself")
    parts = Reading(data).parts(row[ID], data["job_type"], depends_on)
    edges, attempts, dead_letters, steps, logs = (tuple(map(_values, part)) for part in parts)
    return Rows(row, edges, attempts, dead_letters, steps, logs)


def _rows(record: Record) -> Rows:
    wait_again(record.job)
    if record.steps or record.logs:  # the first run of a job does not look for them
        record.job.fence = max(1, record.job.fence)
    record.job.pending_dependencies = 0  # until it is known how the dependencies stand here
    return Rows(
        _values(record.job),
        tuple(map(_values, record.dependencies)),
        tuple(map(_values, record.attempts)),
        tuple(map(_values, record.dead_letters or _dead_letters(record))),
        tuple(map(_values, record.steps)),
        tuple(map(_values, record.logs)),
        *(read_batch(record.batch, []) if record.batch is not None else ()),
    )


def _dead_letters(record: Record) -> list[DeadLetter]:
    """Return the dead letter of a dead job that came without its `extra`, so that an operator sees it."""
    job = record.job
    if record.is_full or job.status != JobStatus.DEAD:
        return []
    reason = DeadLetterReason.RETRIES_EXHAUSTED
    died_at = job.finished_at or job.updated_at
    return [DeadLetter(job_id=job.id, job_type=job.job_type, reason=reason, error=job.error or "", died_at=died_at)]


def _values(row: Model) -> Values:
    return [_value(field, getattr(row, field.attname)) for field in FIELDS[type(row)]]


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, datetime):
        return str(value.astimezone(UTC).replace(tzinfo=None))
    if isinstance(field, JSONField):
        return None if value is None else compact(value)
    return plain(value)


class Spool:
    """Keeps pages of rows in a temporary file that vanishes when it is closed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it is closed by close()

    def close(self) -> None:
        """Close the file, which deletes it."""
        self._file.close()

    def add(self, page: Sequence[Rows]) -> None:
        """Keep a page behind the others."""
        data = marshal.dumps([tuple(rows) for rows in page])
        self._file.write(len(data).to_bytes(LENGTH))
        self._file.write(data)

    def pages(self) -> Iterator[list[Rows]]:
        """Yield the pages from the first on."""
        self._file.seek(0)
        while length := self._file.read(LENGTH):
            data = self._file.read(int.from_bytes(length))
            yield [Rows(*rows) for rows in marshal.loads(data)]  # noqa: S302  from a file of our own, which has no name
