"""What error trackers get of a failure: the exception itself, by which they group, without the handler's variables."""

import gc
import logging
import weakref
from typing import Any

import pytest

from django_jobs import signals
from django_jobs.exceptions import HandlerNotFound
from django_jobs.models import Job
from django_jobs.text import format_traceback

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


class Gone(Exception):
    """Raised by the handler."""


class Large:
    """What a handler holds when it fails."""


def _deaths(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.module == "logs" and record.levelno == logging.ERROR]


@pytest.mark.slow
def test_the_record_of_a_death_has_the_exception_and_each_attempts_signal_has_its_own(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[BaseException] = []
    kept: list[weakref.ref[Large]] = []

    def handler(payload: dict[str, Any]) -> None:
        held = Large()
        kept.append(weakref.ref(held))
        try:
            raise LookupError("first")
        except LookupError as cause:
            raise Gone("then") from cause

    def receive(sender: type, exception: BaseException, **kwargs: Any) -> None:
        seen.append(exception)

    bench.handle("t.gone", handler, max_retries=1, base_delay=0)
    signals.job_failed.connect(receive)
    try:
        with caplog.at_level(logging.WARNING):
            assert bench.run(bench.submit("t.gone")) == ["dead"]
    finally:
        signals.job_failed.disconnect(receive)
    assert [type(error) for error in seen] == [Gone, Gone]
    (record,) = _deaths(caplog)
    assert record.exc_info
    assert record.exc_info[1] is seen[-1]
    assert "LookupError: first" in format_traceback(seen[-1])
    assert "in handler" in format_traceback(seen[-1])
    gc.collect()
    assert [reference() for reference in kept] == [None, None], "what the handler held is let go"
    retries = [record for record in caplog.records if record.module == "logs" and record.levelno == logging.WARNING]
    assert [record.exc_info for record in retries] == [None]


def test_a_coroutines_exception_is_in_the_record_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(payload: dict[str, Any]) -> None:
        raise Gone("from a coroutine")

    bench.handle("t.gone", handler, max_retries=0)
    with caplog.at_level(logging.WARNING):
        assert bench.run(bench.submit("t.gone")) == ["dead"]
    (record,) = _deaths(caplog)
    assert record.exc_info
    assert isinstance(record.exc_info[1], Gone)


def test_a_job_without_a_handler_dies_of_a_named_exception(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.handle("t.known", lambda payload: None)
    bench.submit("t.known", job_id="x")
    Job.objects.filter(pk="x").update(job_type="t.unknown")
    with caplog.at_level(logging.WARNING):
        assert bench.run(Job.objects.get(pk="x")) == ["failed"]
    (record,) = _deaths(caplog)
    assert record.exc_info
    assert isinstance(record.exc_info[1], HandlerNotFound)
