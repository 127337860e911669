"""Idle threads see that somebody has committed, or that a job is ready, and do not look more often on a busy site."""

import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from django.test import override_settings

from django_jobs.db.dialects import dialect
from django_jobs.lifecycle import leases
from django_jobs.models import Job
from django_jobs.worker import poller
from django_jobs.worker import watch as rule
from django_jobs.worker.stagger import COUNT_SECONDS, ProcessCount, seconds_of_a_round
from django_jobs.worker.watch import LEAST_PAUSE, CommitWatch, ReadyWatch
from tests.support.databases import Database
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
LONGEST = 0.1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Let the test say what time it is."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def commit() -> None:
    run_in_threads(lambda: JobFactory(queue="nobody's"))


def test_a_commit_of_somebody_else_is_told_once(database: Database) -> None:
    Job.objects.exists()
    watch = CommitWatch()
    watch.begin(dialect())
    watch.has_changed()  # it knows nothing of before
    assert not watch.has_changed()
    JobFactory()  # our own
    assert not watch.has_changed()
    commit()
    assert watch.has_changed() == watch.is_possible == (database.vendor == "sqlite")
    assert not watch.has_changed()


@pytest.mark.databases("sqlite")
def test_looks_in_vain_make_it_pause_until_work_is_found(now: list[float]) -> None:
    Job.objects.exists()
    watch = CommitWatch()
    watch.begin(dialect())
    pauses = []
    for _ in range(8):
        commit()
        assert watch.has_changed()
        watch.pause_after_looks_in_vain(LONGEST)
        commit()
        began = now[0]
        while not watch.has_changed():
            now[0] += LEAST_PAUSE / 4
        pauses.append(now[0] - began)
        watch.pause_after_looks_in_vain(LONGEST)
        now[0] += LONGEST
    assert pauses == sorted(pauses)
    assert LEAST_PAUSE <= pauses[0] < 2 * LEAST_PAUSE
    assert LONGEST <= pauses[-1] <= LONGEST + LEAST_PAUSE
    watch.found_work()
    commit()
    assert watch.has_changed()
    assert not watch.has_changed()
    watch.pause_after_looks_in_vain(LONGEST)  # a look that no commit led to
    commit()
    assert watch.has_changed()


@pytest.mark.databases("sqlite")
def test_an_idle_worker_takes_a_job_of_another_process_though_it_would_not_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poller, "FIRST_REST", 600.0)
    with running_process(threads=2, poll_interval=600.0):
        for _ in range(3):
            job = JobFactory(job_type="effects.record", payload={"key": "k"})  # nobody is notified
            wait_until(lambda job=job: Job.objects.get(pk=job.pk).status == "completed", 60, "the job is taken")


# Where neither commits nor notifications tell.


@pytest.fixture
def are_notified() -> list[bool]:
    """Let the test say whether notifications arrive."""
    return [False]


def ready_watch(are_notified: list[bool], *names: str, told: list[str] | None = None) -> ReadyWatch:
    tell = [] if told is None else told
    return ReadyWatch(nullcontext, list(names) or None, LONGEST, ProcessCount(), lambda: are_notified[0], tell.extend)


def test_it_sees_ready_jobs_of_its_queues_and_only_those(are_notified: list[bool]) -> None:
    told: list[str] = []
    every, named = ready_watch(are_notified), ready_watch(are_notified, "ours", "ours too", told=told)
    JobFactory(queue="ours", status="scheduled")
    JobFactory(queue="ours", pending_dependencies=1)
    assert not every.has_changed()
    JobFactory(queue="theirs")
    assert every.has_changed()
    assert not named.has_changed()
    JobFactory(queue="ours too")
    assert named.has_changed()
    assert told == ["ours too"]
    assert named.is_possible
    are_notified[0] = True
    assert not named.is_possible
    assert not named.has_changed()


