"""`django_jobs.testing`: jobs run inside a test's own transaction, on every database, without threads and sleeps."""

import threading
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

import django_jobs
from django_jobs import BulkFailure, Cancelled, Fail, Limit, Retry, Snooze, signals
from django_jobs.exceptions import HandlerNotFound, InvalidJob, JobsError
from django_jobs.handlers import make_handler, registry
from django_jobs.lifecycle.queues import pause
from django_jobs.models import Attempt, DeadLetter, Job, JobStatus, Queue, WorkerProcess
from django_jobs.queue import Scheduler
from django_jobs.testing import (
    adrain,
    advance_time,
    arun_due,
    assert_submitted,
    crash_after,
    drain,
    make_job,
    refute_submitted,
    run_due,
    tick_schedules,
)
from tests.support.effects import tasks
from tests.support.effects.jobs import record
from tests.support.effects.models import Effect

pytest_plugins = ["django_jobs.testing.plugin"]
pytestmark = pytest.mark.django_db


@pytest.fixture
def handle() -> Any:
    """Register a function as the handler of a type until the test ends."""
    names = []

    def register(job_type: str, function: Any, **options: Any) -> None:
        registry.register(make_handler(function, job_type, options))
        names.append(job_type)

    yield register
    for name in names:
        registry.forget(name)


# --- run_due


def test_a_bulk_handler_gets_lists_of_one_queue_up_to_its_size(handle: Any) -> None:
    lists = []
    handle("kit.bulk", lambda payloads: lists.append([payload["n"] for payload in payloads]), bulk=3)
    for n in range(5):
        django_jobs.submit("kit.bulk", {"n": n})
        django_jobs.submit("effects.record", priority=5 + n)
    django_jobs.submit("kit.bulk", {"n": 9}, queue="other")
    assert {job.status for job in run_due()} == {"completed"}
    assert sorted(lists) == [[0, 1, 2], [3, 4], [9]]


def test_what_a_bulk_handler_names_reaches_the_test_and_what_only_steers_does_not(handle: Any) -> None:
    errors: list[Any] = [Retry(after=60), "no such product"]

    def fails(payloads: Any) -> None:
        raise BulkFailure({1: errors.pop(0)})

    handle("kit.bulk", fails, bulk=3, max_retries=0)
    for number in range(2):
        for _ in range(2):
            django_jobs.submit("kit.bulk", max_retries=1 - number)
        if number:
            with pytest.raises(BulkFailure, match="no such product"):
                run_due()
        else:
            assert [job.status for job in run_due()] == ["completed", "scheduled"]
    assert sorted(Job.objects.values_list("status", flat=True)) == ["completed", "completed", "dead", "scheduled"]


def test_a_limit_makes_shorter_lists_and_all_of_them_run(handle: Any) -> None:
    sizes = []
    handle("kit.bulk", lambda payloads: sizes.append(len(payloads)), bulk=10, limit=Limit(concurrency=2))
    for _ in range(5):
        django_jobs.submit("kit.bulk")
    assert [job.status for job in run_due()] == ["completed"] * 5
    assert sizes == [2, 2, 1]


def test_an_atomic_bulk_handler_runs_in_the_transaction_of_the_test(handle: Any) -> None:
    def handler(contexts: list[Any]) -> None:
        for context in contexts:
            context.report_progress(0.5)

    handle("kit.bulk", handler, bulk=3, atomic=True, takes_context=True)
    for _ in range(3):
        django_jobs.submit("kit.bulk")
    assert [job.status for job in run_due()] == ["completed"] * 3


def test_due_jobs_run_in_claim_order_and_leave_no_process_behind() -> None:
    ids = [django_jobs.submit("effects.record", {"result": n}, priority=n).id for n in (3, 9, 5)]
    ran = run_due()
    assert [job.id for job in ran] == [ids[1], ids[2], ids[0]]
    assert [(job.status, job.result) for job in ran] == [("completed", 9), ("completed", 5), ("completed", 3)]
    assert (Effect.objects.count(), WorkerProcess.objects.count()) == (3, 0)


