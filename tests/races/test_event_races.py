"""An emit before, during and after the wait for it: none is lost, none comes twice, and an emit waits for nobody."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import pytest
from django.db import connections, transaction

from django_jobs import emit, submit
from django_jobs.db.dialects.words import StepRow
from django_jobs.lifecycle import events, leases, steps
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.events import Answer, deliver, take
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Event, Job, JobStep
from tests.support.databases import Database
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
ROUNDS = 40
WAIT = StepRow(1, "go", "event", has_ended=False, event_name="go", event_key=None)


def claimed(number: int = 0) -> ClaimedJob:
    leases.register(f"process-{number}", queues=[], threads=1)
    submit("effects.record", {}, job_id=f"job-{number}")
    (job,) = claim("default", 1, f"process-{number}")
    return job


def wait_and_settle(job: ClaimedJob, process_id: str) -> bool:
    """Do what a run does that waits; return whether its event was there."""
    step = steps.record(job.id, job.fence, WAIT._replace(event_key=job.id))
    assert step is not None
    answer = take(job.id, job.fence, step)
    assert answer is not None
    if not answer.is_over:
        settle([Outcome.waiting(job, answer.seconds_left, (step,), "waits")], process_id)
    return answer.is_over


def race(rounds: int) -> dict[str, int]:
    """Race emits against waits, and count which came first."""
    counts = {"event first": 0, "wait first": 0, "delivered after the commit": 0}
    source = random.Random(7)
    for number in range(rounds):
        job, process_id = claimed(number), f"process-{number}"
        pauses = (source.uniform(0, 0.004), source.uniform(0, 0.004), source.uniform(0, 0.004))

        def send(job: ClaimedJob = job, pauses: tuple[float, ...] = pauses) -> None:
            time.sleep(pauses[0])
            with transaction.atomic():
                emit("go", key=job.id, payload={"for": job.id})
                time.sleep(pauses[1])

        def wait(job: ClaimedJob = job, process_id: str = process_id, pauses: tuple[float, ...] = pauses) -> bool:
            time.sleep(pauses[2])
            return wait_and_settle(job, process_id)

        _, was_there = run_in_threads([send, wait])
        woken = was_there or Job.objects.get(pk=job.id).status == "pending"
        assert deliver() == 1
        row, step = Job.objects.get(pk=job.id), JobStep.objects.get(job_id=job.id)
        assert step.result == {"for": job.id}, f"round {number}: the event is lost"
        assert row.status == ("running" if was_there else "pending"), f"round {number}: nobody wakes the job"
        counts["event first" if was_there else "wait first" if woken else "delivered after the commit"] += 1
        Job.objects.all().delete()
        Event.objects.all().delete()
    return counts


@pytest.mark.slow
def test_an_emit_that_races_the_wait_for_it_is_never_lost() -> None:
    assert sum(race(ROUNDS).values()) == ROUNDS


@pytest.mark.fault
def test_thousands_of_emits_that_race_the_waits_for_them_are_never_lost(database: Database) -> None:
    print(f"\n{database.vendor}: {race(5_000)}")


# --- each half of the promise, and what it is for


def an_event_that_committed_after_the_look_is_delivered() -> None:
    """The emit sees no wait, and the look sees no event: both were open at the same moment."""
    job = claimed()
    emitted, go = threading.Event(), threading.Event()

    def send() -> None:
        with transaction.atomic():
            emit("go", key=job.id)
            emitted.set()
            assert go.wait(60)

    def wait() -> None:
        assert emitted.wait(60)
        assert not wait_and_settle(job, "process-0")
        go.set()

    run_in_threads([send, wait])
    assert Job.objects.get().status == "scheduled"
    events.deliver()
    assert Job.objects.get().status == "pending", "nobody will ever wake it"


def an_event_that_ends_a_wait_before_the_settle_makes_the_job_ready() -> None:
    job = claimed()
    step = steps.record(job.id, job.fence, WAIT._replace(event_key=job.id))
    assert step is not None
    assert take(job.id, job.fence, step) == Answer(False)
    emit("go", key=job.id)
    settle([Outcome.waiting(job, 60, (step,), "waits")], "process-0")
    assert Job.objects.get().status == "pending", "it waits for what has come already"


def an_emit_waits_for_no_lock() -> None:
    job = claimed()
    wait_and_settle(job, "process-0")
    answered = threading.Event()

    def send() -> None:
        emit("go", key=job.id)
        answered.set()
        connections.close_all()

    thread = threading.Thread(target=send, daemon=True)
    with transaction.atomic():
        Job.objects.select_for_update().get()
        thread.start()
        in_time = answered.wait(30)  # MariaDB's own wait for a lock is 50 s
    thread.join(60)
    assert in_time, "the emit waited for somebody's lock"
    events.deliver()
    assert Job.objects.get().status == "pending"


@contextmanager
def without_delivery() -> Iterator[None]:
    with mock.patch.object(events, "deliver", return_value=0):
        yield


@contextmanager
def without_the_look_in_the_settle() -> Iterator[None]:
    with mock.patch("django_jobs.lifecycle.settle.put_to_wait", return_value=None):
        yield


@contextmanager
def with_locks_that_are_waited_for() -> Iterator[None]:
    with mock.patch.object(events, "_free", lambda rows: rows.select_for_update()):
        yield


# SQLite has one writer at a time: nothing is open beside it, and no row is locked.
SERVERS = pytest.mark.databases("postgresql", "mariadb")
GUARDS = [
    pytest.param(an_event_that_committed_after_the_look_is_delivered, without_delivery, marks=SERVERS),
    pytest.param(an_emit_waits_for_no_lock, with_locks_that_are_waited_for, marks=SERVERS),
    (an_event_that_ends_a_wait_before_the_settle_makes_the_job_ready, without_the_look_in_the_settle),
]


@pytest.mark.parametrize(("check", "without"), GUARDS)
@pytest.mark.slow
def test_a_guard_holds_and_is_needed(
    check: Callable[[], None], without: Callable[[], AbstractContextManager[None]]
) -> None:
    check()
    Job.objects.all().delete()
    Event.objects.all().delete()
    with without(), pytest.raises(AssertionError):
        check()
