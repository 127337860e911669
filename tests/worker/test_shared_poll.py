"""While jobs come fast one process looks for all, and nobody is notified; what waits is told to all (PostgreSQL)."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from django.db import connection, connections

from django_jobs import submit
from django_jobs.db import notify
from django_jobs.lifecycle import queues
from django_jobs.models import Job
from django_jobs.worker import poller, shared_poll
from django_jobs.worker.shared_poll import SharedPoll
from django_jobs.worker.stagger import ProcessCount
from tests.support.factories import JobFactory
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql")]


@pytest.fixture
def subscription() -> Iterator[notify.Subscription]:
    with closing(notify.Subscription(notify.WORK_CHANNEL)) as subscription:
        yield subscription


@pytest.fixture
def each_notification_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "QUIET_SECONDS", 0.0)


def heard(subscription: notify.Subscription) -> list[str]:
    """Return the queues that were notified; the end of the list is known by a mark."""
    notify._notify(connection, notify.WORK_CHANNEL, "the end")
    names: list[str] = []
    while "the end" not in names:
        names += [payload for _, payload in subscription.wait(60)]
    return names[:-1]


@pytest.mark.usefixtures("each_notification_is_sent")
@pytest.mark.parametrize("mine", [None, ["a", "b"]])
def test_nobody_notifies_while_one_process_looks_for_the_queue(
    subscription: notify.Subscription, mine: list[str] | None
) -> None:
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as looks:
        assert looks.begin_poll(mine)
        for queue in ("a", "b", "c"):
            submit("effects.record", queue=queue)
        assert heard(subscription) == ([] if mine is None else ["c"])
        looks.end_poll()
        submit("effects.record", queue="a")
        assert heard(subscription) == ["a"]


def test_one_process_looks_at_a_time_and_another_one_takes_over_from_a_dead_one(
    subscription: notify.Subscription,
) -> None:
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as other:
        assert subscription.begin_poll(["a"])
        assert not other.begin_poll(["a", "b"])
        assert other.begin_poll(["b"]), "a refused one keeps nothing"
        other.end_poll()
        subscription.close()
        wait_until(lambda: other.begin_poll(["a", "b"]), 60, "the lock of a session that has ended")


def test_a_worker_that_is_notified_often_looks_for_all_and_finds_what_nobody_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_poll, "WAKE_UPS", 0.001)
    monkeypatch.setattr(shared_poll, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(shared_poll, "SLOWEST_LOOK", 3_600.0)
    monkeypatch.setattr(poller.QueueSelector, "rest", lambda self, interval, watch: 600.0)
    bench.handle("t", lambda payload: None)
    process = bench.start(threads=1)
    wait_until(lambda: process.state.pollers.is_notified, 60, "the proof that notifications arrive")
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as other:
        assert other.begin_poll(None), "nobody looks for all while there is nothing to find"
        other.end_poll()

        def is_taken() -> bool:
            notify._notify(connection, notify.WORK_CHANNEL, "default")
            if taken := other.begin_poll(None):
                other.end_poll()
            return not taken

        wait_until(is_taken, 60, "the process to look for all")
    jobs = [JobFactory(job_type="t", status="pending").id for _ in range(3)]
    wait_until(lambda: not Job.objects.filter(pk__in=jobs).exclude(status="completed").exists(), 60, "jobs untold of")


@contextmanager
def looking(woken: list[str]) -> Iterator[None]:
    """Look for all in a thread, without a worker."""
    over = threading.Event()

    def look() -> None:
        try:
            with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as session:
                poll = SharedPoll(session, ProcessCount(), woken.append)
                assert poll.run(None, time.sleep, over.is_set)
        finally:
            connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_job_that_nobody_takes_is_told_to_all_and_one_of_a_paused_queue_to_nobody(
    subscription: notify.Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_poll, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(shared_poll, "SLOWEST_LOOK", 3_600.0)
    queues.pause("held")
    woken: list[str] = []
    JobFactory(queue="held", status="pending")
    with looking(woken):
        JobFactory(queue="left", status="pending")
        assert {payload for _, payload in subscription.wait(60)} == {"left"}
    assert set(woken) == {"left"}
    assert set(heard(subscription)) <= {"left"}


def test_it_looks_once_more_when_it_has_ended(subscription: notify.Subscription) -> None:
    JobFactory(queue="late", status="pending")
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as session:
        assert SharedPoll(session, ProcessCount(), lambda queue: None).run(["late"], lambda seconds: None, lambda: True)
    assert heard(subscription) == ["late"]


def test_it_ends_where_looks_take_long_and_is_not_begun_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_poll, "SLOWEST_LOOK", -1.0)
    monkeypatch.setattr(shared_poll, "WAKE_UPS", 0.001)
    for name in ("WINDOW_SECONDS", "LEAST_SECONDS", "AVOIDED_SECONDS"):
        monkeypatch.setattr(shared_poll, name, 60.0)
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as session:
        poll = SharedPoll(session, ProcessCount(), lambda queue: None)
        assert not poll.is_wanted()
        assert poll.is_wanted()
        pauses: list[float] = []
        assert poll.run(None, pauses.append, lambda: False)
        assert len(pauses) == 2
        assert not any(poll.is_wanted() for _ in range(5))


@pytest.mark.load
def test_a_thousand_jobs_a_second_wake_few_of_64_sessions() -> None:
    """Each session hears each notification of the database, whoever sent it."""
    workers = spawn_workers("--threads", "2", "--processes", "2", settings={"LEASE_SECONDS": 30})
    with ExitStack() as stack:
        stack.enter_context(workers).wait_ready(2, timeout=60)
        sessions = [stack.enter_context(closing(notify.Subscription(notify.WORK_CHANNEL))) for _ in range(62)]
        ids = [f"steady-{number}" for number in range(10_000)]
        wake_ups, began = 0, time.monotonic()
        for number, job_id in enumerate(ids):
            time.sleep(max(0.0, began + number / 1000 - time.monotonic()))
            submit("effects.record", job_id=job_id)
            if number in (2_000, len(ids) - 1):
                told = sum(_pending(session) for session in sessions)
                if number == 2_000:
                    since = time.monotonic()
                else:
                    wake_ups = told
        rate = wake_ups * 64 / len(sessions) / (time.monotonic() - since)
        print(f"\n{rate:.0f} wake-ups a second at {8_000 / (time.monotonic() - since):.0f} jobs a second")
        assert rate <= 200
        wait_until(lambda: Job.objects.filter(pk__in=ids, status="completed").count() == len(ids), 120, "all jobs")


def _pending(session: notify.Subscription) -> int:
    """Return how many notifications have arrived at a session."""
    number = 0
    while list(session.wait(0)):
        number += 1
    return number


def test_a_machine_that_has_no_time_for_anybody_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_poll, "SLOWEST_LOOK", -1.0)
    monkeypatch.setattr(shared_poll, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(notify.Subscription, "seconds_of_an_answer", lambda self: 3_600.0)
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as session:
        pauses: list[float] = []
        assert SharedPoll(session, ProcessCount(), lambda queue: None).run(
            None, pauses.append, lambda: len(pauses) == 10
        )
        assert len(pauses) == 10


def test_who_was_told_that_another_one_looks_does_not_ask_again_at_each_notification(
    subscription: notify.Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_poll, "WAKE_UPS", 0.001)
    monkeypatch.setattr(shared_poll, "WINDOW_SECONDS", 60.0)
    monkeypatch.setattr(shared_poll, "TAKEN_SECONDS", 3_600.0)
    assert subscription.begin_poll(None)
    with closing(notify.Subscription(notify.PROCESS_CHANNEL)) as session:
        poll = SharedPoll(session, ProcessCount(), lambda queue: None)
        assert not poll.is_wanted()
        assert poll.is_wanted()
        assert not poll.run(None, time.sleep, lambda: False)
        assert not any(poll.is_wanted() for _ in range(5))
