"""Idle threads see that somebody has committed, where that costs microseconds, and do not look more often on a busy site."""

import time
from collections.abc import Iterator

import pytest

from django_jobs.db.dialects import dialect
from django_jobs.models import Job
from django_jobs.worker import poller
from django_jobs.worker.poller import WATCH_SECONDS, CommitWatch
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
            now[0] += WATCH_SECONDS / 4
        pauses.append(now[0] - began)
        watch.pause_after_looks_in_vain(LONGEST)
        now[0] += LONGEST
    assert pauses == sorted(pauses)
    assert WATCH_SECONDS <= pauses[0] < 2 * WATCH_SECONDS
    assert LONGEST <= pauses[-1] <= LONGEST + WATCH_SECONDS
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
