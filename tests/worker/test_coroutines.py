"""Coroutine jobs that harm what they share: the thread of their database work, the event loop."""

import asyncio
import sys
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connection, connections

from django_jobs import Retry
from django_jobs.models import Attempt, DeadLetter, Job
from django_jobs.signals import job_retried, job_started
from django_jobs.worker import coroutines
from django_jobs.worker.state import EXIT_RECYCLE
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.slow
def test_a_job_that_is_claimed_while_the_loop_breaks_is_handed_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_loop(payload: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await asyncio.sleep(60)

    async def nap(payload: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    bench.handle("t.break", break_loop, max_retries=0)
    bench.handle("t.nap", nap)
    process = bench.start()
    broke = threading.Event()
    monkeypatch.setattr(process.state, "recycle_after", lambda error: broke.set())  # it goes on claiming for a while
    bench.submit("t.break")
    assert broke.wait(60)
    job = bench.submit("t.nap")

    def was_handed_back() -> bool:
        job.refresh_from_db()
        return job.fence >= 2

    wait_until(was_handed_back, 60)
    process.stop(grace=10)
    job.refresh_from_db()
    assert (job.status, job.retry_count, process.coroutines.running) == ("pending", 0, 0)


def test_a_loop_that_is_stopped_and_broken_while_it_ends_lets_its_tasks_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coroutines, "CANCEL_SECONDS", 60.0)
    ended: list[str] = []

    async def break_loop(payload: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(sys.exit, 3)
        try:
            await asyncio.sleep(60)
        finally:
            loop.stop()
            loop.call_later(0.005, sys.exit, 3)
            await asyncio.sleep(0.01)
            ended.append("break")

    bench.handle("t.break", break_loop, max_retries=0)
    process = bench.start()
    bench.submit("t.break")
    wait_until(lambda: bool(ended), 60)
    process.stop(grace=10)
    assert ended == ["break"]


def test_the_start_of_a_coroutine_is_told(bench: Bench) -> None:
    told: list[str] = []

    async def nap(payload: dict[str, Any]) -> None:
        told.append("runs")

    def started(sender: Any, job: Job, worker_id: str, **kwargs: Any) -> None:
        told.append(f"{job.status} {job.worker_id == worker_id}")

    bench.handle("t.nap", nap)
    job_started.connect(started)
    try:
        assert bench.run(bench.submit("t.nap")) == ["completed"]
    finally:
        job_started.disconnect(started)
    assert told == ["running True", "runs"]


@pytest.mark.parametrize("places", [1, 3, 100])
def test_no_more_coroutines_run_at_once_than_may_and_the_last_free_place_is_used(
    bench: Bench, settings: Any, places: int
) -> None:
    settings.DJANGO_JOBS = {"ASYNC_CONCURRENCY": places}
    counts = {"now": 0, "most": 0}
    release = threading.Event()

    async def nap(payload: dict[str, Any]) -> None:
        counts["now"] += 1
        counts["most"] = max(counts["most"], counts["now"])
        try:
            while payload.get("is_long") and not release.is_set():
                await asyncio.sleep(0.02)
        finally:
            counts["now"] -= 1

    bench.handle("t.nap", nap)
    long = [bench.submit("t.nap", {"is_long": True}, priority=10) for _ in range(places - 1)]
    quick = [bench.submit("t.nap") for _ in range(30)]
    process = bench.start(threads=2)
    try:
        assert {job.wait(60).status for job in quick} == {"completed"}
        wait_until(
            lambda: counts["now"] == places - 1, what="the long ones alone: all others had the place that is left"
        )
    finally:
        release.set()
    assert {job.wait(60).status for job in long} <= {"completed"}
    process.stop(grace=10)
    assert counts["most"] == places


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no server to end a session
def test_a_broken_connection_reaches_one_job_and_no_more(bench: Bench) -> None:
    async def count(payload: dict[str, Any]) -> int:
        return await sync_to_async(Job.objects.count)()

    async def break_it(payload: dict[str, Any]) -> None:
        await sync_to_async(_end_session)()

    bench.handle("t.count", count)
    bench.handle("t.break", break_it, max_retries=0)
    process = bench.start()
    statuses = [bench.submit(job_type).wait(60).status for job_type in ("t.count", "t.break", "t.count", "t.count")]
    process.stop(grace=10)
    assert statuses == ["completed", "dead", "completed", "completed"]


def _end_session() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            cursor.execute("SELECT CONNECTION_ID()")
            cursor.execute(f"KILL {cursor.fetchone()[0]}")


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.slow
def test_a_coroutine_that_blocks_the_loop_or_ignores_its_end_is_timed_out(
    bench: Bench, settings: Any, blocks: bool
) -> None:
    settings.DJANGO_JOBS = {"TIMEOUT_GRACE_SECONDS": 0.3, "SHUTDOWN_GRACE_SECONDS": 1}
    release = threading.Event()

    async def hang(payload: dict[str, Any]) -> None:
        while not release.is_set():
            try:
                if blocks:
                    release.wait(60)
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                pass

    bench.handle("t.hang", hang, max_retries=0)
    job = bench.submit("t.hang", timeout_seconds=0.2)
    process = bench.start()
    try:
        assert job.wait(60).status == "dead"
        assert [*DeadLetter.objects.values_list("reason", flat=True)] == ["timeout"]
        assert process.state.wait_until_stopping(20)
        assert process.state.exit_code == EXIT_RECYCLE
    finally:
        release.set()
        process.stop(grace=10)


@pytest.mark.slow
def test_a_coroutine_that_is_back_before_its_settle_is_over_is_held(bench: Bench) -> None:
    runs: list[int] = []
    release, is_sent = threading.Event(), threading.Event()

    async def again(payload: dict[str, Any]) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise Retry(after=0)
        while not release.is_set():
            await asyncio.sleep(0.01)

    async def other(payload: dict[str, Any]) -> None:
        pass

    def slowly(**kwargs: Any) -> None:
        is_sent.set()
        wait_until(lambda: len(runs) == 2, 60, "the job to run again while this is still sent")

    bench.handle("t.again", again)
    bench.handle("t.other", other)
    job_retried.connect(slowly)
    try:
        job = bench.submit("t.again")
        process = bench.start(threads=2)
        assert is_sent.wait(60)
        # Settled in the round after the one that was held up.
        assert bench.submit("t.other").wait(60).status == "completed"
        wait_until(lambda: process.held().keys() == {job.pk}, 60, "the job to be the only one that is held")
        release.set()
        assert job.wait(60).status == "completed"
    finally:
        release.set()
        job_retried.disconnect(slowly)
    assert len(runs) == 2


@pytest.mark.slow
def test_a_process_that_is_stopped_without_grace_hands_its_coroutines_back_and_fails_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has ended waits to be settled, so that the loop is stopped while the settler has something to do yet.
    monkeypatch.setattr(coroutines, "SETTLE_SECONDS", 0.3)
    begun, ended = threading.Event(), threading.Event()

    async def long(payload: dict[str, Any]) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async def short(payload: dict[str, Any]) -> None:
        while not begun.is_set():
            await asyncio.sleep(0.01)
        ended.set()

    bench.handle("t.long", long, max_retries=0)
    bench.handle("t.short", short, max_retries=0)
    job, other = bench.submit("t.long"), bench.submit("t.short")
    process = bench.start()
    assert begun.wait(60)
    assert ended.wait(60)
    assert not process.stop(graceful=False)
    process.release_running()
    job.refresh_from_db()
    assert (job.status, job.retry_count, job.error) == ("pending", 0, None)
    assert [*job.attempts.values_list("outcome", "number")] == [("released", 1)]
    other.refresh_from_db()
    assert other.status in ("completed", "pending"), "the machine may have been too slow to settle it"
    assert not Attempt.objects.exclude(outcome="released").exists()


def in_its_thread(bench: Bench, queue: str) -> Any:
    """Start a process for a queue of its own, and submit a job for it; return the thread of that job's database work."""
    bench.start(queues=[queue])
    job = bench.submit("t.thread", queue=queue).wait(60)
    assert job.status == "completed"
    return job.result


def test_each_event_loop_has_a_thread_of_its_own_for_database_work(bench: Bench) -> None:
    async def thread(payload: dict[str, Any]) -> int:
        await sync_to_async(Job.objects.count)()
        return await sync_to_async(threading.get_ident)()

    bench.handle("t.thread", thread)
    left, right = in_its_thread(bench, "left"), in_its_thread(bench, "right")
    again = {queue: bench.submit("t.thread", queue=queue).wait(60).result for queue in ("left", "right")}
    assert left != right
    assert again == {"left": left, "right": right}


def test_a_handler_that_blocks_the_thread_of_its_database_work_holds_up_no_other_process(bench: Bench) -> None:
    begun, release = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return release.wait(600)

    async def block(payload: dict[str, Any]) -> bool:
        return await sync_to_async(wait)()

    async def count(payload: dict[str, Any]) -> int:
        return await sync_to_async(Job.objects.count)()

    bench.handle("t.block", block)
    bench.handle("t.count", count)
    for queue in ("left", "right"):
        bench.start(queues=[queue])
    try:
        blocked = bench.submit("t.block", queue="left")
        assert begun.wait(60)
        assert bench.submit("t.count", queue="right").wait(60).status == "completed"
        blocked.refresh_from_db()
        assert blocked.status == "running"
    finally:
        release.set()
    assert blocked.wait(60).result is True


def test_the_thread_of_database_work_closes_its_connection_and_ends_with_its_loop(bench: Bench) -> None:
    used: list[Any] = []

    def use() -> None:
        Job.objects.count()
        used.extend((connections[DEFAULT_DB_ALIAS], threading.current_thread()))

    async def work(payload: dict[str, Any]) -> None:
        await sync_to_async(use)()

    bench.handle("t.work", work)
    assert bench.run(bench.submit("t.work")) == ["completed"]
    wrapper, thread = used
    wait_until(lambda: wrapper.connection is None, 60, "the connection to be closed")
    wait_until(lambda: not thread.is_alive(), 60, "the thread to end")


def test_a_cancel_that_comes_when_the_handler_has_ended_breaks_into_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_flushing, may_go_on = threading.Event(), asyncio.Event()
    asked: list[dict[str, int]] = []

    async def flush(steps: Any) -> None:
        is_flushing.set()
        await may_go_on.wait()

    async def handler(context: Any, payload: dict[str, Any]) -> None:
        await context.astep("first", dict)
        if payload["fails"]:
            raise ValueError("no")

    monkeypatch.setattr(coroutines, "_flush", flush)
    bench.handle("t.ends", handler, takes_context=True, max_retries=0)
    jobs = [bench.submit("t.ends", {"fails": fails}) for fails in (True, False)]
    process = bench.start()
    cancel = process.coroutines.cancel

    def and_note(requested: dict[str, int]) -> None:
        cancel(requested)
        asked.append(requested)

    monkeypatch.setattr(process.coroutines, "cancel", and_note)
    assert is_flushing.wait(60)
    for job in jobs:
        wait_until(lambda job=job: Job.objects.get(pk=job.pk).status == "running", 60)
        job.cancel()
    wait_until(lambda: any(requested.keys() >= {job.id for job in jobs} for requested in asked), 60)
    assert process.coroutines._loop is not None
    process.coroutines._loop.call_soon_threadsafe(may_go_on.set)
    assert [job.wait(60).status for job in jobs] == ["dead", "completed"]
    assert Attempt.objects.count() == 1
