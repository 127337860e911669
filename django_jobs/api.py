"""The public functions: declare a handler, submit jobs. Models are imported at the call, so this is safe at start-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from asgiref.sync import sync_to_async

from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import make_handler_with_arguments, payload_problems, registry
from django_jobs.limit import KeyOf, Limit
from django_jobs.other_queues import refuse_calls
from django_jobs.scheduling.spec import declare
from django_jobs.submission import NewJob, SubmitCall

if TYPE_CHECKING:
    from django_jobs.models import Batch, Event, Job

P = ParamSpec("P")
A = ParamSpec("A")
C = TypeVar("C")
R = TypeVar("R", covariant=True)
Exceptions = type[BaseException] | tuple[type[BaseException], ...]


class HandlerOptions(TypedDict, total=False):
    """The keywords of `@job`, but for `takes_context`; None is as good as left out."""

    queue: str | None
    priority: int | None
    max_retries: int | None
    timeout_seconds: float | None
    base_delay: float | None
    max_delay: float | None
    retry_on: Exceptions | None
    fail_on: Exceptions
    atomic: bool
    isolation: Literal["thread", "process"]
    dead_letter: bool | None
    max_crashes: int | None
    limit: Limit | None
    fair_key: KeyOf | None
    log_level: str | int | None
    encrypt: bool | None
    bulk: int | None
    bulk_wait: float | None
    every: timedelta | float | None
    cron: str | None
    timezone: str | None


class JobFunction(Protocol[P, A, R]):
    """A handler as `@job` returns it: the function itself, with its submit methods."""

    __name__: str
    job_type: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def payload(self, *args: A.args, **kwargs: A.kwargs) -> dict[str, Any]:
        """Return the payload with which the handler is called as if with these arguments, without its context.

        A type checker knows them. Raises InvalidJob when they do not fit.
        """

    def submit(self, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitCall]) -> Job:
        """Submit a job of this type; the options are those of `django_jobs.submit`."""

    async def asubmit(self, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitCall]) -> Job:
        """Submit a job of this type from async code."""


@overload
def job(function: Callable[P, R], /) -> JobFunction[P, P, R]: ...


@overload
def job(
    job_type: str | None = None, *, takes_context: Literal[True], **options: Unpack[HandlerOptions]
) -> Callable[[Callable[Concatenate[C, A], R]], JobFunction[Concatenate[C, A], A, R]]: ...


@overload
def job(
    job_type: str | None = None, *, takes_context: Literal[False] = False, **options: Unpack[HandlerOptions]
) -> Callable[[Callable[P, R]], JobFunction[P, P, R]]: ...


def job(job_type: Any = None, **options: Any) -> Any:
    """Register a function as the handler of a job type and return the function itself.

    A worker calls it with the payload's keys: `function(**payload)`. A parameter that is called `payload` gets the whole.

    Args:
        job_type: the registered name; by default the function's module and name.
        queue: where its jobs go unless the submit says otherwise.
        priority: 1 to 10, higher first.
        max_retries: how often a failed job is tried again; 3 means four starts.
        timeout_seconds: how long a run may take, in seconds.
        base_delay, max_delay: the backoff between retries, in seconds.
        retry_on: retry only these exceptions; fail_on: never retry these.
        atomic: run the handler and complete the job in one transaction.
        isolation: "thread", or "process" for a subprocess with a hard timeout.
        takes_context: give the handler the context as its first argument.
        dead_letter: False lets jobs end FAILED, without a dead letter for an operator.
        max_crashes: how many starts may kill their process before the job is dead.
        limit: how many of its jobs may run at once, or start in a time, over all processes; see `Limit`.
        fair_key: the name of a key of the payload, or a function of the payload: jobs of one queue and priority take turns by its
            value, so that none waits behind all jobs of another.
        log_level: keep what the handler logs from this level of `logging` up, for the page of its job; None: as LOG_LEVEL says.
        encrypt: store its payloads and results encrypted; None: as ENCRYPT says.
        bulk: call the function with a list of the payloads of up to so many jobs, or of their contexts; it returns None or a list
            of results, and raises `BulkFailure` when only some of them failed.
        bulk_wait: how long the first job of a list waits for others, in seconds; 0 takes what is there.
        every, cron: declare a schedule of this name too, at an interval or by a cron expression in `timezone`.

    Raises InvalidJob for unknown or wrong options, and when another function holds the job type.
    """
    if callable(job_type):
        return _register(job_type, None, options)

    return lambda function: _register(function, job_type, options)


def _register(function: Any, job_type: str | None, options: dict[str, Any]) -> Any:
    timing = {key: options.pop(key) for key in ("every", "cron", "timezone") if key in options}
    handler = make_handler_with_arguments(function, job_type, options)
    if timing and (problems := payload_problems(handler, {})):
        hint = (
            "a schedule of @job has no payload: give the parameter a default, or declare it by schedule(…, payload=…)"
        )
        raise InvalidJob(*problems, hint)
    name = registry.register(handler).job_type
    if timing:
        declare(name, name, **timing)

    def submit_this(payload: Mapping[str, Any] | None = None, **given: Unpack[SubmitCall]) -> Job:
        return submit(name, payload, **given)

    async def asubmit_this(payload: Mapping[str, Any] | None = None, **given: Unpack[SubmitCall]) -> Job:
        return await asubmit(name, payload, **given)

    function.job_type = name
    function.payload = _whole_payload if handler.arguments is None else handler.arguments.payload
    function.submit = submit_this
    function.asubmit = asubmit_this
    refuse_calls(function)
    return function


def _whole_payload(payload: Mapping[str, Any]) -> dict[str, Any]:
    return dict(payload)


def submit(job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitCall]) -> Job:
    """Write a job in the caller's transaction and return it; a worker starts it after the commit.

    Args:
        job_type: the registered name of a handler.
        payload: a JSON object.
        priority: 1 to 10, higher first.
        scheduled_at: an aware datetime before which it does not start; delay: the same from now, timedelta or seconds.
        depends_on: jobs or ids that must complete first; on_dependency_failure: "fail" (default) or "run".
        max_retries, timeout_seconds, queue: as for `@job`.
        metadata: a JSON object kept with the job.
        unique_key: while a live job holds this key, that job is returned instead of a new one.
        job_id: an id of your own, at most 64 characters.
        limit_key: the value by which the limit of its type counts it, in place of what the payload says.
        fair_key: the key by which it takes turns with the others of its queue and priority, in place of what the payload says.
        using: the database that is to hold it, one of DJANGO_JOBS["DATABASES"]; by default one of them on which the caller has a
            transaction open, else that of the job whose handler submits, else what the routers say.

    Raises InvalidJob, a ValueError, with every problem of the call; nothing is written then.
    """
    from django_jobs.db.connections import database_of_submit
    from django_jobs.lifecycle import submit as lifecycle

    with database_of_submit(options.pop("using", None)):
        return lifecycle.submit(job_type, payload, options=options)


async def asubmit(job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitCall]) -> Job:
    """Submit from async code; see `submit`."""
    return await sync_to_async(submit)(job_type, payload, **options)


def submit_many(new_jobs: Iterable[NewJob], *, using: str | None = None) -> list[Job]:
    """Write all of the jobs in one transaction on one database, or none, and return them in the order given.

    Jobs may depend on each other by `job_id`, forward references included; `using` is that of `submit`. Raises InvalidJob that
    names the index of each bad item, and CycleError with the path of a circle.
    """
    from django_jobs.db.connections import database_of_submit
    from django_jobs.lifecycle import submit as lifecycle

    with database_of_submit(using):
        return lifecycle.submit_many(new_jobs)


async def asubmit_many(new_jobs: Iterable[NewJob], *, using: str | None = None) -> list[Job]:
    """Submit many from async code; see `submit_many`."""
    return await sync_to_async(submit_many)(new_jobs, using=using)


def emit(
    name: str,
    *,
    key: str | None = None,
    payload: Mapping[str, Any] | None = None,
    retention: timedelta | float | None = None,
    encrypt: bool | None = None,
    using: str | None = None,
) -> Event:
    """Write an event in the caller's transaction and return it; the jobs that wait for it go on after the commit.

    Args:
        name: at most 200 characters; key: of what it tells, such as "order:7". A wait meets events of its own name and key.
        payload: a JSON object, which `context.wait_for_event` returns.
        retention: how long it is kept for jobs that wait later (timedelta or seconds; 0: only for those that wait now;
            None: DJANGO_JOBS["RETENTION"]["events"] days).
        encrypt: store its payload encrypted, also in the steps of jobs that waited for it; None: as ENCRYPT says.
        using: the database whose jobs it is for, chosen as by `submit`.

    Raises InvalidJob, a ValueError, with every problem of the call; nothing is written then.
    """
    from django_jobs.db.connections import database_of_submit
    from django_jobs.lifecycle import events

    with database_of_submit(using):
        return events.emit(name, key=key, payload=payload, retention=retention, encrypt=encrypt)


async def aemit(
    name: str,
    *,
    key: str | None = None,
    payload: Mapping[str, Any] | None = None,
    retention: timedelta | float | None = None,
    encrypt: bool | None = None,
    using: str | None = None,
) -> Event:
    """Emit from async code; see `emit`."""
    return await sync_to_async(emit)(name, key=key, payload=payload, retention=retention, encrypt=encrypt, using=using)


def batch(
    description: str = "",
    *,
    metadata: Mapping[str, Any] | None = None,
    on_success: NewJob | None = None,
    on_failure: NewJob | None = None,
    on_finish: NewJob | None = None,
    using: str | None = None,
) -> AbstractContextManager[Batch]:
    """Begin a batch, to be used with `with`: jobs that are submitted to it, and others that are submitted at its end.

    The block is one transaction on the jobs' database, or part of the caller's: members start after it, and an exception in it
    leaves nothing. Members may add members until the last one has ended.

    Args:
        description: what people read, at most 200 characters; metadata: a JSON object kept with the batch.
        on_success: a NewJob that is submitted when all members have completed.
        on_failure: the same when all have ended and some of them not well: dead, failed or cancelled.
        on_finish: the same in either case.
        using: the database that is to hold it with its members, chosen as by `submit`.

    Raises InvalidJob with every problem of the call.
    """
    from django_jobs.db.connections import database_of_submit
    from django_jobs.lifecycle.batches import new_batch

    callbacks = {"on_success": on_success, "on_failure": on_failure, "on_finish": on_finish}
    with database_of_submit(using):
        return new_batch(description, metadata=metadata, callbacks=callbacks)


def schedule(
    name: str,
    job_type: str,
    *,
    cron: str | None = None,
    every: timedelta | float | None = None,
    at: datetime | None = None,
    timezone: str | None = None,
    payload: Mapping[str, Any] | None = None,
    using: str | None = None,
    **options: Any,
) -> None:
    """Declare a schedule in code, usually in a `jobs.py`; it is written on `migrate` and at worker start.

    Args:
        name: what the row is called; an operator's pause of it is kept.
        cron: five fields or `@daily` and friends; every: a timedelta or seconds; at: one aware datetime. Exactly one.
        timezone: the zone of a cron expression; the site's by default.
        options: queue, priority, max_retries, timeout_seconds, metadata, limit_key, fair_key, catch_up, grace_seconds, overlap,
            jitter_seconds.
        using: the database whose jobs it submits, one of DJANGO_JOBS["DATABASES"]; that of the routers by default.

    Raises InvalidJob when something is wrong with it.
    """
    if using is not None:
        from django_jobs.db.connections import check_holds_jobs

        check_holds_jobs(using)
    declare(
        name, job_type, database=using, cron=cron, every=every, at=at, timezone=timezone, payload=payload, **options
    )
