"""OpenTelemetry (extra `tracing`): a job's run is a span of the trace in which the job was submitted.

Connected at start-up where opentelemetry-api is installed. A submit outside of a span carries nothing and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject

from django_jobs import propagation
from django_jobs.exceptions import Cancelled, Retry, Snooze, Waiting
from django_jobs.handlers import Handler
from django_jobs.lifecycle.claim import ClaimedJob

_STEERING = (Retry, Snooze, Cancelled, Waiting)


def connect() -> None:
    """Carry the active span from each submit to its run, in this process."""
    propagation.connect(_carry, _follow)


def disconnect() -> None:
    """End what `connect` began."""
    propagation.connect(None, None)


def _carry() -> dict[str, str]:
    """Return what the site's propagator writes for the active span; nothing without one."""
    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        inject(carrier)
    return carrier


def _span_context(carrier: dict[str, str]) -> trace.SpanContext:
    return trace.get_current_span(extract(carrier)).get_span_context()


def _follow(jobs: Sequence[ClaimedJob], handler: Handler, carried: list[dict[str, str]]) -> Callable[..., Any]:
    """Return the handler's function inside a span; what only steers the job is no error of the span.

    The span of one job is a child of its submit's. That of a list begins a trace, with links to those of the submits.
    """
    function = handler.function
    job = jobs[0]
    of_one: dict[str, Any] = {"messaging.message.id": job.id, "django_jobs.attempt": job.attempt}
    of_many: dict[str, Any] = {"messaging.batch.message_count": len(jobs)}

    def span() -> Any:
        return trace.get_tracer("django_jobs").start_as_current_span(
            f"run {job.job_type}",
            context=extract(carried[0]) if handler.bulk is None else Context(),
            links=[] if handler.bulk is None else [trace.Link(_span_context(carrier)) for carrier in carried],
            kind=trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "django_jobs",
                "messaging.operation.type": "process",
                "messaging.destination.name": job.queue,
                "django_jobs.job_type": job.job_type,
                **(of_one if handler.bulk is None else of_many),
            },
            record_exception=False,
            set_status_on_exception=False,
        )

    def record(active: trace.Span, error: BaseException) -> None:
        if not isinstance(error, _STEERING):
            active.record_exception(error)
            active.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))

    @wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        with span() as active:
            try:
                return function(*arguments, **keywords)
            except BaseException as error:
                record(active, error)
                raise

    @wraps(function)
    async def arun(*arguments: Any, **keywords: Any) -> Any:
        with span() as active:
            try:
                return await function(*arguments, **keywords)
            except BaseException as error:
                record(active, error)
                raise

    return arun if handler.is_async else run