def test_everything_happens_in_the_calling_thread_and_in_the_transaction_of_the_test(handle: Any) -> None:
    seen = []
    handle("kit.where", lambda payload: seen.append((threading.current_thread(), connection.in_atomic_block)))
    django_jobs.submit("kit.where")
    run_due()
    assert seen == [(threading.current_thread(), True)]


def test_the_handlers_own_exception_reaches_the_test_once_it_is_recorded() -> None:
    job = django_jobs.submit("effects.fail", {"message": "no such user"})
    with pytest.raises(ValueError, match=r"^no such user$") as error:
        run_due()
    assert error.traceback[-1].name == "fail", "the traceback leads into the handler"
    job.refresh_from_db()
    assert (job.status, job.retry_count) == (JobStatus.SCHEDULED, 1)
    assert Attempt.objects.get(job=job).error == "ValueError: no such user"


def test_without_reraise_a_failure_is_an_outcome_like_another() -> None:
    django_jobs.submit("effects.fail", max_retries=0)
    django_jobs.submit("effects.record")
    assert [job.status for job in run_due(reraise=False)] == ["dead", "completed"]
    assert DeadLetter.objects.open().count() == 1


@pytest.mark.parametrize(
    ("steer", "status"),
    [(Retry(after=60), "scheduled"), (Snooze(60), "scheduled"), (Cancelled(), "cancelled")],
    ids=["retry", "snooze", "cancelled"],
)
def test_what_only_steers_the_job_is_not_raised(handle: Any, steer: Exception, status: str) -> None:
    def raises(payload: Any) -> None:
        raise steer

    handle("kit.steer", raises)
    django_jobs.submit("kit.steer")
    assert [job.status for job in run_due()] == [status]


def test_giving_up_is_raised(handle: Any) -> None:
    def gives_up(payload: Any) -> None:
        raise Fail("no use")

    handle("kit.fail", gives_up)
    django_jobs.submit("kit.fail")
    with pytest.raises(Fail, match="no use"):
        run_due()


def test_a_result_that_is_no_json_is_reported(handle: Any) -> None:
    handle("kit.bad", lambda payload: {1, 2})
    job = django_jobs.submit("kit.bad")
    with pytest.raises(JobsError, match="result"):
        run_due()
    assert Job.objects.get(pk=job.pk).status == JobStatus.DEAD


def test_a_job_without_a_handler_is_reported() -> None:
    make_job("effects.recrod")
    with pytest.raises(HandlerNotFound, match=r"Did you mean 'effects\.record"):
        run_due()


def test_only_the_named_queue_or_type_runs_and_no_paused_queue() -> None:
    for queue in ("mail", "other", "paused"):
        django_jobs.submit("effects.record", queue=queue)
    django_jobs.submit("effects.fail", queue="mail")
    pause("paused")
    assert [job.queue for job in run_due(queue="other")] == ["other"]
    assert [job.queue for job in run_due(job_type=record)] == ["mail"]
    with pytest.raises(ValueError, match="as it was told"):
        run_due()
    assert run_due() == []
    assert Job.objects.get(queue="paused").status == JobStatus.PENDING


def test_a_failed_statement_in_a_handler_leaves_the_test_a_working_transaction(handle: Any) -> None:
    def clash(payload: Any) -> None:
        Queue.objects.create(name="twice")
        Queue.objects.create(name="twice")

    handle("kit.clash", clash)
    handle("kit.clash_atomic", clash, atomic=True)
    for job_type in ("kit.clash", "kit.clash_atomic"):
        Queue.objects.filter(name="twice").delete()
        django_jobs.submit(job_type, max_retries=0)
        with pytest.raises(IntegrityError):
            run_due()
        assert Job.objects.get(job_type=job_type).status == JobStatus.DEAD
    assert not Queue.objects.filter(name="twice").exists(), "the atomic handler's own writes are undone"