def test_jobs_that_nobody_may_claim_make_it_pause_up_to_the_poll_interval(
    now: list[float], are_notified: list[bool]
) -> None:
    watch = ready_watch(are_notified)
    JobFactory(queue="paused")
    pauses = []
    for _ in range(8):
        assert watch.has_changed()
        watch.pause_after_looks_in_vain(LONGEST)
        began = now[0]
        while not watch.has_changed():
            now[0] += LEAST_PAUSE / 4
        pauses.append(now[0] - began)
    assert pauses == sorted(pauses)
    assert LEAST_PAUSE <= pauses[0] < 2 * LEAST_PAUSE
    assert LONGEST <= pauses[-1] <= LONGEST + LEAST_PAUSE
    watch.found_work()
    assert watch.has_changed()


def test_a_look_in_vain_has_said_as_much_as_the_next_question_would(now: list[float], are_notified: list[bool]) -> None:
    watch = ready_watch(are_notified)
    watch.pause_after_looks_in_vain(LONGEST)
    JobFactory()
    assert not watch.has_changed()
    now[0] += LEAST_PAUSE
    assert watch.has_changed()


def test_after_an_error_it_asks_nothing_until_a_look_was_answered(now: list[float], are_notified: list[bool]) -> None:
    watch = ready_watch(are_notified)
    JobFactory()
    watch.end()
    now[0] += 3600
    assert not watch.has_changed()
    watch.pause_after_looks_in_vain(LONGEST)
    now[0] += LEAST_PAUSE
    assert watch.has_changed()


def test_it_asks_the_less_often_the_longer_there_is_no_work_and_the_more_processes_ask(
    now: list[float], are_notified: list[bool]
) -> None:
    watch = ready_watch(are_notified)
    watch.has_changed()
    assert [watch.pace(idle) for idle in (0.0, 10.0, 100.0)] == pytest.approx([LONGEST / 10, LONGEST, 5 * LONGEST])
    for number in range(8):
        leases.register(f"process {number}", queues=[], threads=1)
    assert watch.pace(0.0) == pytest.approx(LONGEST / 10), "it does not count them each time"
    now[0] += COUNT_SECONDS + 1
    watch.has_changed()
    assert watch.pace(0.0) == seconds_of_a_round(8) < LONGEST
    for number in range(8, 64):
        leases.register(f"process {number}", queues=[], threads=1)
    now[0] += COUNT_SECONDS + 1
    watch.has_changed()
    assert watch.pace(0.0) == LONGEST, "as often as it would poll"


def test_questions_that_take_long_are_rare(monkeypatch: pytest.MonkeyPatch, are_notified: list[bool]) -> None:
    watch = ready_watch(are_notified)
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    for _ in range(30):
        watch.has_changed()
    assert watch.pace(0.0) == pytest.approx(rule.SHARE * rule.MOST_SECONDS, rel=0.1)


def test_a_server_that_was_slow_once_is_asked_again(monkeypatch: pytest.MonkeyPatch, are_notified: list[bool]) -> None:
    watch = ready_watch(are_notified)
    usual = watch.pace(0.0)
    with monkeypatch.context() as patch:
        ticks = itertools.count()
        patch.setattr(time, "monotonic", lambda: float(next(ticks)))
        watch.has_changed()
    assert watch.pace(0.0) > 5 * LONGEST, "longer than a rest"
    for _ in range(40):
        watch.pause_after_looks_in_vain(LONGEST)  # each was answered
    assert watch.pace(0.0) == usual


@pytest.mark.databases("postgresql", "mariadb")
def test_an_idle_worker_takes_a_job_that_nobody_told_it_of_though_it_would_not_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(poller, "FIRST_REST", 600.0)
    monkeypatch.setattr(ReadyWatch, "paces", ((float("inf"), 0.01 / 600),))
    with override_settings(DJANGO_JOBS={"NOTIFY": False}), running_process(threads=2, poll_interval=600.0):
        for _ in range(3):
            job = JobFactory(job_type="effects.record", payload={"key": "k"})
            wait_until(lambda job=job: Job.objects.get(pk=job.pk).status == "completed", 60, "the job is taken")
