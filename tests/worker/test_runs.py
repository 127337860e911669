"""What comes of a run: each way a handler can end, in a real worker thread, on each database."""

import contextvars
import os
import sys
import threading
import time
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone, translation

from django_jobs import Cancelled, Fail, Retry, Snooze, signals, submit
from django_jobs.exceptions import TimedOut
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.models import Attempt, DeadLetter, Job, WorkerProcess
from django_jobs.worker import executor, thread
from django_jobs.worker.run import Run
from django_jobs.worker.settler import Settler
from tests.support.factories import JobFactory
from tests.support.waiting import wait_until

from .conftest import Bench, let_its_time_be_over

pytestmark = pytest.mark.django_db(transaction=True)


def raiser(error: BaseException) -> Any:
    def handler(payload: dict[str, Any]) -> None:
        raise error

    return handler


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_result_is_stored_and_a_clean_success_leaves_no_other_row(bench: Bench) -> None:
    bench.handle("t.ok", lambda payload: {"twice": payload["n"] * 2})
    job = bench.submit("t.ok", {"n": 21})
    assert bench.run(job) == ["completed"]
    assert (job.result, job.error, job.fence) == ({"twice": 42}, None, 2)
    assert Attempt.objects.count() == DeadLetter.objects.count() == 0
    wait_until(lambda: not WorkerProcess.objects.exists(), what="the process to leave in order")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        RecursionError("deep"),
        MemoryError(),
        Unprintable(),
        ValueError("NUL \0 and \ud800"),
        ValueError("x" * 1_000_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_handler_raises_is_a_normal_failure(bench: Bench, error: BaseException) -> None:
    bench.handle("t.bad", raiser(error), max_retries=0)
    bench.handle("t.ok", lambda payload: 1)
    bad = bench.submit("t.bad", priority=9)
    good = [bench.submit("t.ok") for _ in range(20)]
    assert bench.run(bad, *good) == ["dead", *["completed"] * 20]
    dead_letter = DeadLetter.objects.get()
    assert dead_letter.reason == "retries exhausted"
    assert type(error).__name__ in dead_letter.error
    assert len(dead_letter.error) < 5000
    assert "\0" not in dead_letter.error
    assert dead_letter.fingerprint


def test_slow_jobs_among_quick_ones_keep_no_others_waiting_while_a_thread_is_free(bench: Bench) -> None:
    released = threading.Event()
    bench.handle("t.quick", lambda payload: None)
    bench.handle("t.slow", lambda payload: released.wait(60) and None)
    quick = [bench.submit("t.quick", priority=9) for _ in range(300)]
    slow = [bench.submit("t.slow") for _ in range(3)]
    last = bench.submit("t.quick", priority=1)
    bench.start(threads=4)
    for job in [*quick[-1:], last]:
        assert job.wait(60).status == "completed", "the fourth thread runs it"
    released.set()
    for job in slow:
        assert job.wait(60).status == "completed"


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("seconds", [3600.0, 0.0])
def test_a_chain_goes_on_without_looking_for_work_but_not_for_long(
    bench: Bench, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "PATIENCE_SECONDS", seconds)
    looks = mock.Mock(side_effect=claim)
    monkeypatch.setattr(thread, "claim", looks)
    monkeypatch.setattr(Settler, "try_to_settle", lambda *args: None)  # the watchdog's, which claims nothing with it
    bench.handle("t.ok", lambda payload: None)
    jobs = [bench.submit("t.ok", delay=timedelta(days=1))]
    for _ in range(9):
        jobs.append(bench.submit("t.ok", depends_on=[jobs[-1]]))
    bench.start()
    jobs[0].run_now()
    assert [job.wait(60).status for job in jobs] == ["completed"] * 10
    claims = sum(call.args[0] == "default" for call in looks.call_args_list)
    assert claims >= 10 if seconds == 0 else claims < 6, "others have their turn, or none is there"


def test_retries_are_spent_with_backoff_and_then_the_job_is_dead(bench: Bench) -> None:
    bench.handle("t.bad", raiser(ValueError("no")), max_retries=2, base_delay=0.01)
    job = bench.submit("t.bad")
    assert bench.run(job) == ["dead"]
    assert job.retry_count == 2
    assert [(one.number, one.outcome) for one in job.attempts.all()] == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert "Traceback" in job.attempts.first().traceback  # type: ignore[union-attr]


def test_a_handler_steers_itself(bench: Bench) -> None:
    seen: list[str] = []

    def steer(context: Any, payload: dict[str, Any]) -> Any:
        seen.append(payload["how"])
        if seen.count(payload["how"]) > 1:
            return context.attempt
        raise {
            "retry": Retry(after=0.01),
            "snooze": Snooze(0.01),
            "fail": Fail("enough"),
            "cancel": Cancelled(),
        }[payload["how"]]

    bench.handle("t.steer", steer, takes_context=True)
    jobs = [bench.submit("t.steer", {"how": how}) for how in ("retry", "snooze", "fail", "cancel")]
    process = bench.start()
    assert [job.wait(60).status for job in jobs] == ["completed", "completed", "dead", "cancelled"]
    process.stop(grace=10)
    assert (process.state.completed, process.state.failed, process.state.jobs_done) == (2, 2, 6)
    assert [(job.retry_count, job.result) for job in jobs[:2]] == [(1, 2), (0, 1)]
    assert DeadLetter.objects.get().reason == "failed by handler"
    assert sorted(Attempt.objects.values_list("outcome", flat=True)) == ["cancelled", "failed", "failed", "snoozed"]


def test_a_result_that_is_not_json_makes_the_job_dead_at_once(bench: Bench) -> None:
    bench.handle("t.object", lambda payload: {"a": [object()]})
    job = bench.submit("t.object")
    assert bench.run(job) == ["dead"]
    assert DeadLetter.objects.get().reason == "bad result"
    assert "result.a[0]" in (job.error or "")


def test_a_job_without_a_handler_fails_with_a_dead_letter(bench: Bench) -> None:
    from django_jobs.lifecycle.submit import submit

    job = submit("t.nobody", {}, any_type=True, options={})
    assert bench.run(job) == ["failed"]
    assert DeadLetter.objects.get().reason == "no handler"


def test_a_queue_without_dead_letters_ends_its_jobs_failed(bench: Bench) -> None:
    bench.handle("t.bad", raiser(ValueError("no")), max_retries=0, dead_letter=False)
    job = bench.submit("t.bad")
    assert bench.run(job) == ["failed"]
    assert DeadLetter.objects.count() == 0


def test_coroutine_handlers_run_side_by_side(bench: Bench) -> None:
    import asyncio

    running, most = 0, 0

    async def handler(context: Any, payload: dict[str, Any]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while most < 50:
            await asyncio.sleep(0.01)
        running -= 1
        if payload["n"] == 7:
            raise Fail("seven")
        return int(payload["n"])

    bench.handle("t.async", handler, takes_context=True)
    jobs = [bench.submit("t.async", {"n": n}) for n in range(50)]
    statuses = bench.run(*jobs)
    assert most == 50, "all of them were inside the handler at once, on one worker thread"
    assert statuses.count("completed") == 49
    assert jobs[7].status == "dead"


def test_an_atomic_handlers_writes_commit_with_its_completion_or_not_at_all(bench: Bench) -> None:
    def handler(payload: dict[str, Any]) -> None:
        Job.objects.filter(pk="mark").update(progress_message=payload["text"])
        if payload["fail"]:
            raise Fail("after the write")

    bench.handle("t.atomic", handler, atomic=True)
    bench.submit("t.atomic", {"text": "", "fail": False}, job_id="mark", delay=3600)
    bad = bench.submit("t.atomic", {"text": "bad", "fail": True})
    good = bench.submit("t.atomic", {"text": "good", "fail": False}, depends_on=[bad], on_dependency_failure="run")
    assert bench.run(bad, good) == ["dead", "completed"]
    assert Job.objects.get(pk="mark").progress_message == "good"


def test_an_atomic_handler_that_commits_is_dead_and_says_why(bench: Bench) -> None:
    def handler(payload: dict[str, Any]) -> None:
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")

    bench.handle("t.commits", handler, atomic=True)
    job = bench.submit("t.commits")
    assert bench.run(job) == ["dead"]
    assert "its transaction" in (job.error or "")


def test_an_atomic_handler_that_lost_its_job_leaves_nothing(bench: Bench) -> None:
    def handler(payload: dict[str, Any]) -> None:
        Job.objects.filter(pk="mark").update(progress_message="written")
        # what a rescuer would have done meanwhile, here in the same transaction
        Job.objects.filter(job_type="t.loses").update(fence=50)

    bench.handle("t.loses", handler, atomic=True)
    bench.handle("t.mark", lambda payload: None)
    bench.submit("t.mark", job_id="mark", delay=3600)
    job = bench.submit("t.loses")
    process = bench.start()
    wait_until(lambda: process.state.jobs_done == 1, what="the run to end")
    process.stop(grace=5)
    job.refresh_from_db()
    assert job.status != "completed"
    assert Job.objects.get(pk="mark").progress_message == ""


def test_a_handler_whose_time_was_over_before_it_began_is_not_called(bench: Bench) -> None:
    run = Run(ClaimedJob.of(JobFactory(status="running", timeout_seconds=5)))
    run.timed_out = True  # as the watchdog says while the run waits for the database
    with pytest.raises(TimedOut, match="timed out after 5 seconds"):
        run.arm()
    assert not run.has_started


@pytest.mark.slow
def test_a_run_whose_start_cannot_be_told_is_handed_back_and_runs_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def refuse_once(signal: Any, job: Any, **sent: Any) -> None:
        if not refused:
            refused.append(job)
            raise OperationalError("the server is away")

    monkeypatch.setattr(executor.signals, "announce", refuse_once)
    bench.handle("t.ok", lambda payload: None)

    def listener(**sent: Any) -> None:
        """Somebody wants to hear of starts."""

    signals.job_started.connect(listener)
    try:
        job = bench.submit("t.ok")
        process = bench.start()
        assert job.wait(60).status == "completed"
    finally:
        signals.job_started.disconnect(listener)
    wait_until(lambda: not process.held(), what="nothing to be held")
    process.stop(grace=10)
    assert refused == [job.pk]
    assert [attempt.outcome for attempt in job.attempts.all()] == ["released"]


@pytest.mark.slow
def test_a_directory_that_an_isolated_handler_went_to_is_not_the_next_ones(bench: Bench) -> None:
    jobs = [submit("effects.go_to", {"to": "/"}) for _ in range(2)]
    assert bench.run(*jobs) == ["completed", "completed"]
    assert {job.result for job in jobs} == {os.getcwd()}


def test_what_a_handler_leaves_behind_does_not_reach_the_next_jobs(bench: Bench) -> None:
    home = os.getcwd()
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def open_transaction(payload: dict[str, Any]) -> None:
        transaction.set_autocommit(False)
        Job.objects.filter(pk="mark").update(progress_message="leaked")

    def raw_transaction(payload: dict[str, Any]) -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")

    def close(payload: dict[str, Any]) -> None:
        connection.close()

    def change(payload: dict[str, Any]) -> None:
        translation.activate("de")
        timezone.activate("Asia/Tokyo")
        variable.set(1)
        os.chdir("/")

    def check(payload: dict[str, Any]) -> list[Any]:
        return [translation.get_language(), str(timezone.get_current_timezone()), variable.get(), os.getcwd() == home]

    for function in (open_transaction, raw_transaction, close, change, check):
        bench.handle(f"t.{function.__name__}", function)
    bench.submit("t.check", job_id="mark", delay=3600)
    jobs = []
    for name in ("open_transaction", "raw_transaction", "close", "change"):
        bench.submit(f"t.{name}")
        jobs += [bench.submit("t.check") for _ in range(25)]
    assert set(bench.run(*jobs)) == {"completed"}
    assert all(job.result == ["en-us", "UTC", 0, True] for job in jobs)
    assert Job.objects.get(pk="mark").progress_message == ""


def test_progress_is_seen_while_the_job_runs(bench: Bench) -> None:
    go = threading.Event()

    def handler(context: Any, payload: dict[str, Any]) -> None:
        context.report_progress(0.4, "charged")
        go.wait(60)

    bench.handle("t.progress", handler, takes_context=True)
    job = bench.submit("t.progress")
    bench.start()
    wait_until(lambda: Job.objects.get(pk=job.id).progress == 0.4, what="the progress")
    assert Job.objects.get(pk=job.id).progress_message == "charged"
    go.set()
    assert job.wait(60).status == "completed"


@pytest.mark.slow
def test_a_running_job_is_cancelled_when_it_looks(bench: Bench) -> None:
    def handler(context: Any, payload: dict[str, Any]) -> None:
        while True:
            context.check_cancelled()
            time.sleep(0.01)

    bench.handle("t.long", handler, takes_context=True)
    job = bench.submit("t.long")
    bench.start()
    wait_until(lambda: Job.objects.get(pk=job.id).status == "running", what="the start")
    assert job.cancel() == "running"
    assert job.wait(60).status == "cancelled"


def test_a_handler_that_passes_its_timeout_is_interrupted(bench: Bench) -> None:
    began = threading.Event()

    def handler(payload: dict[str, Any]) -> None:
        began.set()
        while True:
            time.sleep(0.01)

    bench.handle("t.slow", handler, max_retries=0)
    bench.handle("t.ok", lambda payload: sys.version)
    slow = bench.submit("t.slow", timeout_seconds=600)
    good = [bench.submit("t.ok") for _ in range(10)]
    process = bench.start()
    assert began.wait(60)
    let_its_time_be_over(process)
    assert [job.wait(60).status for job in (slow, *good)] == ["dead", *["completed"] * 10]
    assert (DeadLetter.objects.get().reason, slow.attempts.get().outcome) == ("timeout", "timed out")
    assert slow.attempts.get().error == "TimedOut: timed out after 600 seconds"


def test_a_job_that_waits_behind_a_slow_one_is_handed_back(bench: Bench) -> None:
    go = threading.Event()
    bench.handle("t.block", lambda payload: go.wait(60) and None)
    bench.handle("t.ok", lambda payload: None)
    warm = [bench.submit("t.ok") for _ in range(300)]
    process = bench.start(threads=2)
    for job in warm[-3:]:
        job.wait(60)
    block = bench.submit("t.block", priority=9)
    rest = [bench.submit("t.ok") for _ in range(50)]
    assert {job.wait(60).status for job in rest} == {"completed"}
    assert Job.objects.get(pk=block.id).status == "running"
    go.set()
    assert block.wait(60).status == "completed"
    process.stop(grace=5)
    assert Attempt.objects.count() == 0


def test_a_stop_finishes_what_runs_and_hands_the_rest_back(bench: Bench) -> None:
    started, go = threading.Event(), threading.Event()

    def handler(payload: dict[str, Any]) -> None:
        started.set()
        go.wait(60)

    bench.handle("t.block", handler)
    first = bench.submit("t.block")
    others = [bench.submit("t.block") for _ in range(5)]
    process = bench.start()
    assert started.wait(60)
    stopper = threading.Thread(target=lambda: (process.stop(), connections.close_all()))
    stopper.start()
    wait_until(lambda: process.is_stopping, what="the stop")
    go.set()
    stopper.join(60)
    assert Job.objects.get(pk=first.id).status == "completed"
    assert {Job.objects.get(pk=job.id).status for job in others} == {"pending"}
    wait_until(lambda: not WorkerProcess.objects.exists(), what="the process to leave in order")


def test_jobs_of_every_queue_are_found(bench: Bench) -> None:
    bench.handle("t.ok", lambda payload: None)
    jobs = [bench.submit("t.ok", queue=f"q{n % 7}") for n in range(70)]
    assert set(bench.run(*jobs, threads=3)) == {"completed"}