def test_an_atomic_handler_runs_and_completes() -> None:
    django_jobs.submit("effects.record_atomic", {"result": 7})
    assert [(job.status, job.result) for job in run_due()] == [("completed", 7)]
    assert Effect.objects.count() == 1


def test_an_atomic_handler_below_a_transaction_of_the_tests_own_says_why_it_cannot_run() -> None:
    django_jobs.submit("effects.record_atomic", max_retries=0)
    with transaction.atomic(), pytest.raises(JobsError, match="durable"):
        run_due()


def test_what_waits_for_a_commit_happens_and_signals_are_sent(handle: Any) -> None:
    after: list[str] = []

    def record_end(sender: Any, job: Job, **kwargs: Any) -> None:
        after.append(f"{job.job_type} completed")

    handle("kit.commit", lambda payload: transaction.on_commit(lambda: after.append("committed")))
    signals.job_completed.connect(record_end)
    try:
        django_jobs.submit("kit.commit")
        run_due()
    finally:
        signals.job_completed.disconnect(record_end)
    assert after == ["committed", "kit.commit completed"]


def test_progress_of_a_running_job_is_kept(handle: Any) -> None:
    handle("kit.progress", lambda context, payload: context.report_progress(0.5, "half"), takes_context=True)
    django_jobs.submit("kit.progress")
    (job,) = run_due()
    assert (job.progress, job.progress_message) == (0.5, "half")


def test_a_handler_may_cancel_the_job_after_it(handle: Any) -> None:
    second = django_jobs.submit("effects.record", priority=1)
    handle("kit.cancel", lambda payload: second.cancel() and None)
    first = django_jobs.submit("kit.cancel", priority=9)
    assert [job.id for job in run_due()] == [first.id]


@pytest.mark.django_db(transaction=True)
def test_it_works_without_a_transaction_too() -> None:
    django_jobs.submit("effects.record")
    django_jobs.submit("effects.record_atomic")
    assert [job.status for job in run_due()] == ["completed", "completed"]
    assert WorkerProcess.objects.count() == 0


def test_an_async_test_runs_sync_and_async_handlers() -> None:
    async def an_async_test() -> list[Job]:
        await django_jobs.asubmit("effects.record_async", {"result": 1}, priority=9)
        await django_jobs.asubmit("effects.record", {"result": 2})
        ran = await arun_due(job_type="effects.record_async")
        assert await Effect.objects.acount() == 1
        return [*ran, *await adrain()]

    assert [job.result for job in async_to_sync(an_async_test)()] == [1, 2]


# --- drain, time


def test_drain_runs_what_jobs_submit_and_wake(handle: Any) -> None:
    handle("kit.parent", lambda payload: {"child": django_jobs.submit("effects.record").id})
    parent = django_jobs.submit("kit.parent")
    django_jobs.submit("effects.record", job_id="after", depends_on=[parent])
    assert [job.id for job in run_due()] == [parent.id], "one call runs what was due when it began"
    assert {job.id for job in drain()} == {"after", Job.objects.get(pk=parent.id).result["child"]}
    assert drain() == []


def test_drain_says_so_when_there_is_no_end(handle: Any) -> None:
    def snoozes(payload: Any) -> None:
        raise Snooze(0)

    handle("kit.forever", snoozes)
    django_jobs.submit("kit.forever")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_jobs.testing.run.MOST_RUNS", 5)
        with pytest.raises(AssertionError, match=r"no end; the last job was kit\.forever"):
            drain()


def test_a_dependent_of_a_dead_job_fails_in_the_same_call() -> None:
    dead = django_jobs.submit("effects.fail", max_retries=0)
    after = django_jobs.submit("effects.record", depends_on=[dead])
    with pytest.raises(ValueError, match="as it was told"):
        drain()
    assert Job.objects.get(pk=after.pk).status == JobStatus.FAILED


def test_time_goes_by_for_scheduled_jobs() -> None:
    job = django_jobs.submit("effects.record", delay=timedelta(days=3))
    advance_time(timedelta(days=2, hours=23))
    assert run_due() == []
    advance_time(timedelta(hours=1))
    assert [one.id for one in run_due()] == [job.id]


