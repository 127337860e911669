"""The public functions: declare a handler, submit jobs. Models are imported at the call, so this is safe at start-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from asgiref.sync import sync_to_async

from django_jobs.handlers import make_handler, registry
from django_jobs.scheduling.spec import declare
from django_jobs.submission import NewJob, SubmitOptions

if TYPE_CHECKING:
    from django_jobs.models import Job

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class JobFunction(Protocol[P, R]):
    """A handler as `@job` returns it: the function itself, with its submit methods."""

    __name__: str
    job_type: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def submit(self, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]) -> Job:
        """Submit a job of this type; the options are those of `django_jobs.submit`."""

    async def asubmit(self, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]) -> Job:
        """Submit a job of this type from async code."""


@overload
def job(function: Callable[P, R], /) -> JobFunction[P, R]: ...


@overload
def job(
    job_type: str | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
    max_retries: int | None = None,
    timeout_seconds: float | None = None,
    base_delay: float | None = None,
    max_delay: float | None = None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
    fail_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    atomic: bool = False,
    isolation: str = "thread",
    takes_context: bool = False,
    dead_letter: bool | None = None,
    max_crashes: int | None = None,
    every: timedelta | float | None = None,
    cron: str | None = None,
    timezone: str | None = None,
) -> Callable[[Callable[P, R]], JobFunction[P, R]]: ...


def job(job_type: Any = None, **options: Any) -> Any:
    """Register a function as the handler of a job type and return the function itself.

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
        takes_context: call the handler with (context, payload) instead of (payload).
        dead_letter: False lets jobs end FAILED, without a dead letter for an operator.
        max_crashes: how many starts may kill their process before the job is dead.
        every, cron: declare a schedule of this name too, at an interval or by a cron expression in `timezone`.

    Raises InvalidJob for unknown or wrong options, and when another function holds the job type.
    """
    if callable(job_type):
        return _register(job_type, None, options)

    def decorate(function: Callable[P, R]) -> JobFunction[P, R]:
        return _register(function, job_type, options)

    return decorate


def _register(function: Callable[P, R], job_type: str | None, options: dict[str, Any]) -> JobFunction[P, R]:
    timing = {key: options.pop(key) for key in ("every", "cron", "timezone") if key in options}
    name = registry.register(make_handler(function, job_type, options)).job_type
    if timing:
        declare(name, name, **timing)

    def submit_this(payload: Mapping[str, Any] | None = None, **given: Unpack[SubmitOptions]) -> Job:
        return submit(name, payload, **given)

    async def asubmit_this(payload: Mapping[str, Any] | None = None, **given: Unpack[SubmitOptions]) -> Job:
        return await asubmit(name, payload, **given)

    decorated = cast(Any, function)
    decorated.job_type = name
    decorated.submit = submit_this
    decorated.asubmit = asubmit_this
    return cast(JobFunction[P, R], decorated)


def submit(job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]) -> Job:
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

    Raises InvalidJob, a ValueError, with every problem of the call; nothing is written then.
    """
    from django_jobs.lifecycle import submit as lifecycle

    return lifecycle.submit(job_type, payload, options=options)


async def asubmit(job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]) -> Job:
    """Submit from async code; see `submit`."""
    return await sync_to_async(submit)(job_type, payload, **options)


def submit_many(new_jobs: Iterable[NewJob]) -> list[Job]:
    """Write all of the jobs in one transaction, or none, and return them in the order given.

    Jobs may depend on each other by `job_id`, forward references included. Raises InvalidJob that names the index of each bad
    item, and CycleError with the path of a circle.
    """
    from django_jobs.lifecycle import submit as lifecycle

    return lifecycle.submit_many(new_jobs)


async def asubmit_many(new_jobs: Iterable[NewJob]) -> list[Job]:
    """Submit many from async code; see `submit_many`."""
    return await sync_to_async(submit_many)(new_jobs)


def schedule(
    name: str,
    job_type: str,
    *,
    cron: str | None = None,
    every: timedelta | float | None = None,
    at: datetime | None = None,
    timezone: str | None = None,
    payload: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Declare a schedule in code, usually in a `jobs.py`; it is written on `migrate` and at worker start.

    Args:
        name: what the row is called; an operator's pause of it is kept.
        cron: five fields or `@daily` and friends; every: a timedelta or seconds; at: one aware datetime. Exactly one.
        timezone: the zone of a cron expression; the site's by default.
        options: queue, priority, max_retries, timeout_seconds, metadata, catch_up, grace_seconds, overlap, jitter_seconds.

    Raises InvalidJob when something is wrong with it.
    """
    declare(name, job_type, cron=cron, every=every, at=at, timezone=timezone, payload=payload, **options)
