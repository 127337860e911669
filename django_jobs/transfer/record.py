"""A record: a job with its edges, attempts and dead letters, as exports write and imports read it. Saves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.utils import timezone

from django_jobs.exceptions import InvalidJob
from django_jobs.ids import new_id
from django_jobs.models.attempt import Attempt, AttemptOutcome
from django_jobs.models.dead_letter import DeadLetter, DeadLetterReason
from django_jobs.models.dependency import DependencyState, JobDependency, OnFailure
from django_jobs.models.job import LIVE, TERMINAL, Job, JobStatus
from django_jobs.names import did_you_mean
from django_jobs.numbers import priority_of, rank_of, to_unix
from django_jobs.payloads import decode, encode_result
from django_jobs.rules import RULES, Refused, Rule, check, integer, number, one_of
from django_jobs.submission import DEFAULT_QUEUE, check_submission, unix_moment
from django_jobs.text import scrub, shown

LONGEST_TEXT = 100_000
_LARGEST = 2**31 - 1
_SUBMITTED = ("job_id", "queue", "priority", "max_retries", "timeout_seconds", "metadata", "depends_on")

# A check gets the path and the value, and returns the value as it is stored; it raises InvalidJob that names the path.
Check = Callable[[str, Any], Any]


class Record(NamedTuple):
    """A job with its edges, attempts and dead letters. `is_full`: it had an `extra`; `size`: characters it was read from."""

    job: Job
    dependencies: list[JobDependency]
    attempts: list[Attempt]
    dead_letters: list[DeadLetter]
    is_full: bool = True
    size: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the job's fifteen keys and, under `extra`, what a faithful restore needs besides."""
        job = self.job
        job.__dict__["_depends_on"] = [edge.depends_on_id for edge in self.dependencies]
        extra: dict[str, Any] = {name: _plain(getattr(job, name)) for name in _EXTRA}
        extra["dependencies"] = [_written(edge, _EDGE) for edge in sorted(self.dependencies, key=_dependency_id)]
        extra["attempts"] = [_written(attempt, _ATTEMPT) for attempt in self.attempts]
        extra["dead_letters"] = [_written(dead_letter, _DEAD_LETTER) for dead_letter in self.dead_letters]
        return {**job.to_dict(), "extra": extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict()` gave; without `extra`, or with parts of it, the rest follows from the fifteen keys.

        Raises InvalidJob with every problem, each under its path.
        """
        if not isinstance(data, Mapping):
            raise InvalidJob(f"give a job as an object, not {shown(data)}")
        return _Reading(data).record()


def _dependency_id(edge: JobDependency) -> str:
    return str(edge.depends_on_id)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_unix(value)
    return str(value) if isinstance(value, str) else value  # a TextChoices member is a str, and more


def _written(row: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    return {name: _plain(getattr(row, "depends_on_id" if name == "depends_on" else name)) for name in checks}


# --- checks


def _nullable(inner: Check) -> Check:
    return lambda path, value: None if value is None else inner(path, value)


def _by(rule: Rule) -> Check:
    return lambda path, value: check(path, value, rule)


def _text(longest: int = LONGEST_TEXT) -> Check:
    def rule(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused("a string")
        if len(value) > longest:
            raise Refused(f"a string of at most {longest} characters, not {len(value)}")
        if scrub(value, longest) != value:
            raise Refused("a string without characters that cannot be stored")
        return value

    return _by(rule)


def _result(path: str, value: Any) -> Any:
    return None if value is None else decode(encode_result(value, where=path))


_status = _by(one_of(*JobStatus.values))
_EXTRA: dict[str, Check] = {
    "rank": _by(integer(-100, 100)),
    "available_at": unix_moment,
    "updated_at": unix_moment,
    "started_at": _nullable(unix_moment),
    "finished_at": _nullable(unix_moment),
    "cancel_requested_at": _nullable(unix_moment),
    "unique_key": _nullable(_by(RULES["unique_key"])),
    "fence": _by(integer(0, 2**63 - 1)),
    "crash_count": _by(integer(0, 32_767)),
    "worker_id": _nullable(_text(128)),
    "progress": _nullable(_by(number(0, 1))),
    "progress_message": _text(200),
}
_EDGE: dict[str, Check] = {
    "depends_on": _text(64),
    "on_failure": _by(one_of(*OnFailure.values)),
    "state": _by(one_of(*DependencyState.values)),
}
_ATTEMPT: dict[str, Check] = {
    "number": _by(integer(0, _LARGEST)),
    "worker_id": _text(128),
    "started_at": _nullable(unix_moment),
    "ended_at": unix_moment,
    "outcome": _by(one_of(*AttemptOutcome.values)),
    "exception_class": _text(255),
    "error": _text(),
    "traceback": _text(),
}
_DEAD_LETTER: dict[str, Check] = {
    "reason": _by(one_of(*DeadLetterReason.values)),
    "error": _text(),
    "traceback": _text(),
    "fingerprint": _text(64),
    "died_at": unix_moment,
    "acknowledged_at": _nullable(unix_moment),
    "note": _text(),
    "replayed_at": _nullable(unix_moment),
}
_KEYS = (
    "job_id", "job_type", "queue", "payload", "priority", "scheduled_at", "created_at", "max_retries", "retry_count",
    "timeout_seconds", "status", "result", "error", "metadata", "depends_on", "extra",
)  # fmt: skip
_LISTS = ("dependencies", "attempts", "dead_letters")


class _Reading:
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
        self.refuse_unknown("extra.", self.extra, (*_EXTRA, *_LISTS))

    def record(self) -> Record:
        job = self.job()
        edges = [JobDependency(job_id=job.id, depends_on_id=row.pop("depends_on"), **row) for row in self.edges(job)]
        attempts = [Attempt(job_id=job.id, **row) for row in self.rows("attempts", _ATTEMPT)]
        dead_letters = [DeadLetter(job_id=job.id, **row) for row in self.rows("dead_letters", _DEAD_LETTER)]
        if self.problems:
            raise InvalidJob(*self.problems)
        job.pending_dependencies = sum(edge.state == DependencyState.OPEN for edge in edges)
        return Record(job, edges, attempts, dead_letters, self.is_full)

    def job(self) -> Job:
        data, take = self.data, self.take
        options = {name: data.get(name) for name in _SUBMITTED}
        try:
            submission = check_submission(data.get("job_type"), data.get("payload"), options)
        except InvalidJob as error:
            self.problems += error.problems
            submission = check_submission("unknown", None, {})
        status = take("", data, "status", _status, JobStatus.PENDING)
        scheduled_at = take("", data, "scheduled_at", _nullable(unix_moment), None)
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
            retry_count=take("", data, "retry_count", _by(integer(0, _LARGEST)), 0),
            timeout_seconds=submission.timeout_seconds,
            result=take("", data, "result", _result, None),
            error=take("", data, "error", _nullable(_text()), None),
            unique_lock=extra["unique_key"] if status in LIVE else None,
            **extra,
        )
        job.__dict__["_depends_on"] = submission.depends_on
        return job

    def edges(self, job: Job) -> list[dict[str, Any]]:
        """Return the edges: those of `extra`, which must be those of `depends_on`, or one for each of these."""
        named = sorted(job.__dict__["_depends_on"])
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
        return list(self._rows(f"extra.{name}", given, checks))

    def _rows(self, path: str, given: list[Any], checks: Mapping[str, Check]) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(given):
            here = f"{path}[{index}]."
            self.refuse_unknown(here, row, tuple(checks))
            missing = [name for name in checks if name not in row]
            if missing:
                self.problems.append(f"{here[:-1]}: {', '.join(missing)} is missing")
            yield {name: self.take(here, row, name, check, None) for name, check in checks.items()}

    def take(self, path: str, data: Mapping[str, Any], name: str, check: Check, default: Any) -> Any:
        """Return a checked value; the default when it is absent or has a problem."""
        if name not in data:
            return default
        try:
            return check(f"{path}{name}", data[name])
        except InvalidJob as error:
            self.problems += error.problems
            return default

    def refuse_unknown(self, path: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for name in data:
            if name not in known:
                self.problems.append(f"{path}{shown(name)}: this key is unknown.{did_you_mean(name, known)}")
