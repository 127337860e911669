"""A job before it is a row: the options of a submit, checked, and the defaults that handler, queue and site fill in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Handler, Registry, encrypts
from django_jobs.limit import KeyOf, Limit, fair_key_of
from django_jobs.names import id_problem, job_type_problem
from django_jobs.numbers import from_unix, rank_of
from django_jobs.payloads import encode_payload
from django_jobs.rules import RULES, Refused, Rule, check_options
from django_jobs.text import shown

if TYPE_CHECKING:
    from django_jobs.models import Job


class SubmitOptions(TypedDict, total=False):
    """The keywords of `submit()`; None is as good as left out."""

    priority: int | None
    scheduled_at: datetime | None
    delay: timedelta | float | None
    depends_on: Iterable[str | Job] | None
    max_retries: int | None
    timeout_seconds: float | None
    metadata: Mapping[str, Any] | None
    unique_key: str | None
    job_id: str | None
    queue: str | None
    on_dependency_failure: Literal["fail", "run"] | None
    limit_key: str | None
    fair_key: str | None


class SubmitCall(SubmitOptions, total=False):
    """The keywords of `submit()`, with the alias of the database that is to hold the job."""

    using: str | None


class NewJob:
    """A job for `submit_many`: the arguments of `submit()`."""

    __slots__ = ("job_type", "options", "payload")

    def __init__(
        self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> None:
        self.job_type = job_type
        self.payload = payload
        self.options: Mapping[str, Any] = options

    def __repr__(self) -> str:
        return f"NewJob({self.job_type!r}, job_id={self.options.get('job_id')!r})"


DEFAULT_QUEUE = "default"
EMPTY = "{}"


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked submission; None where an option was not given."""

    job_type: str
    payload: str
    metadata: str = EMPTY
    priority: int | None = None
    scheduled_at: datetime | None = None
    delay: timedelta | None = None
    depends_on: tuple[str, ...] = ()
    max_retries: int | None = None
    timeout_seconds: float | None = None
    unique_key: str | None = None
    job_id: str | None = None
    queue: str | None = None
    on_dependency_failure: str = "fail"
    limit_key: str | None = None
    fair_key: str | None = None


def check_submission(job_type: Any, payload: Any, options: Mapping[str, Any]) -> Submission:
    """Return the checked submission; raise InvalidJob with every problem.

    Args:
        job_type: the registered name; whether it has a handler is not checked here.
        payload: a JSON object as a dict, or None for an empty one.
        options: the keywords of `submit()`; None is as good as left out.
    """
    problems: list[str] = []
    problem = job_type_problem(job_type)
    if problem:
        problems.append(problem)
    encoded = EMPTY
    if payload is not None:
        try:
            encoded = encode_payload(payload)
        except InvalidJob as error:
            problems.extend(error.problems)
    hint = " What the handler is to get belongs into the payload: {'{0}': …}." if payload is None else ""
    kept = check_options(options, OPTION_RULES, problems, hint)
    if "delay" in kept and "scheduled_at" in kept:
        problems.append("give delay or scheduled_at, not both")
    if "job_id" in kept and kept["job_id"] in kept.get("depends_on", ()):
        problems.append(f"depends_on: the job {kept['job_id']!r} cannot depend on itself")
    if problems:
        raise InvalidJob(*problems)
    return Submission(job_type, encoded, **kept)