def test_retries_run_out_as_time_goes_by() -> None:
    django_jobs.submit("effects.fail", max_retries=2)
    for status in ("scheduled", "scheduled", "dead"):
        assert [job.status for job in drain(reraise=False)] == [status]
        advance_time(timedelta(hours=2))
    assert DeadLetter.objects.get().died_at < timezone.now() - timedelta(hours=1), "dead letters grow old too"


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="forward"):
        advance_time(timedelta(seconds=-1))


def test_schedules_tick_when_they_are_asked_to_and_once_a_tick() -> None:
    Scheduler().schedule_interval("minutely", "effects.record", 60, {"result": 1})
    assert tick_schedules() == []
    for _ in range(3):
        advance_time(timedelta(seconds=60))
        assert run_due() == [], "running jobs makes no ticks"
        (made,) = tick_schedules()
        assert tick_schedules() == []
        assert [job.id for job in run_due()] == [made.id]


# --- assert_submitted


def test_a_submitted_job_is_found_by_what_was_said_of_it() -> None:
    first = django_jobs.submit("effects.record", {"user": 1})
    job = django_jobs.submit(
        "effects.record", {"user": 7, "at": "x"}, queue="mail", priority=9, unique_key="k", depends_on=[first],
        metadata={"tenant": "a", "trace": "b"}, max_retries=1, timeout_seconds=3, job_id="j",
    )  # fmt: skip
    found = assert_submitted(
        record, {"user": 7, "at": ANY}, queue="mail", priority=9, unique_key="k", depends_on=[first], job_id="j",
        metadata={"tenant": "a"}, max_retries=1, timeout_seconds=3, status="pending", count=1,
    )  # fmt: skip
    assert found.id == job.id
    assert assert_submitted("effects.record", count=2).id == job.id, "the newest"
    drain()
    assert_submitted("effects.record", {"user": 1})


def test_what_was_submitted_instead_is_reported() -> None:
    with pytest.raises(AssertionError, match="There are no jobs at all"):
        assert_submitted("effects.record")
    django_jobs.submit("effects.record", {"user": 8}, queue="mail")
    with pytest.raises(
        AssertionError, match=r"a job of type 'effects.record' with payload=\{'user': 7\}: 0 submitted"
    ) as error:
        assert_submitted("effects.record", {"user": 7})
    assert "payload={'user': 8} queue='mail'" in str(error.value)
    with pytest.raises(AssertionError, match=r"Submitted were: effects\.record"):
        assert_submitted("effects.fail")
    with pytest.raises(AssertionError, match="Did you mean"):
        assert_submitted("effects.recrod")


@pytest.mark.parametrize(
    "expected",
    [
        {"count": 2},
        {"count": 0},
        {"queue": "mail"},
        {"metadata": {"tenant": "b"}},
        {"metadata": {"no": 1}},
        {"payload": None},
    ],
)
def test_a_job_that_does_not_fit_is_no_find(expected: dict[str, Any]) -> None:
    django_jobs.submit("effects.record", {"user": 8}, metadata={"tenant": "a"})
    with pytest.raises(AssertionError):
        assert_submitted("effects.record", **expected)


def test_refute_fails_for_a_job_that_fits_only() -> None:
    django_jobs.submit("effects.record", {"user": 8})
    refute_submitted("effects.fail")
    refute_submitted("effects.record", {"user": 7})
    refute_submitted("effects.record", queue="mail")
    with pytest.raises(AssertionError, match=r"no job of type 'effects\.record'"):
        refute_submitted("effects.record", {"user": 8})


def test_a_misspelt_type_or_keyword_proves_nothing() -> None:
    with pytest.raises(HandlerNotFound, match="Did you mean"):
        refute_submitted("effects.recrod")
    with pytest.raises(TypeError, match="Did you mean 'queue'"):
        refute_submitted("effects.record", queu="mail")


# --- make_job, fixture


