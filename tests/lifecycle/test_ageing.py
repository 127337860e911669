"""Ageing: waiting weighs as much as priority, in every claim of a queue that says so, and in no other."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import django_jobs
from django_jobs import Limit
from django_jobs.db.transactions import database_now
from django_jobs.handlers import make_handler, registry
from django_jobs.lifecycle import leases, queues, turns
from django_jobs.lifecycle.claim import claim
from django_jobs.models import Job
from django_jobs.queue import JobQueue
from django_jobs.testing import run_due
from django_jobs.worker.local_process import stop_local_process
from tests.support.factories import JobFactory
from tests.support.locked import Locked
from tests.worker.conftest import Bench, bench  # noqa: F401  a fixture

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    leases.register("p", queues=[], threads=1)
    yield
    stop_local_process()


@pytest.fixture
def aged(settings: Any) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "QUEUES": {"default": {"ageing": "10m"}}}


def waiting(job_id: str, priority: int, since: datetime, **options: Any) -> None:
    JobFactory(id=job_id, priority=priority, available_at=since, created_at=since, **options)


def expected(ageing: float) -> list[str]:
    """Return the order by the formula: priority plus what was waited by the ageing; of two that are equal the older one."""
    now = database_now()

    def place(job: Job) -> Any:
        weight = -job.rank * ageing / 20 + (now - job.available_at) / timedelta(seconds=1)
        return -round(weight, 5), job.available_at, job.id

    return [job.id for job in sorted(Job.objects.all(), key=place)]


def test_the_claim_order_is_that_of_priority_plus_what_was_waited_by_the_ageing() -> None:
    now = database_now()
    waiting("new-10", 10, now)
    waiting("new-5", 5, now - MINUTE)
    waiting("old-1", 1, now - 95 * MINUTE)
    waiting("old-5", 5, now - 51 * MINUTE)
    waiting("older-1", 1, now - 89 * MINUTE)
    assert [job.id for job in claim("default", 10, "p", ageing=600.0)] == [
        "old-1",
        "old-5",
        "new-10",
        "older-1",
        "new-5",
    ]


def test_of_two_that_weigh_the_same_the_older_one_is_first() -> None:
    now = database_now()
    waiting("young", 6, now)
    waiting("old", 5, now - 10 * MINUTE)
    assert [job.id for job in claim("default", 1, "p", ageing=600.0)] == ["old"]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_claims_of_any_size_follow_the_formula_over_all_ranks(size: int) -> None:
    chance, now = random.Random(7), database_now()
    for number in range(150):
        since = now - timedelta(microseconds=chance.randrange(7_200_000_000))
        waiting(f"{number:03}", 5, since, rank=chance.choice([-100, -40, -20, -19, 0, 3, 80, 100]))
    order = expected(600.0)
    claimed: list[str] = []
    while jobs := claim("default", size, "p", ageing=600.0):
        claimed += [job.id for job in jobs]
    assert claimed == order


def test_a_paused_queue_and_a_dead_process_claim_nothing() -> None:
    now = database_now()
    waiting("a", 5, now)
    waiting("b", 6, now)
    assert claim("default", 5, "nobody", ageing=600.0) == []
    queues.pause("default")
    assert claim("default", 5, "p", ageing=600.0) == []


@pytest.mark.databases("postgresql", "mariadb")
def test_a_locked_job_is_passed_over() -> None:
    now = database_now()
    waiting("locked", 1, now - timedelta(days=9))
    waiting("next", 1, now)
    waiting("other", 9, now)
    with Locked("locked"):
        assert [job.id for job in claim("default", 3, "p", ageing=600.0)] == ["other", "next"]


def test_a_queue_without_ageing_runs_the_same_statements_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LOOK_SECONDS", 3600.0)
    waiting("a", 5, database_now())
    waiting("b", 6, database_now())
    turns.look("default")
    with CaptureQueriesContext(connection) as without:
        claim("default", 1, "p")
    with CaptureQueriesContext(connection) as beside:
        claim("default", 1, "p", ageing=None)
    assert len(without) == len(beside)
    assert not any("heads" in query["sql"] or "RECURSIVE" in query["sql"] for query in beside)


@pytest.mark.usefixtures("aged")
def test_workers_take_an_old_job_of_a_low_priority_first(bench: Bench) -> None:  # noqa: F811
    ran: list[str] = []
    bench.handle("t.note", lambda payload: ran.append(payload["name"]))
    now = database_now()
    waiting("urgent", 9, now, job_type="t.note", payload={"name": "urgent"})
    waiting("old", 1, now - 90 * MINUTE, job_type="t.note", payload={"name": "old"})
    bench.run(*Job.objects.all())
    assert ran == ["old", "urgent"]
    assert Job.objects.get(pk="old").priority == 1, "the stored priority stays"


def test_a_queue_object_peeks_dequeues_and_runs_in_aged_order() -> None:
    now = database_now()
    queue = JobQueue("letters", ageing="10m")
    queue.register_handler("t.note", lambda payload: None)
    for number, minutes in enumerate((90, 80, 85)):
        waiting(f"old-{number}", 1, now - minutes * MINUTE, queue="letters", job_type="t.note")
    waiting("urgent", 9, now - MINUTE, queue="letters", job_type="t.note")
    for expected_id in ("old-0", "old-2"):
        peeked, taken = queue.peek(), queue.dequeue()
        assert [job.id for job in (peeked, taken) if job is not None] == [expected_id] * 2
    assert [queue.process_next(), queue.process_next(), queue.process_next()] == ["urgent", "old-1", None]


@pytest.mark.usefixtures("aged")
def test_the_testing_kit_runs_in_aged_order() -> None:
    now = database_now()
    waiting("urgent", 9, now)
    waiting("other", 9, now, queue="other")
    waiting("old", 1, now - 90 * MINUTE)
    ran = [job.id for job in run_due()]
    assert ran.index("old") < ran.index("urgent")
    assert len(ran) == 3


@pytest.mark.usefixtures("aged")
def test_limits_hold_in_an_aged_queue() -> None:
    registry.register(make_handler(lambda payload: None, "t.limited", {"limit": Limit(concurrency=1)}))
    try:
        for priority in (1, 9, 5):
            django_jobs.submit("t.limited", priority=priority)
        assert len(claim("default", 5, "p", ageing=600.0)) == 1
        assert claim("default", 5, "p", ageing=600.0) == []
    finally:
        registry.forget("t.limited")
