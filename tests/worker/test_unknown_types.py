"""A job whose type no handler here knows: left to another site or deploy for a while, then FAILED with a dead letter."""

from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError

from django_jobs.conf import this_site
from django_jobs.lifecycle import unknown_type
from django_jobs.lifecycle.submit import submit
from django_jobs.models import Attempt, DeadLetter, Job, Schedule
from django_jobs.queue import JobQueue
from django_jobs.testing import advance_time
from django_jobs.worker.local_process import stop_local_process
from tests.support.factories import WorkerProcessFactory
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
LEFT = "left to another deploy: job type 't.theirs' has no handler in this process"


@pytest.fixture(autouse=True)
def _no_process_of_the_script_is_left() -> Any:
    yield
    stop_local_process()


def with_grace(settings: Any, seconds: float | None) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "UNKNOWN_TYPE_GRACE_SECONDS": seconds}


def unknown(**options: Any) -> Job:
    return submit("t.theirs", {}, any_type=True, options=options)


def test_a_site_that_is_alone_ends_it_at_once() -> None:
    WorkerProcessFactory(site=this_site())
    Schedule.objects.create(name="n", job_type="t", kind="interval", interval_seconds=60, declared=True, site="tests")
    Schedule.objects.create(name="by hand", job_type="t", kind="interval", interval_seconds=60, site="")
    assert unknown_type.grace_seconds() == 0
    job, queue = unknown(), JobQueue()
    assert queue.process_next() == job.id
    assert (queue.get_job(job.id).status, DeadLetter.objects.get().reason) == ("failed", "no handler")


@pytest.mark.parametrize("trace", ["process", "schedule", "setting"])
def test_it_is_left_where_another_site_is_known_or_the_setting_says_so(
    settings: Any, trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_type, "SHORTEST_DELAY", 60.0)
    if trace == "process":
        WorkerProcessFactory(site="theirs")
    elif trace == "schedule":
        Schedule.objects.create(
            name="n", job_type="t", kind="interval", interval_seconds=60, declared=True, site="theirs", enabled=False
        )
    else:
        with_grace(settings, 900)
    job, queue = unknown(max_retries=4), JobQueue()
    assert queue.process_next() == job.id
    job.refresh_from_db()
    assert (job.status, job.retry_count, job.crash_count, job.worker_id is None) == ("scheduled", 0, 0, False)
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.error[: len(LEFT)]) == ("released", LEFT)
    assert not DeadLetter.objects.exists()
    assert queue.process_next() is None, "it is not taken again and again"


@pytest.mark.slow
def test_a_worker_that_knows_the_type_runs_it(settings: Any, bench: Bench) -> None:
    with_grace(settings, 900)
    jobs = [unknown() for _ in range(5)]
    queue = JobQueue()
    while queue.process_next():
        pass
    bench.handle("t.theirs", lambda payload: "by them")
    assert bench.run(*jobs) == ["completed"] * 5
    assert {job.result for job in jobs} == {"by them"}
    assert {job.retry_count for job in jobs} == {0}


def test_after_the_grace_it_fails_with_a_dead_letter_and_a_replay_has_a_new_one(settings: Any) -> None:
    with_grace(settings, 600)
    job, queue = unknown(), JobQueue()

    def delays() -> list[float]:
        """Let a minute go by at a time until the job has ended; return for how long it was left each time."""
        found = []
        for _ in range(20):
            # The process's own chores may be promoting the job just then, and its row is locked.
            wait_until(lambda: queue.process_next() == job.id, 60)
            job.refresh_from_db()
            if job.status == "failed":
                return found
            found.append(round((job.available_at - job.updated_at).total_seconds()))
            advance_time(timedelta(minutes=1))
        raise AssertionError(f"no end: {found}")

    first = delays()
    assert first == [1, 30, *[60] * (len(first) - 2)]
    assert len(first) == 10
    assert DeadLetter.objects.get().reason == "no handler"
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"released", "failed"}
    job.replay()
    assert delays() == first


def test_a_run_by_those_who_know_it_begins_the_grace_anew(settings: Any) -> None:
    with_grace(settings, 60)
    job, ours, theirs = unknown(max_retries=3), JobQueue(), JobQueue()

    def fail(payload: Any) -> None:
        raise ValueError("for now")

    theirs.register_handler("t.theirs", fail, base_delay=0, max_delay=0)
    for queue in (ours, theirs, ours):
        advance_time(timedelta(minutes=5))
        assert queue.process_next() == job.id
    job.refresh_from_db()
    assert job.status == "scheduled"
    assert list(Attempt.objects.order_by("pk").values_list("outcome", flat=True)) == ["released", "failed", "released"]


def test_a_cancelled_one_ends_cancelled(settings: Any) -> None:
    with_grace(settings, 900)
    job = unknown()
    JobQueue().process_next()
    assert Job.objects.get(pk=job.pk).cancel() == "cancelled"
    assert JobQueue().process_next() is None


@pytest.mark.slow
def test_while_the_database_cannot_say_how_long_it_waited_it_waits(bench: Bench) -> None:
    bench.handle("t.ok", lambda payload: None)
    with mock.patch.object(unknown_type, "grace_seconds", side_effect=OperationalError("gone")) as asked:
        job = unknown()
        process = bench.start()
        wait_until(lambda: Attempt.objects.filter(job=job, outcome="released").exists())
        assert bench.submit("t.ok").wait(60).status == "completed"
    assert job.wait(60).status == "failed"
    assert asked.called
    process.stop(grace=10)
