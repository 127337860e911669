"""Waiting for a job: until it is finished, or the time is over; on PostgreSQL it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from django.db import connections, transaction

from django_jobs import submit, waiting
from django_jobs.db import notify
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.handlers import make_handler, registry
from django_jobs.lifecycle.cancel import cancel
from django_jobs.queue import JobQueue
from django_jobs.waiting import wait
from django_jobs.worker.local_process import stop_local_process
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["completed", "failed", "dead", "cancelled"])
def test_a_finished_job_is_not_waited_for(status: str) -> None:
    assert wait(JobFactory(status=status).id, timeout=0) == status


@pytest.mark.django_db
def test_it_gives_up_in_time_and_names_the_status() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"still pending after 0\.3 seconds"):
        wait(JobFactory().id, timeout=0.3)
    assert time.monotonic() - started >= 0.3
    with pytest.raises(JobNotFound):
        wait("nobody", timeout=5)
    for timeout in ("5", True, float("nan")):
        with pytest.raises(InvalidJob, match="give seconds"):
            wait("nobody", timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("how", ["settled", "cancelled"])
def test_a_notification_ends_the_wait_at_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With looks only every ten minutes, nothing but a notification can end the wait."""
    subscribed = threading.Event()
    original = waiting.Subscription.wait

    def wait_and_say(self: waiting.Subscription, seconds: float) -> Iterator[tuple[str, str]]:
        subscribed.set()
        return original(self, seconds)

    monkeypatch.setattr(waiting, "NOTIFIED_PAUSE", 600.0)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(waiting.Subscription, "wait", wait_and_say)
    queue = JobQueue("told")
    queue.register_handler("t", lambda payload: None)
    job_id = queue.enqueue("t")

    def end() -> None:
        assert subscribed.wait(60)
        if how == "settled":
            assert queue.process_next() == job_id
        else:
            cancel([job_id])

    try:
        status, _ = run_in_threads([lambda: wait(job_id, timeout=600), end])
    finally:
        stop_local_process()
    assert status == {"settled": "completed"}.get(how, how)


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql")
def test_the_end_of_a_job_is_told_only_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "QUIET_SECONDS", 0.0)
    with closing(notify.Subscription(notify.WORK_CHANNEL)) as worker:
        with worker._connection.cursor() as cursor:
            cursor.execute(f"LISTEN {notify.FINISHED_CHANNEL}")  # hears it, as others do, and does not wait for it
        wait_until(_nobody_waits, 60, "the ends of earlier waiters' sessions")
        cancel([JobFactory().id])
        assert _told(worker) == []
        with closing(notify.Subscription(notify.FINISHED_CHANNEL)):
            cancel([JobFactory().id])
            assert _told(worker) == [notify.FINISHED_CHANNEL]
        wait_until(_nobody_waits, 60, "the end of the waiter's session")
        cancel([JobFactory().id])
        assert _told(worker) == []


def _told(subscription: notify.Subscription) -> list[str]:
    """Return the channels of what was told until a notification that is sent now."""
    notify.notify_work("the end")
    channels: list[str] = []
    while True:
        for channel, payload in subscription.wait(60):
            if payload == "the end":
                return channels
            channels.append(channel)


def _nobody_waits() -> bool:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", notify.AWAITED)
        return bool(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_waiting_leaves_no_connection_behind() -> None:
    def sessions() -> int:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return int(cursor.fetchone()[0])

    before = sessions()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            wait(JobFactory().id, timeout=0.4)
    wait_until(lambda: sessions() <= before, what="the sessions of those who waited to end")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["atomic", "nested", "autocommit off"])
def test_a_wait_in_a_transaction_is_refused_at_once(where: str) -> None:
    with ExitStack() as stack:
        if where == "autocommit off":
            transaction.set_autocommit(False)
            stack.callback(transaction.set_autocommit, True)
            stack.callback(transaction.rollback)
        else:
            stack.enter_context(transaction.atomic())
        if where == "nested":
            stack.enter_context(transaction.atomic())
        job, finished = JobFactory(), JobFactory(status="completed")
        with pytest.raises(InvalidJob, match=r"invisible to every worker until it commits.*wait after the block"):
            job.wait()
        assert wait(finished.id) == "completed", "there is nothing to wait for"
        with pytest.raises(JobNotFound):
            wait("nobody")


@pytest.mark.django_db
def test_the_block_of_a_test_case_is_no_transaction_to_refuse() -> None:
    with pytest.raises(TimeoutError):
        wait(JobFactory().id, timeout=0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("threads", "warned"), [(1, True), (2, False)])
@pytest.mark.slow
def test_a_handler_that_waits_with_the_last_thread_is_warned(
    threads: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def waits(payload: dict[str, object]) -> None:
        with pytest.raises(TimeoutError):
            wait("never", timeout=0.1)

    handler = make_handler(waits, "t.waits", {})
    registry.register(handler)
    try:
        JobFactory(id="never", status="scheduled")
        job_id = submit("t.waits").id
        with caplog.at_level("WARNING"), running_process(threads=threads):
            assert wait(job_id, timeout=30) == "completed"
    finally:
        registry.forget("t.waits")
    found = [
        record for record in caplog.records if "every other thread of its worker process waits too" in record.message
    ]
    assert bool(found) is warned