def _depends_on(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise Refused("a list of jobs or ids")
    ids: dict[Any, None] = {}  # ordered, and a set: there may be ten thousand
    problems = []
    for job in value:
        job_id = job if isinstance(job, str) else getattr(job, "job_id", None) or getattr(job, "pk", None)
        problem = id_problem(job_id)
        if problem:
            problems.append(f"depends_on: {shown(job)}: {problem}")
        elif job_id in ids:
            problems.append(f"depends_on: {job_id!r} is named twice")
        else:
            ids[job_id] = None
    if problems:
        raise InvalidJob(*problems)
    return tuple(ids)


def _metadata(value: Any) -> str:
    return encode_payload(value, where="metadata")


OPTION_RULES: Mapping[str, Rule] = {
    **{name: RULES[name] for name in SubmitOptions.__annotations__ if name in RULES},
    "depends_on": _depends_on,
    "metadata": _metadata,
}
OPTIONS = tuple(SubmitOptions.__annotations__)


class Keys(NamedTuple):
    """The values of the keys of a job's limits, that of its type and that of its queue, and of its fair key."""

    limit_key: str | None = None
    queue_limit_key: str | None = None
    fair_key: str | None = None


NO_KEYS = Keys()


@dataclass(frozen=True, slots=True)
class Template:
    """A checked submission with every default filled in, for any number of jobs that differ only in their payload."""

    submission: Submission
    queue: str
    rank: int
    max_retries: int
    timeout_seconds: float | None
    limit: Limit | None = None
    queue_limit: Limit | None = None
    fair_key: KeyOf | None = None
    encrypts: bool = False

    def scheduled_at(self, now: datetime | None) -> datetime | None:
        """Return the requested time; a delay counts from `now`."""
        delay = self.submission.delay
        return self.submission.scheduled_at if delay is None or now is None else now + delay

    @property
    def is_limited(self) -> bool:
        """Whether a limit may hold its jobs."""
        return self.limit is not None or self.queue_limit is not None or self.submission.limit_key is not None

    @property
    def has_keys(self) -> bool:
        """Whether keys are to be asked of its jobs."""
        return self.is_limited or self.fair_key is not None or self.submission.fair_key is not None

    def keys(self, payload: Mapping[str, Any] | None) -> Keys:
        """Return the values of the keys of a job with this payload; raise InvalidJob with every problem."""
        if not self.has_keys:
            return NO_KEYS
        problems: list[str] = []
        values = []
        for limit, given in ((self.limit, self.submission.limit_key), (self.queue_limit, None)):
            try:
                values.append(given or (limit.value_of(payload or {}) if limit else None))
            except InvalidJob as error:
                problems += error.problems
        try:
            values.append(self.submission.fair_key or fair_key_of(self.fair_key, payload or {}))
        except InvalidJob as error:
            problems += error.problems
        if problems:
            raise InvalidJob(*problems)
        return Keys(*values)


def resolve(
    submission: Submission, handler: Handler | None, handlers: Registry, *, rank: int | None = None
) -> Template:
    """Fill in the options that were not given: the handler's, else the queue's, else the site's.

    Args:
        handler: that of the job type among `handlers`; None when it has none there.
        rank: the stored order, -100 to 100, for callers with finer priorities than 1 to 10.

    Raises InvalidJob for a limit_key of a type that has no limit.
    """
    if submission.limit_key is not None and handler is not None and handler.limit is None:
        raise InvalidJob(
            f"limit_key={submission.limit_key!r}: it needs a limit on the type {submission.job_type!r};"
            " declare @job(limit=Limit(…))"
        )
    queue = submission.queue or (handler.queue if handler else None) or DEFAULT_QUEUE
    options = handlers.job_options(handler, queue)
    if rank is None:
        rank = rank_of(options.priority if submission.priority is None else submission.priority)
    return Template(
        submission,
        queue,
        rank,
        options.max_retries if submission.max_retries is None else submission.max_retries,
        options.timeout_seconds if submission.timeout_seconds is None else submission.timeout_seconds,
        handler.limit if handler else None,
        options.queue_limit,
        handler.fair_key if handler else None,
        encrypts(handler),
    )


def unix_moment(name: str, seconds: Any) -> datetime:
    """Return Unix seconds as an aware datetime in UTC; raise InvalidJob for another value."""
    moment = from_unix(seconds)
    if moment is None:
        raise InvalidJob(f"{name}: give Unix seconds, from 1970 to the year 9998, not {shown(seconds)}")
    return moment


def with_moments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return submit options with a `scheduled_at` of Unix seconds made a datetime."""
    given = dict(options)
    if isinstance(given.get("scheduled_at"), int | float):
        given["scheduled_at"] = unix_moment("scheduled_at", given["scheduled_at"])
    return given
