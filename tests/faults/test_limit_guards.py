"""Each lock and each look of limits is needed: a check holds with it, and fails once it is taken out."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import pytest

from django_jobs import Limit, job, submit
from django_jobs.db.dialects import dialect
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, scopes, slots
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import Job, WorkerProcess
from tests.support.guards import EVERYWHERE, SERVERS, each_guard

from .test_guards import _meanwhile

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "limited.guarded"


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    job(NAME, limit=Limit(concurrency=1))(lambda payload: None)
    yield
    registry.forget(NAME)
    active_limits.forget_queues()


def begin(*ids: str) -> None:
    for name in ("one", "two"):
        leases.register(name, queues=[], threads=1)
    for job_id in ids:
        submit(NAME, {}, job_id=job_id)


def claimed() -> ClaimedJob:
    (only,) = claim("default", 5, "one")
    return only


def running() -> list[str]:
    return sorted(Job.objects.filter(status="running").values_list("pk", flat=True))


def two_claims_take_one_slot() -> None:
    begin("a")
    submit(NAME, {}, job_id="b", queue="other")
    first, second = _meanwhile(lambda: claim("default", 1, "one"), lambda: claim("other", 1, "two"))
    assert len(first) + len(second) == 1, running()


def a_settle_gives_its_slot_on_to_the_first_that_waits() -> None:
    begin("a", "b", "c")
    settle([Outcome.completed(claimed())], "one")
    assert [one.id for one in claim("default", 5, "two")] == ["b"]


def who_settles_overtakes_no_ready_job() -> None:
    begin("a", "b")
    one = claimed()
    submit(NAME, {}, job_id="urgent", priority=9)
    handover = Handover(lambda queue: True)
    settle_unlocked([Outcome.completed(one)], "one", handover)
    assert [one.id for one in handover.jobs] == []
    assert [one.id for one in claim("default", 5, "two")] == ["urgent"]


def a_rescue_gives_slots_on() -> None:
    begin("a", "b")
    claimed()
    rescue_process("one")
    assert [one.id for one in claim("default", 5, "two")] == ["b"]


def a_job_that_arrives_late_does_not_overtake() -> None:
    begin("a", "b")
    claimed()
    Job.objects.filter(pk="a").delete()  # nobody was told
    submit(NAME, {}, job_id="c")
    assert [one.id for one in claim("default", 5, "two")] == ["b"]


def a_cancelled_job_gives_its_turn_on() -> None:
    begin("a", "b", "c")
    settle([Outcome.completed(claimed())], "one")
    cancel(["b"])
    assert [one.id for one in claim("default", 5, "two")] == ["c"]


def what_a_deleted_run_leaves_is_found() -> None:
    begin("a", "b")
    claimed()
    Job.objects.filter(pk="a").delete()
    slots.sweep()
    assert [one.id for one in claim("default", 5, "two")] == ["b"]


def without_lock_of_scopes() -> AbstractContextManager[Any]:
    return mock.patch.object(type(dialect()), "lock_scopes", return_value=None)


def without_giving_on() -> AbstractContextManager[Any]:
    return mock.patch.object(slots, "give_on", return_value=None)


@contextmanager
def without_looking_ahead() -> Iterator[None]:
    kind = type(dialect())
    look = kind.next_in_one_queue

    def blind(self: Any, *given: Any) -> Any:
        rows = look(self, *given)
        return None if rows is None else [(*row[:-1], False) for row in rows]

    with mock.patch.object(kind, "overtaken", return_value=set()), mock.patch.object(kind, "next_in_one_queue", blind):
        yield


def without_leaving() -> AbstractContextManager[Any]:
    return mock.patch.object(slots, "leave", return_value=None)


def without_turns() -> AbstractContextManager[Any]:
    return mock.patch.object(scopes.Scopes, "see_who_comes_first", return_value=None)


def without_sweep() -> AbstractContextManager[Any]:
    return mock.patch.object(slots, "_sweep", return_value=None)


GUARDS: list[tuple[Callable[[], AbstractContextManager[Any]], Callable[[], None], tuple[str, ...]]] = [
    (without_lock_of_scopes, two_claims_take_one_slot, SERVERS),
    (without_giving_on, a_settle_gives_its_slot_on_to_the_first_that_waits, EVERYWHERE),
    (without_looking_ahead, who_settles_overtakes_no_ready_job, EVERYWHERE),
    (without_giving_on, a_rescue_gives_slots_on, EVERYWHERE),
    (without_turns, a_job_that_arrives_late_does_not_overtake, EVERYWHERE),
    (without_leaving, a_cancelled_job_gives_its_turn_on, EVERYWHERE),
    (without_sweep, what_a_deleted_run_leaves_is_found, EVERYWHERE),
]


@pytest.mark.parametrize(("taken_out", "check"), [*each_guard(GUARDS)])
def test_the_check_holds_and_fails_without_its_guard(
    taken_out: Callable[[], AbstractContextManager[Any]], check: Callable[[], None]
) -> None:
    check()
    Job.objects.all().delete()
    WorkerProcess.objects.all().delete()
    with taken_out(), pytest.raises(AssertionError):
        check()
