"""Tracing: from a request through submit to the handler, in whatever thread or process it runs, it is one trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import django_jobs
from django_jobs import NewJob, Snooze, signals
from django_jobs.handlers import make_handler, registry
from django_jobs.models import Job
from django_jobs.monitoring import tracing
from django_jobs.testing import advance_time, drain, run_due
from tests.support.in_process import running_process
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))


def order(request: HttpRequest) -> HttpResponse:
    """A site's view under a site's instrumentation."""
    with trace.get_tracer("site").start_as_current_span("GET /order"):
        return HttpResponse(django_jobs.submit(request.GET["type"], request.GET.dict()).id)


urlpatterns = [path("order", order)]


@pytest.fixture(autouse=True)
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trace, "get_tracer", PROVIDER.get_tracer)
    EXPORTER.clear()
    yield
    EXPORTER.clear()


@contextmanager
def handler(job_type: str, function: Any, **options: Any) -> Iterator[None]:
    registry.register(make_handler(function, job_type, options))
    try:
        yield
    finally:
        registry.forget(job_type)


def span(name: str) -> ReadableSpan:
    (found,) = [one for one in EXPORTER.get_finished_spans() if one.name == name]
    return found


def inner(payload: dict[str, Any]) -> None:
    with trace.get_tracer("site").start_as_current_span("inner"):
        pass


async def ainner(payload: dict[str, Any]) -> None:
    inner(payload)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("function", "options"),
    [(inner, {}), (inner, {"atomic": True}), (ainner, {})],
    ids=["thread", "atomic", "coroutine"],
)
@pytest.mark.slow
def test_a_trace_runs_unbroken_from_a_request_through_a_worker_to_the_handler(
    function: Any, options: dict[str, Any]
) -> None:
    with handler("trace.job", function, **options), running_process():
        job_id = Client().get("/order", {"type": "trace.job"}).content.decode()
        wait_until(lambda: Job.objects.get(pk=job_id).status == "completed", timeout=60)
    request, run, own = span("GET /order"), span("run trace.job"), span("inner")
    assert run.context.trace_id == own.context.trace_id == request.context.trace_id
    assert run.parent is not None
    assert own.parent is not None
    assert (run.parent.span_id, own.parent.span_id) == (request.context.span_id, run.context.span_id)
    assert run.kind == SpanKind.CONSUMER
    assert run.attributes is not None
    assert run.attributes["messaging.message.id"] == job_id
    assert run.attributes["django_jobs.attempt"] == 1
    assert run.status.status_code == StatusCode.UNSET


def test_every_way_to_submit_carries_the_trace() -> None:
    with trace.get_tracer("site").start_as_current_span("many"):
        django_jobs.submit_many([NewJob("effects.record", {}), NewJob("effects.record", {}, metadata={"tenant": "a"})])
        django_jobs.submit("effects.record", delay=5)
    assert {len(job.metadata["trace"]["traceparent"]) for job in Job.objects.all()} == {55}
    assert Job.objects.filter(metadata__tenant="a").count() == 1
    run_due()
    assert len([one for one in EXPORTER.get_finished_spans() if one.name == "run effects.record"]) == 2


def test_a_list_begins_a_trace_that_links_those_of_its_submits() -> None:
    with handler("trace.bulk", lambda payloads: None, bulk=10):
        for name in ("one", "two"):
            with trace.get_tracer("site").start_as_current_span(name):
                django_jobs.submit("trace.bulk")
        django_jobs.submit("trace.bulk")
        run_due()
    run = span("run trace.bulk")
    requests = [span(name).context.trace_id for name in ("one", "two")]
    assert [link.context.trace_id for link in run.links] == requests
    assert run.parent is None
    assert run.context.trace_id not in requests
    assert (run.attributes or {})["messaging.batch.message_count"] == 3


def test_a_failure_is_an_error_of_its_span_and_a_retry_a_span_of_the_same_trace() -> None:
    with trace.get_tracer("site").start_as_current_span("request"):
        django_jobs.submit("effects.flaky", {"failures": 1})
    drain(reraise=False)
    advance_time(timedelta(hours=1))
    drain()
    first, second = [one for one in EXPORTER.get_finished_spans() if one.name == "run effects.flaky"]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert [event.name for event in first.events] == ["exception"]
    assert first.context.trace_id == second.context.trace_id == span("request").context.trace_id


def test_what_only_steers_the_job_is_no_error() -> None:
    def snoozes(payload: Any) -> None:
        raise Snooze(60)

    with handler("trace.snooze", snoozes):
        with trace.get_tracer("site").start_as_current_span("request"):
            django_jobs.submit("trace.snooze")
        run_due()
    assert span("run trace.snooze").status.status_code == StatusCode.UNSET


def test_a_submit_outside_of_a_span_carries_nothing_and_makes_no_span() -> None:
    assert django_jobs.submit("effects.record").metadata == {}
    run_due()
    assert EXPORTER.get_finished_spans() == ()


def test_metadata_of_the_sites_own_of_that_name_are_left_alone() -> None:
    with trace.get_tracer("site").start_as_current_span("request"):
        assert django_jobs.submit("effects.record", metadata={"trace": "mine"}).metadata == {"trace": "mine"}
    (job,) = run_due()
    assert (job.status, len(EXPORTER.get_finished_spans())) == ("completed", 1)


def test_disconnected_it_carries_nothing() -> None:
    tracing.disconnect()
    try:
        with trace.get_tracer("site").start_as_current_span("request"):
            assert django_jobs.submit("effects.record").metadata == {}
    finally:
        tracing.connect()


def test_the_job_given_to_receivers_has_the_trace_too() -> None:
    seen: list[Job] = []

    def receive(job: Job, **kwargs: Any) -> None:
        seen.append(job)

    signals.job_submitted.connect(receive)
    try:
        with trace.get_tracer("site").start_as_current_span("request"):
            job = django_jobs.submit("effects.record")
    finally:
        signals.job_submitted.disconnect(receive)
    assert seen[0].metadata == job.metadata == Job.objects.get().metadata != {}
