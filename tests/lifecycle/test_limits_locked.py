"""Limits beside a transaction of the site that keeps jobs locked for long: others go before them, and nothing stands still."""

from collections.abc import Iterator
from typing import Any

import pytest

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.notify import room_in_process
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, slots
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import Job
from django_jobs.worker import maintenance
from tests.support.in_process import running_process
from tests.support.locked import Locked
from tests.support.waiting import dump_rows

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.databases("postgresql", "mariadb"),  # on SQLite there is one writer
]
NAME = "limited.locked"
SCOPE = f"type:{NAME}"
KEYS = pytest.mark.parametrize("options", [{}, {"fair_key": "a"}], ids=["plain", "keyed"])


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    leases.register("p", queues=[], threads=1)
    yield
    registry.forget(NAME)
    active_limits.forget_queues()


def limited(concurrency: int) -> None:
    job(NAME, limit=Limit(concurrency=concurrency), base_delay=0)(lambda payload: None)


def submitted(number: int, **options: Any) -> None:
    submit_many([NewJob(NAME, {}, job_id=f"j{place:03}", **options) for place in range(number)])


def claimed() -> list[str]:
    """Return what claims take, one after the other, until there is nothing for them."""
    return ids(claims())


def claims() -> list[ClaimedJob]:
    found: list[ClaimedJob] = []
    while jobs := claim("default", 10, "p"):
        found += jobs
    return found


def ids(jobs: list[ClaimedJob]) -> list[str]:
    return [one.id for one in jobs]


def done(*jobs: ClaimedJob) -> None:
    settle([Outcome.completed(one) for one in jobs], "p")


@KEYS
@pytest.mark.parametrize("locked", [1, 3, 30])
def test_where_those_who_are_next_are_locked_others_are_let_in(locked: int, options: dict[str, Any]) -> None:
    limited(2)
    submitted(locked + 6, **options)
    running = claim("default", 10, "p")
    assert ids(running) == ["j000", "j001"]
    with Locked(*(f"j{2 + place:03}" for place in range(locked))):
        done(*running)
        others = claims()
        assert ids(others) == [f"j{2 + locked:03}", f"j{3 + locked:03}"], dump_rows()
        done(others[0])
        assert claimed() == [f"j{4 + locked:03}"]
    done(others[1])
    assert claimed() == ["j002"], "as before, once it is free"


def test_who_settles_claims_others_than_those_that_are_locked() -> None:
    limited(2)
    submitted(6)
    running = claim("default", 10, "p")
    with Locked("j002"):
        handover = Handover(lambda queue: True, 2)
        assert settle_unlocked([Outcome.completed(one) for one in running], "p", handover) == []
        assert sorted([*ids(handover.jobs), *claimed()]) == ["j003", "j004"], dump_rows()


@KEYS
def test_where_all_who_are_next_are_locked_the_process_looks_again(options: dict[str, Any]) -> None:
    limited(1)
    submitted(3, **options)
    told: list[str] = []
    stop = room_in_process(told.append)
    try:
        with Locked("j001", "j002"):
            done(*claim("default", 10, "p"))
            assert (claimed(), told) == ([], [SCOPE])
            slots.let_in([SCOPE])
            assert (claimed(), told) == ([], [SCOPE, SCOPE])
        slots.let_in([SCOPE])
        assert (claimed(), told) == (["j001"], [SCOPE, SCOPE])
    finally:
        stop()


def test_a_worker_looks_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "LIMITS_SECONDS", 3_600.0)  # but for what it is told of
    limited(1)
    with running_process():
        submitted(2)
        Job.objects.get(pk="j001").wait(60)
        submit(NAME, {}, job_id="next", delay=0.001)
        assert Job.objects.get(pk="next").wait(60).status == "completed"
    submitted_again = [NewJob(NAME, {}, job_id=f"k{place}") for place in range(2)]
    submit_many(submitted_again)
    running = claim("default", 1, "p")
    assert ids(running) == ["k0"]
    with running_process():
        with Locked("k1"):
            done(*running)
            assert Job.objects.get(pk="k1").pending_limits == 1
        assert Job.objects.get(pk="k1").wait(60).status == "completed"


@KEYS
def test_one_that_was_let_in_and_is_locked_is_overtaken(options: dict[str, Any]) -> None:
    limited(1)
    submitted(4, **options)
    done(*claim("default", 1, "p"))
    with Locked("j001"):
        assert claimed() == []
        slots.sweep()
        second = claim("default", 1, "p")
        assert ids(second) == ["j002"], dump_rows()
        done(*second)
        slots.sweep()
        assert claimed() == ["j003"]


@KEYS
@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_ready_one_that_is_locked_is_overtaken(concurrency: int, options: dict[str, Any]) -> None:
    limited(concurrency)
    for number in range(6):
        submit(NAME, {}, job_id=f"j{number}", **options)
    with Locked("j0"):
        order = []
        while jobs := claim("default", 10, "p"):
            assert len(jobs) <= concurrency
            order += ids(jobs)
            done(*jobs)
        assert order == [f"j{number}" for number in range(1, 6)], dump_rows()
        assert max(Job.objects.values_list("fence", flat=True)) < 8, "it is not claimed again and again"
    assert claimed() == ["j0"]


@pytest.mark.parametrize("status", ["pending", "running"])
def test_the_lock_of_a_strangers_job_keeps_nobody_waiting(status: str) -> None:
    """Of a few rows MariaDB likes to look at all, and to lock them."""
    limited(1)
    for number in range(3):
        submit("catalogue.report", {"scan_id": number}, job_id=f"other{number}", queue="other")
    if status == "running":
        assert len(claim("other", 10, "p")) == 3
    for number in range(4):
        submit(NAME, {}, job_id=f"j{number}")
    with Locked("other0", "other1", "other2"):
        first = claims()
        assert ids(first) == ["j0"]
        assert change(["j1"], priority=6).done == ["j1"]
        assert cancel(["j2"]).done == ["j2"]
        done(*first)
        second = claims()
        assert ids(second) == ["j1"]
        release(second)
        assert claimed() == ["j1"]