@pytest.mark.parametrize("status", JobStatus.values)
def test_a_job_is_made_in_any_status(status: str) -> None:
    job = make_job("reports.build", {"n": 1}, status=status, result=[1], error="OSError: away", queue="mail")
    assert (job.status, job.queue, job.payload) == (status, "mail", {"n": 1})
    assert (job.result == [1]) == (status == "completed")
    assert (job.error == "OSError: away") == (status in ("dead", "failed"))
    assert job.is_finished == (job.finished_at is not None)
    assert DeadLetter.objects.open().filter(job=job).count() == (status == "dead")
    assert WorkerProcess.objects.count() == (status == "running")


def test_a_dead_job_that_was_made_can_be_replayed_and_run() -> None:
    make_job(record, status="dead").replay()
    assert [job.status for job in run_due()] == ["completed"]


def test_a_status_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidJob, match="give one of pending"):
        make_job("effects.record", status="done")


def test_the_fixture_brings_the_database_and_the_kit(jobs: Any) -> None:
    django_jobs.submit("effects.record")
    assert [job.status for job in jobs.run_due()] == ["completed"]
    jobs.assert_submitted("effects.record")


@pytest.mark.parametrize("wrong", [None, 7, object(), lambda payload: None])
def test_what_has_no_job_type_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="give a job type, a function with @job or a task"):
        assert_submitted(wrong)
    with pytest.raises(TypeError, match="give a job type"):
        refute_submitted(wrong)


def test_a_task_is_asserted_as_itself() -> None:
    job_id = tasks.add.enqueue(1, 2).id
    assert assert_submitted(tasks.add, {"args": [1, 2], "kwargs": {}}).id == job_id
    refute_submitted(tasks.add, {"args": [3], "kwargs": {}})


# --- workflows


def test_a_workflow_runs_to_its_next_wait_and_dies_where_the_test_wants(handle: Any) -> None:
    calls: list[str] = []

    def flow(context: Any, payload: Any) -> Any:
        context.step("charge", calls.append, "charge")
        context.step("mail", calls.append, "mail", atomic=True)
        context.sleep("a week", timedelta(days=7))
        return context.wait_for_event("approved", timeout=timedelta(days=1))

    handle("kit.flow", flow, takes_context=True)
    job = django_jobs.submit("kit.flow")
    for name in ("charge", "mail"):
        with crash_after(name):
            run_due()
        job.refresh_from_db()
        assert (job.status, job.crash_count) == (JobStatus.SCHEDULED, 1)
    assert [ran.status for ran in run_due()] == ["scheduled"]
    assert calls == ["charge", "mail"]
    assert run_due() == []
    advance_time(timedelta(days=8))
    assert [ran.status for ran in drain()] == ["scheduled"]
    django_jobs.emit("approved", payload={"by": "ada"})
    assert [ran.result for ran in run_due()] == [{"by": "ada"}]
    assert [*Attempt.objects.values_list("outcome", flat=True)] == ["crashed", "crashed", "waiting", "waiting"]


def test_time_that_goes_by_ends_the_wait_for_an_event(handle: Any) -> None:
    handle("kit.flow", lambda context, payload: context.wait_for_event("never", timeout=60), takes_context=True)
    django_jobs.submit("kit.flow")
    run_due()
    advance_time(timedelta(seconds=61))
    assert [(ran.status, ran.result) for ran in run_due()] == [("completed", None)]


def test_a_crash_after_a_step_that_never_came_fails(handle: Any) -> None:
    with pytest.raises(AssertionError, match="no step 'other'"), crash_after("other"):
        run_due()


def test_a_coroutine_workflow_runs_in_the_kit(handle: Any) -> None:
    async def flow(context: Any, payload: Any) -> Any:
        first = await context.astep("one", lambda: 1)
        await context.asleep("short", 5)
        return first

    handle("kit.flow", flow, takes_context=True)
    django_jobs.submit("kit.flow")
    assert [ran.status for ran in run_due()] == ["scheduled"]
    advance_time(timedelta(seconds=6))
    assert [ran.result for ran in run_due()] == [1]
