"""A workflow that sleeps gives its thread back, waits as SCHEDULED, and goes on behind its recorded steps."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_jobs.exceptions import JobsError
from django_jobs.models import Attempt, DeadLetter, Job, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.signals import job_failed, job_retried, job_started
from django_jobs.worker import context as context_module
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
SLOW = timedelta(days=14)


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


def handle(bench: Bench, function: Callable[..., Any], **options: Any) -> Job:
    bench.handle("t.flow", function, takes_context=True, **options)
    return bench.submit("t.flow", job_id="flow")


def asleep() -> Job:
    """Wait until the job sleeps, and return it."""
    wait_until(lambda: Attempt.objects.filter(outcome="waiting").exists(), 60, "the job to wait")
    return Job.objects.get()


def test_a_sleep_gives_the_thread_back_and_spends_no_retry(bench: Bench, calls: Counter[str]) -> None:
    cleaned = []

    def flow(context: Any, payload: Any) -> None:
        context.step("before", calls.update, ["before"])
        calls["runs"] += 1
        try:
            context.sleep("trial over", SLOW)
        except Exception:
            calls["seen"] += 1
            raise
        finally:
            cleaned.append(1)

    job = handle(bench, flow, max_retries=0)
    process = bench.start(threads=1)
    row = asleep()
    assert (row.status, row.retry_count, row.crash_count, row.error) == ("scheduled", 0, 0, None)
    step = JobStep.objects.get(kind="sleep")
    assert (step.name, step.state, step.due_at) == ("trial over", "waiting", row.available_at)
    assert step.due_at - step.started_at == SLOW
    assert (calls, cleaned) == ({"before": 1, "runs": 1}, [1])
    bench.handle("t.next", lambda payload: None)
    assert bench.submit("t.next").wait(60).status == "completed", "the only thread is free"
    assert process.state.failed == 0
    job.refresh_from_db()
    job.run_now()
    assert job.wait(60).status == "completed"
    assert (calls, len(cleaned)) == ({"before": 1, "runs": 2}, 2)
    step.refresh_from_db()
    assert step.state == "done"
    assert [*Attempt.objects.values_list("outcome", "number")] == [("waiting", 1)]


@pytest.mark.slow
def test_a_sleep_ends_by_the_databases_clock_from_its_first_call(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> None:
        context.sleep("a while", 0.4)
        context.sleep("a while", timedelta(seconds=0.3))
        calls["done"] += 1

    job = handle(bench, flow)
    assert bench.run(job) == ["completed"]
    job.refresh_from_db()
    first, second = JobStep.objects.all()
    assert (first.name, second.name) == ("a while", "a while#2")
    assert first.due_at is not None
    assert second.due_at is not None
    assert second.started_at >= first.due_at
    assert job.finished_at is not None
    assert job.finished_at >= second.due_at
    assert calls == {"done": 1}


@pytest.mark.parametrize(
    "until", [0, -5, timedelta(0), datetime(2020, 1, 1, tzinfo=UTC), datetime(1960, 1, 1, tzinfo=UTC)]
)
def test_a_sleep_whose_time_has_come_goes_on_at_once(bench: Bench, until: Any) -> None:
    assert bench.run(handle(bench, lambda context, payload: context.sleep("none", until))) == ["completed"]
    assert (Attempt.objects.count(), JobStep.objects.get().state) == (0, "done")


def test_a_sleep_until_a_moment(bench: Bench) -> None:
    moment = timezone.now() + timedelta(hours=3)
    handle(bench, lambda context, payload: context.sleep("until", moment))
    bench.start()
    due_at = asleep().available_at
    assert abs(due_at - moment) < timedelta(seconds=5)


@pytest.mark.parametrize("until", ["tomorrow", None, datetime(2030, 1, 1), 1e12, float("nan")])
def test_a_time_that_is_none_makes_the_job_dead(bench: Bench, until: Any) -> None:
    assert bench.run(handle(bench, lambda context, payload: context.sleep("bad", until))) == ["dead"]
    assert "sleep 'bad'" in str(Job.objects.get().error)
    assert not JobStep.objects.exists()


def test_a_sleep_that_the_handler_swallows_is_slept_all_the_same(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> None:
        try:
            context.sleep("night", SLOW)
        except BaseException:
            calls["swallowed"] += 1
        try:
            context.step("next", calls.update, ["next"])
        except BaseException:
            calls["swallowed"] += 1

    handle(bench, flow)
    bench.start()
    assert asleep().status == "scheduled"
    assert calls == {"swallowed": 2}


def test_an_error_while_a_sleeping_handler_cleans_up_is_a_failure(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> None:
        calls["runs"] += 1
        try:
            context.sleep("night", SLOW)
        finally:
            if calls["runs"] == 1:
                raise ValueError("in cleaning up")

    handle(bench, flow, base_delay=0.01)
    bench.start()
    assert asleep().retry_count == 1
    assert [*Attempt.objects.values_list("outcome", flat=True)] == ["failed", "waiting"]
    assert JobStep.objects.count() == 1


def test_a_job_that_sleeps_is_cancelled_at_once_and_sleeps_on_when_replayed(bench: Bench) -> None:
    job = handle(bench, lambda context, payload: context.sleep("night", SLOW))
    bench.start()
    due_at = asleep().available_at
    assert job.cancel() == "cancelled"
    job.replay()
    wait_until(lambda: Attempt.objects.filter(outcome="waiting").count() == 2, 60, "the job to wait again")
    assert Job.objects.get().available_at == due_at


def test_a_cancel_that_was_asked_for_while_it_ran_ends_a_job_that_goes_to_sleep(bench: Bench) -> None:
    go, started = threading.Event(), threading.Event()

    def flow(context: Any, payload: Any) -> None:
        started.set()
        go.wait(60)
        context.sleep("night", SLOW)

    job = handle(bench, flow)
    bench.start()
    assert started.wait(60)
    Job.objects.update(cancel_requested_at=DbNow())
    go.set()
    assert job.wait(60).status == "cancelled"


def test_dependents_and_the_unique_key_wait_with_the_job(bench: Bench) -> None:
    bench.handle("t.flow", lambda context, payload: context.sleep("night", SLOW), takes_context=True)
    bench.handle("t.next", lambda payload: None)
    job = bench.submit("t.flow", job_id="flow", unique_key="one")
    dependent = bench.submit("t.next", depends_on=[job])
    bench.start()
    wait_until(lambda: Attempt.objects.filter(outcome="waiting").exists(), 60)
    assert bench.submit("t.flow", unique_key="one").pk == job.pk
    job.run_now()
    assert dependent.wait(60).status == "completed"


def test_a_wait_sends_no_signal_but_the_start_of_each_run(bench: Bench) -> None:
    sent: list[str] = []

    def started(**kwargs: Any) -> None:
        sent.append("started")

    def other(**kwargs: Any) -> None:
        sent.append("other")

    job = handle(bench, lambda context, payload: context.sleep("short", 0.1))
    job_started.connect(started)
    job_failed.connect(other)
    job_retried.connect(other)
    try:
        assert bench.run(job) == ["completed"]
    finally:
        job_started.disconnect(started)
        job_failed.disconnect(other)
        job_retried.disconnect(other)
    assert sent == ["started", "started"]


@pytest.mark.slow
def test_a_step_that_is_recorded_makes_earlier_crashes_nought(bench: Bench) -> None:
    bench.handle("t.flow", lambda context, payload: context.step("one", int), takes_context=True, max_crashes=3)
    job = bench.submit("t.flow", job_id="flow")
    Job.objects.update(crash_count=2)
    assert bench.run(job) == ["completed"]
    assert Job.objects.get().crash_count == 0


def test_a_coroutine_sleeps_too(bench: Bench, calls: Counter[str]) -> None:
    async def flow(context: Any, payload: Any) -> None:
        await context.astep("before", calls.update, ["before"])
        await context.asleep("a while", 0.1)
        calls["done"] += 1

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert calls == {"before": 1, "done": 1}
    assert [*Attempt.objects.values_list("outcome", flat=True)] == ["waiting"]


def test_a_sleep_in_a_step_is_refused(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        try:
            context.step("outer", lambda: context.sleep("inner", 1))
        except JobsError:
            pass

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert DeadLetter.objects.get().reason == "failed by handler"
    assert not JobStep.objects.exists()


def test_a_step_is_one_statement_and_a_later_run_reads_the_records_in_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "SECONDS_BETWEEN_LOOKS", 3600.0)
    seen: list[list[str]] = []

    def flow(context: Any, payload: Any) -> None:
        with CaptureQueriesContext(connection) as queries:
            context.step("one", int)
            context.step("two", int)
        seen.append([query["sql"].split()[0] for query in queries])
        context.sleep("short", 0.01)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == [["INSERT", "INSERT"], ["SELECT"]]
