"""Waiting for a job: until it is finished, or the time is over; on PostgreSQL it is told."""

import threading
import time
from collections.abc import Iterator

import pytest
from django.db import connections

from django_jobs import waiting
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.lifecycle.cancel import cancel
from django_jobs.queue import JobQueue
from django_jobs.waiting import wait
from django_jobs.worker.local_process import stop_local_process
from tests.support.factories import JobFactory
from tests.support.threads import run_in_threads


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["completed", "failed", "dead", "cancelled"])
def test_a_finished_job_is_not_waited_for(status: str) -> None:
    assert wait(JobFactory(status=status).id, timeout=0) == status


@pytest.mark.django_db
def test_it_gives_up_in_time_and_names_the_status() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"still pending after 0\.3 seconds"):
        wait(JobFactory().id, timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 2
    with pytest.raises(JobNotFound):
        wait("nobody", timeout=5)
    for timeout in ("5", True, float("nan")):
        with pytest.raises(InvalidJob, match="give seconds"):
            wait("nobody", timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("how", ["settled", "cancelled"])
def test_a_notification_ends_the_wait_at_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With looks only every 30 s, nothing but a notification can end the wait soon."""
    subscribed = threading.Event()
    original = waiting.Subscription.wait

    def wait_and_say(self: waiting.Subscription, seconds: float) -> Iterator[tuple[str, str]]:
        subscribed.set()
        return original(self, seconds)

    monkeypatch.setattr(waiting, "NOTIFIED_PAUSE", 30.0)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(waiting.Subscription, "wait", wait_and_say)
    queue = JobQueue("told")
    queue.register_handler("t", lambda payload: None)
    job_id = queue.enqueue("t")

    def end() -> None:
        assert subscribed.wait(10)
        if how == "settled":
            assert queue.process_next() == job_id
        else:
            cancel([job_id])

    started = time.monotonic()
    try:
        status, _ = run_in_threads([lambda: wait(job_id, timeout=25), end])
    finally:
        stop_local_process()
    assert status == {"settled": "completed"}.get(how, how)
    assert time.monotonic() - started < 20


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql")
def test_waiting_leaves_no_connection_behind() -> None:
    def sessions() -> int:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return int(cursor.fetchone()[0])

    before = sessions()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            wait(JobFactory().id, timeout=0.4)
    deadline = time.monotonic() + 5
    while sessions() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
