"""What an atomic handler passes to `on_commit`: the job is completed by then, and an error there is told and kept."""

import logging
from typing import Any

import pytest
from django.db import transaction

from django_jobs.models import DeadLetter, Job
from tests.support.effects.models import Effect

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("error", [ValueError("no mail server"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_after_the_commit_is_logged_and_kept_in_the_completed_job(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    def handler(payload: dict[str, Any]) -> str:
        Effect.objects.create(job_id="mark", fence=0, kind="row", at="2026-01-01T00:00Z")
        transaction.on_commit(fail)
        return "written"

    bench.handle("t.hooked", handler, atomic=True)
    with caplog.at_level(logging.ERROR):
        assert bench.run(bench.submit("t.hooked")) == ["completed"]
    job = Job.objects.get()
    assert (job.result, job.retry_count, Effect.objects.count()) == ("written", 0, 1)
    assert "on_commit failed" in job.error
    assert type(error).__name__ in job.error
    (record,) = [record for record in caplog.records if "on_commit failed" in record.getMessage()]
    assert record.exc_info
    assert record.exc_info[1] is error
    assert record.job_id == job.id  # type: ignore[attr-defined]
    assert not any("another worker" in record.getMessage() for record in caplog.records)
    assert not DeadLetter.objects.exists()


def test_hooks_behind_one_that_failed_are_called_only_if_they_are_robust(bench: Bench) -> None:
    called: list[str] = []

    def fail() -> None:
        called.append("failed")
        raise LookupError("gone")

    def handler(payload: dict[str, Any]) -> None:
        transaction.on_commit(lambda: called.append("before"))
        transaction.on_commit(fail)
        transaction.on_commit(lambda: called.append("behind"))
        transaction.on_commit(lambda: called.append("robust"), robust=True)

    bench.handle("t.hooked", handler, atomic=True)
    follower = bench.submit("t.hooked", job_id="first")
    bench.handle("t.follows", lambda payload: None)
    assert bench.run(follower, bench.submit("t.follows", depends_on=[follower])) == ["completed", "completed"]
    assert called == ["before", "failed", "robust"]


def test_hooks_of_a_handler_that_failed_or_lost_a_savepoint_are_not_called(bench: Bench) -> None:
    called: list[str] = []

    def handler(payload: dict[str, Any]) -> None:
        try:
            with transaction.atomic():
                transaction.on_commit(lambda: called.append("inner"))
                raise LookupError("the inner block")
        except LookupError:
            transaction.on_commit(lambda: called.append("outer"))
        if payload["fails"]:
            raise ValueError("the handler")

    bench.handle("t.hooked", handler, atomic=True, max_retries=0)
    jobs = [bench.submit("t.hooked", {"fails": fails}) for fails in (True, False)]
    assert bench.run(*jobs) == ["dead", "completed"]
    assert called == ["outer"]
