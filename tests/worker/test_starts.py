"""Threads that cannot start as they should: the process works around it, or ends with a message; it never just lives on."""

import os
from typing import Any

import pytest

from django_jobs.worker import cleanup
from django_jobs.worker.state import EXIT_RECYCLE
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_working_directory_that_cannot_be_opened_is_not_restored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if path == ".":
            raise PermissionError(13, "Permission denied", path)
        return original(path, *rest, **options)

    monkeypatch.setattr(cleanup.os, "open", refuse)
    bench.handle("t.ok", lambda payload: None)
    assert bench.run(bench.submit("t.ok"), bench.submit("t.ok"), threads=2) == ["completed", "completed"]


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError(24, "Too many open files")])
def test_a_thread_that_breaks_at_its_start_recycles_its_process(
    error: Exception, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: cleanup.HandlerCleanup) -> None:
        raise error

    monkeypatch.setattr(cleanup.HandlerCleanup, "begin", fail)
    process = bench.start()
    wait_until(lambda: process.is_stopping, 10, "the process stops")
    assert process.state.exit_code == EXIT_RECYCLE
    assert "broke" in caplog.text
    process.stop(grace=5)
