"""A record: a job with its edges, attempts, dead letters and steps, as exports write and imports read it. Saves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.utils import timezone

from django_jobs.exceptions import InvalidJob
from django_jobs.ids import new_id
from django_jobs.models.attempt import Attempt, AttemptOutcome
from django_jobs.models.dead_letter import DeadLetter, DeadLetterReason
from django_jobs.models.dependency import DependencyState, JobDependency, OnFailure
from django_jobs.models.job import LAST_FENCE, LIVE, MOST, MOST_CRASHES, TERMINAL, Job, JobStatus
from django_jobs.models.job_log import JobLog
from django_jobs.models.step import JobStep, StepKind
from django_jobs.numbers import priority_of, rank_of, to_unix
from django_jobs.payloads import decode, encode_result
from django_jobs.rules import RULES, integer, number, one_of
from django_jobs.submission import DEFAULT_QUEUE, check_submission, unix_moment
from django_jobs.text import shown

from .batches import read as read_batch
from .values import Check, by, nullable, plain, read_row, refuse_unknown, take, text

_LARGEST = 2**31 - 1
_SUBMITTED = ("job_id", "queue", "priority", "max_retries", "timeout_seconds", "metadata", "depends_on")


class Record(NamedTuple):
    """A job with what hangs on it. `is_full`: it had an `extra`."""

    job: Job
    dependencies: list[JobDependency]
    attempts: list[Attempt]
    dead_letters: list[DeadLetter]
    steps: Sequence[JobStep] = ()
    is_full: bool = True
    batch: Mapping[str, Any] | None = None  # as it is written
    logs: Sequence[JobLog] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the job's fifteen keys and, under `extra`, what a faithful restore needs besides."""
        job = [getattr(self.job, name) for name in COLUMNS]
        job = [to_unix(value) if isinstance(value, datetime) else value for value in job]
        return to_dict(job, self.dependencies, self.attempts, self.dead_letters, self.steps, self.batch, self.logs)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict()` gave; without `extra`, or with parts of it, the rest follows from the fifteen keys.

        Raises InvalidJob with every problem, each under its path.
        """
        if not isinstance(data, Mapping):
            raise InvalidJob(f"give a job as an object, not {shown(data)}")
        return Reading(data).record()


# The columns of a job that are written.
COLUMNS = (
    "id", "job_type", "queue", "payload", "rank", "scheduled_at", "created_at", "max_retries", "retry_count", "timeout_seconds",
    "status", "result", "error", "metadata", "available_at", "updated_at", "started_at", "finished_at", "cancel_requested_at",
    "unique_key", "fence", "crash_count", "worker_id", "progress", "progress_message",
    "limit_key", "queue_limit_key", "fair_key",
)  # fmt: skip


def to_dict(
    job: Sequence[Any],
    edges: Iterable[JobDependency],
    attempts: Iterable[Attempt],
    dead_letters: Iterable[DeadLetter],
    steps: Iterable[JobStep],
    batch: Mapping[str, Any] | None = None,
    logs: Iterable[JobLog] = (),
) -> dict[str, Any]:
    """Return what is written of a job, given as its COLUMNS with times as Unix seconds.

    A Job would cost as much again as all the rest. Steps and logs are there only if it has some.
    """
    (
        job_id, job_type, queue, payload, rank, scheduled_at, created_at, max_retries, retry_count, timeout_seconds,
        status, result, error, metadata, available_at, updated_at, started_at, finished_at, cancel_requested_at,
        unique_key, fence, crash_count, worker_id, progress, progress_message,
        limit_key, queue_limit_key, fair_key,
    ) = job  # fmt: skip
    written_steps = {"steps": [_written(step, _STEP) for step in steps]} if steps else {}
    written_logs = {"logs": [_written(log, _LOG) for log in logs]} if logs else {}
    written_edges = [_written(edge, _EDGE) for edge in sorted(edges, key=_dependency_id)] if edges else []
    return {
        "job_id": job_id,
        "job_type": job_type,
        "queue": queue,
        "payload": payload,
        "priority": priority_of(rank),
        "scheduled_at": scheduled_at,
        "created_at": created_at,
        "max_retries": max_retries,
        "retry_count": retry_count,
        "timeout_seconds": timeout_seconds,
        "status": str(status),
        "result": result,
        "error": error,
        "metadata": metadata,
        "depends_on": [edge["depends_on"] for edge in written_edges],
        "extra": {
            "rank": rank,
            "available_at": available_at,
            "updated_at": updated_at,
            "started_at": started_at,
            "finished_at": finished_at,
            "cancel_requested_at": cancel_requested_at,
            "unique_key": unique_key,
            "fence": fence,
            "crash_count": crash_count,
            "worker_id": worker_id,
            "progress": progress,
            "progress_message": progress_message,
            "batch": batch,
            "limit_key": limit_key,
            "queue_limit_key": queue_limit_key,
            "fair_key": fair_key,
            "dependencies": written_edges,
            "attempts": [_written(attempt, _ATTEMPT) for attempt in attempts],
            "dead_letters": [_written(dead_letter, _DEAD_LETTER) for dead_letter in dead_letters],
            **written_steps,
            **written_logs,
        },
    }


def _dependency_id(edge: JobDependency) -> str:
    return str(edge.depends_on_id)


def _written(row: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    return {name: plain(getattr(row, "depends_on_id" if name == "depends_on" else name)) for name in checks}


# --- checks


def _result(path: str, value: Any) -> Any:
    return None if value is None else decode(encode_result(value, where=path))


_status = by(one_of(*JobStatus.values))
_EXTRA: dict[str, Check] = {
    "rank": by(integer(-100, 100)),
    "available_at": unix_moment,
    "updated_at": unix_moment,
    "started_at": nullable(unix_moment),
    "finished_at": nullable(unix_moment),
    "cancel_requested_at": nullable(unix_moment),
    "unique_key": nullable(by(RULES["unique_key"])),
    "fence": by(integer(0, LAST_FENCE)),
    "crash_count": by(integer(0, MOST_CRASHES)),
    "worker_id": nullable(text(128)),
    "progress": nullable(by(number(0, 1))),
    "progress_message": text(200),
    "limit_key": nullable(by(RULES["limit_key"])),
    "queue_limit_key": nullable(by(RULES["limit_key"])),
    "fair_key": nullable(by(RULES["fair_key"])),
}
_EDGE: dict[str, Check] = {
    "depends_on": text(64),
    "on_failure": by(one_of(*OnFailure.values)),
    "state": by(one_of(*DependencyState.values)),
}
_ATTEMPT: dict[str, Check] = {
    "number": by(integer(0, _LARGEST)),
    "worker_id": text(128),
    "release": text(64),
    "started_at": nullable(unix_moment),
    "ended_at": unix_moment,
    "outcome": by(one_of(*AttemptOutcome.values)),
    "exception_class": text(255),
    "error": text(),
    "traceback": text(),
}
_DEAD_LETTER: dict[str, Check] = {
    "reason": by(one_of(*DeadLetterReason.values)),
    "error": text(),
    "traceback": text(),
    "fingerprint": text(64),
    "release": text(64),
    "died_at": unix_moment,
    "acknowledged_at": nullable(unix_moment),
    "note": text(),
    "replayed_at": nullable(unix_moment),
}
_STEP: dict[str, Check] = {
    "position": by(integer(1, _LARGEST)),
    "name": text(220),
    "kind": by(one_of(*StepKind.values)),
    "result": _result,
    "started_at": unix_moment,
    "ended_at": nullable(unix_moment),
    "due_at": nullable(unix_moment),
    "event_name": nullable(text(200)),
    "event_key": nullable(text(200)),
}
_LOG: dict[str, Check] = {"number": by(integer(0, _LARGEST)), "text": text()}
_KEYS = (
    "job_id", "job_type", "queue", "payload", "priority", "scheduled_at", "created_at", "max_retries", "retry_count",
    "timeout_seconds", "status", "result", "error", "metadata", "depends_on", "extra",
)  # fmt: skip
_LISTS = ("dependencies", "attempts", "dead_letters")
_PARTS = ("batch", *_LISTS)
KEYS, EXTRA_KEYS = frozenset(_KEYS), frozenset((*_EXTRA, *_PARTS))


class Reading:
    """Reads one record: plain values in, unsaved models out. Collects every problem."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.problems: list[str] = []
        self.refuse_unknown("", data, _KEYS)
        extra = data.get("extra")
        if extra is not None and not isinstance(extra, Mapping):
            self.problems.append(f"extra: give an object, not {shown(extra)}")
            extra = None
        self.is_full = extra is not None
        self.extra: Mapping[str, Any] = extra or {}
        self.refuse_unknown("extra.", self.extra, (*_EXTRA, *_PARTS, "steps", "logs"))

    def record(self) -> Record:
        job = self.job()
        batch = self.extra.get("batch")
        if batch is not None:
            read_batch(batch, self.problems)
        edges, attempts, dead_letters, steps, logs = self.parts(job.id, job.job_type, job.__dict__["_depends_on"])
        job.pending_dependencies = sum(edge.state == DependencyState.OPEN for edge in edges)
        if batch is not None:
            job.batch_id = batch["id"]
        return Record(job, edges, attempts, dead_letters, steps, self.is_full, batch, logs)

    def parts(
        self, job_id: str, job_type: str, depends_on: Iterable[str]
    ) -> tuple[list[JobDependency], list[Attempt], list[DeadLetter], list[JobStep], list[JobLog]]:
        """Return what hangs on the job; raise InvalidJob with every problem so far."""
        edges = [
            JobDependency(job_id=job_id, depends_on_id=row.pop("depends_on"), **row) for row in self.edges(depends_on)
        ]
        attempts = [Attempt(job_id=job_id, **row) for row in self.rows("attempts", _ATTEMPT)]
        dead_letters = [
            DeadLetter(job_id=job_id, job_type=job_type, **row) for row in self.rows("dead_letters", _DEAD_LETTER)
        ]
        steps = [JobStep(job_id=job_id, **row) for row in self.rows("steps", _STEP)]
        logs = [JobLog(job_id=job_id, **row) for row in self.rows("logs", _LOG)]
        if self.problems:
            raise InvalidJob(*self.problems)
        return edges, attempts, dead_letters, steps, logs

    def job(self) -> Job:
        data, take = self.data, self.take
        options = {name: data.get(name) for name in _SUBMITTED}
        try:
            submission = check_submission(data.get("job_type"), data.get("payload"), options)
        except InvalidJob as error:
            self.problems += error.problems
            submission = check_submission("unknown", None, {})
        status = take("", data, "status", _status, JobStatus.PENDING)
        scheduled_at = take("", data, "scheduled_at", nullable(unix_moment), None)
        created_at = take("", data, "created_at", unix_moment, timezone.now())
        rank = rank_of(5 if submission.priority is None else submission.priority)
        finished_at = created_at if status in TERMINAL else None
        derived: dict[str, Any] = {
            "rank": rank,
            "available_at": scheduled_at if status == JobStatus.SCHEDULED and scheduled_at else created_at,
            "updated_at": created_at,
            "finished_at": finished_at,
            "started_at": created_at if status in (JobStatus.RUNNING, JobStatus.COMPLETED) else None,
            "fence": 0,
            "crash_count": 0,
            "progress_message": "",
        }
        extra = {name: take("extra.", self.extra, name, check, derived.get(name)) for name, check in _EXTRA.items()}
        if (
            submission.priority is not None
            and extra["rank"] is not None
            and priority_of(extra["rank"]) != submission.priority
        ):
            self.problems.append(
                f"extra.rank={extra['rank']}: it stands for another priority than {submission.priority}"
            )
        if (extra["finished_at"] is None) != (status in LIVE):
            self.problems.append(f"extra.finished_at={shown(extra['finished_at'])}: a {status} job cannot have that")
        job = Job(
            id=submission.job_id or new_id(),
            job_type=submission.job_type,
            queue=submission.queue or DEFAULT_QUEUE,
            payload=decode(submission.payload),
            metadata=decode(submission.metadata),
            status=JobStatus(status),
            scheduled_at=scheduled_at,
            created_at=created_at,
            max_retries=3 if submission.max_retries is None else submission.max_retries,
            retry_count=take("", data, "retry_count", by(integer(0, MOST)), 0),
            timeout_seconds=submission.timeout_seconds,
            result=take("", data, "result", _result, None),
            error=take("", data, "error", nullable(text()), None),
            unique_lock=extra["unique_key"] if status in LIVE else None,
            **extra,
        )
        job.__dict__["_depends_on"] = submission.depends_on
        return job

    def edges(self, depends_on: Iterable[str]) -> list[dict[str, Any]]:
        """Return the edges: those of `extra`, which must be those of `depends_on`, or one for each of these."""
        named = sorted(depends_on)
        if "dependencies" not in self.extra:
            state = {"on_failure": OnFailure.FAIL, "state": DependencyState.OPEN}
            return [{"depends_on": job_id, **state} for job_id in named]
        edges = self.rows("dependencies", _EDGE)
        if sorted(edge["depends_on"] or "" for edge in edges) != named:
            self.problems.append("extra.dependencies: these are not the jobs that depends_on names")
        return edges

    def rows(self, name: str, checks: Mapping[str, Check]) -> list[dict[str, Any]]:
        """Return the objects of a list in `extra`, each with all the keys of its kind."""
        given = self.extra.get(name, [])
        if not isinstance(given, list) or not all(isinstance(row, Mapping) for row in given):
            self.problems.append(f"extra.{name}: give a list of objects, not {shown(given)}")
            return []
        return [read_row(f"extra.{name}[{index}]", row, checks, self.problems) for index, row in enumerate(given)]

    def take(self, path: str, data: Mapping[str, Any], name: str, check: Check, default: Any) -> Any:
        """Return a checked value; the default when it is absent or has a problem."""
        return take(path, data, name, check, default, self.problems)

    def refuse_unknown(self, path: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        refuse_unknown(path, data, known, self.problems)
