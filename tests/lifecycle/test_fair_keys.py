"""Fair keys: the jobs of one queue and priority take turns by their keys, in every way to claim them."""

from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.lines import Line
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import slots, starts, turns
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.lifecycle.settle import settle
from django_jobs.models import FairTurn, Job
from django_jobs.queue import JobQueue
from django_jobs.testing import advance_time, run_due
from django_jobs.testing.factory import worker_process
from django_jobs.worker.local_process import stop_local_process
from tests.support.locked import Locked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _forget() -> None:
    turns.forget_queues()


@pytest.fixture
def by_tenant() -> Any:
    @job("tests.by_tenant", fair_key="tenant")
    def by_tenant(payload: dict[str, Any]) -> None: ...

    yield by_tenant
    registry.forget("tests.by_tenant")
    stop_local_process()


@pytest.fixture
def one_at_once() -> Any:
    """Declare a type with a fair key of which one job may run at once, over all keys."""

    @job("tests.one_at_once", fair_key="tenant", limit=Limit(concurrency=1))
    def one_at_once(payload: dict[str, Any]) -> None: ...

    yield one_at_once
    registry.forget("tests.one_at_once")


def _many(key: str | None, number: int, **options: Any) -> list[Job]:
    return submit_many(
        [NewJob("tests.by_tenant", {"tenant": key, "number": index}, **options) for index in range(number)]
    )


def _claimed(limit: int = 1, times: int = 1, queue: str = "default", ageing: float | None = None) -> list[str]:
    """Return the keys of the claimed jobs, in the order in which they start."""
    found: list[str] = []
    with worker_process() as process_id:
        for _ in range(times):
            found += [one.fair_key or "-" for one in claim(queue, limit, process_id, ageing=ageing)]
    return found


def test_a_single_job_starts_second_behind_a_key_with_many(by_tenant: Any) -> None:
    _many("a", 50)
    _many("b", 1)
    assert _claimed(times=4) == ["a", "b", "a", "a"]


def test_a_batch_gives_each_key_its_turns(by_tenant: Any) -> None:
    _many("a", 50)
    _many("b", 3)
    _many("c", 1)
    assert _claimed(limit=10) == ["a", "b", "c", "a", "b", "a", "b", "a", "a", "a"]


def test_turns_go_on_over_batches(by_tenant: Any) -> None:
    for key in "abcde":
        _many(key, 4)
    assert "".join(_claimed(limit=3, times=6)) == "abcdeabcdeabcdeabc"


def test_jobs_without_a_key_are_one_more_key(by_tenant: Any) -> None:
    _many(None, 20)
    _many("a", 20)
    _many("b", 1)
    assert _claimed(limit=7) == ["a", "b", "-", "a", "-", "a", "-"]


def test_within_a_key_the_claim_order_holds(by_tenant: Any) -> None:
    first = _many("a", 3)
    with worker_process() as process_id:
        assert [one.id for one in claim("default", 9, process_id)] == [one.id for one in first]


def test_priority_comes_before_turns(by_tenant: Any) -> None:
    _many("a", 3, priority=1)
    _many("b", 3, priority=9)
    _many("c", 1, priority=9)
    assert _claimed(limit=7) == ["b", "c", "b", "b", "a", "a", "a"]


@pytest.mark.databases("postgresql", "mariadb")  # on SQLite there is one writer
def test_jobs_at_the_head_that_the_site_has_locked_do_not_stop_the_queue(by_tenant: Any) -> None:
    firsts = [_many(key, number)[0] for key, number in (("a", 3), ("b", 2), ("c", 1))]
    with ExitStack() as stack:
        for first in firsts:
            stack.enter_context(Locked(first.pk))
        with worker_process() as process_id:
            found = [one for _ in range(4) for one in claim("default", 1, process_id)]
    assert sorted(one.fair_key for one in found) == ["a", "a", "b"]
    assert not {one.id for one in found} & {first.pk for first in firsts}


def test_a_key_that_was_away_is_owed_nothing(by_tenant: Any) -> None:
    _many("a", 20)
    assert _claimed(limit=10) == ["a"] * 10
    _many("b", 20)
    assert _claimed(limit=6) == ["b", "a", "b", "a", "b", "a"]


def test_a_text_at_submit_takes_the_place_of_the_payloads_key(by_tenant: Any) -> None:
    jobs = [by_tenant.submit({"tenant": 7}), by_tenant.submit({"tenant": 7}, fair_key="tenant:7")]
    assert [Job.objects.get(pk=one.pk).fair_key for one in jobs] == ["7", "tenant:7"]


@pytest.mark.parametrize(
    ("payload", "options", "words"),
    [
        ({"other": 1}, {}, "no key 'tenant', by which jobs take turns"),
        ({"tenant": 1.5}, {}, "give a string or an integer"),
        ({"tenant": ""}, {}, "must not be empty"),
        ({"tenant": "a"}, {"fair_key": ""}, "must not be empty"),
        ({"tenant": "a"}, {"fair_key": 7}, "fair_key"),
        ({"tenant": "a"}, {"fair_key": "x" * 201}, "201 characters"),
    ],
)
def test_a_bad_key_is_refused(by_tenant: Any, payload: Any, options: Any, words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        submit("tests.by_tenant", {"number": 1, **payload}, **options)
    assert not Job.objects.exists()


def test_a_function_of_the_payload_names_the_key() -> None:
    queue = JobQueue("mail")
    queue.register_handler("tests.called", lambda payload: None, fair_key=lambda payload: payload["of"][0])
    queue.enqueue("tests.called", {"of": ["x"]})
    assert Job.objects.get().fair_key == "x"


async def _coroutine(payload: dict[str, Any]) -> str:
    return "x"


@pytest.mark.parametrize("key", ["", 7, True, _coroutine])
def test_a_bad_key_of_a_type_is_refused(key: Any) -> None:
    with pytest.raises(InvalidJob, match="fair_key"):
        job("tests.bad_key", fair_key=key)(lambda: None)


def test_keys_of_a_type_that_declares_none_take_turns(by_tenant: Any) -> None:
    queue = JobQueue("adhoc")
    queue.register_handler("tests.adhoc", lambda payload: None)
    for key in "aaab":
        queue.enqueue("tests.adhoc", fair_key=key)
    assert _claimed(queue="adhoc", times=2) == ["a", "b"]


def test_peek_and_dequeue_take_turns(by_tenant: Any) -> None:
    queue = JobQueue("default")
    _many("a", 3)
    _many("b", 1)
    seen = []
    for _ in range(4):
        peeked, taken = queue.peek(), queue.dequeue()
        assert peeked is not None
        assert taken is not None
        assert peeked.id == taken.id
        seen.append(taken.fair_key)
    assert seen == ["a", "b", "a", "a"]
    assert queue.peek() is None


def test_process_next_takes_turns(by_tenant: Any) -> None:
    queue = JobQueue("default")
    _many("a", 2)
    _many("b", 1)
    ran = [queue.process_next() for _ in range(4)]
    assert [one and Job.objects.get(pk=one).fair_key for one in ran] == ["a", "b", "a", None]


def test_the_testing_kit_takes_turns(by_tenant: Any) -> None:
    _many("a", 3)
    _many(None, 1)
    _many("b", 2)
    assert [one.fair_key for one in run_due()] == ["a", "b", None, "a", "b", "a"]


def test_a_paused_queue_gives_nothing_and_takes_no_turn(by_tenant: Any) -> None:
    _many("a", 2)
    _many("b", 1)
    pause("default")
    assert _claimed(limit=3) == []
    assert not FairTurn.objects.exists()
    resume("default")
    assert _claimed(limit=3) == ["a", "b", "a"]


def test_a_job_that_comes_later_waits_at_the_end_of_its_keys_line(by_tenant: Any) -> None:
    (retried,) = _many("a", 1)
    Job.objects.filter(pk=retried.pk).update(available_at=retried.available_at + timedelta(hours=1))
    others = _many("a", 2)
    with worker_process() as process_id:
        assert [one.id for one in claim("default", 3, process_id)] == [*(one.id for one in others), retried.id]


def test_ageing_decides_between_priorities_and_turns_within_each(by_tenant: Any) -> None:
    _many("a", 3, priority=5)
    (old,) = _many("b", 1, priority=5)
    Job.objects.filter(pk=old.pk).update(available_at=old.available_at - timedelta(minutes=30))
    _many("c", 2, priority=6)
    # Half an hour weighs three steps: the rank of the old job comes first until that one has had its turn.
    assert _claimed(limit=6, ageing=600) == ["a", "b", "c", "c", "a", "a"]


def test_a_rank_that_is_young_waits(by_tenant: Any) -> None:
    _many("a", 2, priority=5)
    _many("c", 2, priority=6)
    assert _claimed(limit=4, ageing=600) == ["c", "c", "a", "a"]


def test_who_is_put_back_keeps_the_turn(by_tenant: Any) -> None:
    registry.forget("tests.by_tenant")

    @job("tests.by_tenant", fair_key="tenant", limit=Limit(concurrency=1, key="tenant"))
    def one_a_tenant(payload: dict[str, Any]) -> None: ...

    for key in "abc":
        for number in range(3):
            submit("tests.by_tenant", {"tenant": key, "number": number})
    assert _claimed(limit=2) == ["a", "b"]
    assert _claimed(limit=2) == ["c"]  # the others are held back


def _run_one_by_one(times: int) -> list[str]:
    """Claim one job and complete it, over and over; return their keys, and "-" where there was none."""
    found = []
    with worker_process() as process_id:
        for _ in range(times):
            jobs = claim("default", 1, process_id)
            found += [str(Job.objects.get(pk=one.id).fair_key) for one in jobs] or ["-"]
            settle([Outcome.completed(one, "null") for one in jobs], process_id)
    return found


def test_jobs_that_a_limit_holds_back_take_turns(one_at_once: Any) -> None:
    submit_many([NewJob("tests.one_at_once", {"tenant": "a"}) for _ in range(30)])
    submit("tests.one_at_once", {"tenant": "b"})
    assert Job.objects.filter(pending_limits=1).count() == 29
    order = _run_one_by_one(8)
    assert "b" in order[:4], order
    assert "-" not in order


def test_keys_do_not_loosen_a_limit(one_at_once: Any) -> None:
    for key in "abcabc":
        submit("tests.one_at_once", {"tenant": key})
    assert len(_claimed(limit=6)) == 1
    assert _claimed(limit=6) == []


def test_held_back_keys_are_served_round_by_round(one_at_once: Any) -> None:
    submit_many([NewJob("tests.one_at_once", {"tenant": key}) for key in "aaaabbbbcccc"])
    order = "".join(_run_one_by_one(12))
    assert Counter(order) == {"a": 4, "b": 4, "c": 4}
    assert all({*order[start : start + 3]} == {*"abc"} for start in range(0, 12, 3)), order


def test_held_back_jobs_of_a_higher_priority_go_first(one_at_once: Any) -> None:
    submit_many([NewJob("tests.one_at_once", {"tenant": key}, priority=5) for key in "aabb"])
    submit_many([NewJob("tests.one_at_once", {"tenant": "c"}, priority=9) for _ in range(2)])
    order = "".join(_run_one_by_one(6))
    assert order.index("c") <= 1
    assert Counter(order) == {"a": 2, "b": 2, "c": 2}


def test_ageing_orders_jobs_that_a_limit_holds_back(one_at_once: Any, settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"default": {"ageing": 600}}}
    old = [submit("tests.one_at_once", {"tenant": None}, priority=5, metadata={"old": True}) for _ in range(2)]
    Job.objects.update(available_at=old[0].available_at - timedelta(hours=2))
    submit_many([NewJob("tests.one_at_once", {"tenant": None}, priority=9) for _ in range(3)])
    seen = []
    with worker_process() as process_id:
        for _ in range(5):
            jobs = claim("default", 1, process_id, ageing=600)
            seen += [Job.objects.get(pk=one.id).priority for one in jobs]
            settle([Outcome.completed(one, "null") for one in jobs], process_id)
    # Two hours weigh twelve steps of priority; without them the nines, of which one was let in at the submit, would go first.
    assert seen == [5, 5, 9, 9, 9]


def test_with_many_keys_two_starts_of_one_are_at_most_a_round_apart(by_tenant: Any) -> None:
    keys = [f"k{number:03}" for number in range(60)]
    submit_many([NewJob("tests.by_tenant", {"tenant": key}) for key in keys for _ in range(4)])
    order = _claimed(limit=7, times=40)
    assert Counter(order) == Counter(dict.fromkeys(keys, 4))
    last: dict[str, int] = {}
    for place, key in enumerate(order):
        assert place - last.get(key, place) <= 2 * len(keys)
        last[key] = place
    assert max(order.index(key) for key in keys) < len(keys)


def test_no_statement_more_for_jobs_without_keys(django_assert_num_queries: Any) -> None:
    queue = JobQueue("plain")
    queue.register_handler("tests.plain", lambda payload: None)
    for _ in range(4):
        queue.enqueue("tests.plain")
    with worker_process() as process_id:
        claim("plain", 1, process_id)  # it looks whether there are keys
        with mock.patch.object(turns, "LOOK_SECONDS", 3600.0):
            claim("plain", 1, process_id)
            with mock.patch.object(turns.lines, "has_keyed", side_effect=AssertionError):
                turns._known.keep("plain", False)
                assert len(claim("plain", 1, process_id)) == 1


def test_a_job_with_a_key_that_another_process_submitted_is_found_by_the_next_claim_in_vain() -> None:
    queue = JobQueue("adhoc")
    queue.register_handler("tests.adhoc", lambda payload: None)
    queue.enqueue("tests.adhoc", fair_key="a")
    turns._known.keep("adhoc", False)  # as a process knows that has looked before
    assert _claimed(queue="adhoc") == ["a"]


def test_the_order_of_turns_is_that_of_a_line_sorted_in_memory(by_tenant: Any) -> None:
    for key, number in (("a", 4), ("b", 2), (None, 3), ("z", 1)):
        _many(key, number, priority=5)
        _many(key, 1, priority=7)
    line = Line("default")
    FairTurn.objects.create(queue="default", rank=0, key="a", used_at=Job.objects.first().created_at)
    everyone = [
        turns.InLine(*row[:3], row[3] or "")
        for row in Job.objects.values_list("rank", "available_at", "id", "fair_key")
    ]
    for ageing in (None, 60.0):
        wanted = turns.in_turn(everyone, turns.turns_of(line), ageing)
        for most in (1, 3, 8, 40):
            assert turns.first_in_turn(line, most, ageing) == wanted[:most]


def test_keys_of_a_paused_queue_keep_nobody_of_another_queue_waiting(one_at_once: Any) -> None:
    for queue in ("default", "other"):
        submit_many([NewJob("tests.one_at_once", {"tenant": key}, queue=queue) for key in "aab"])
    pause("default")
    seen = []
    with worker_process() as process_id:
        for _ in range(3):
            (one,) = claim("other", 1, process_id)
            assert claim("default", 1, process_id) == []
            settle([Outcome.completed(one, "null")], process_id)
            seen.append(Job.objects.get(pk=one.id).fair_key)
    assert sorted(seen) == ["a", "a", "b"]
    resume("default")
    assert "-" not in _run_one_by_one(3)


def test_keys_share_the_rate_of_a_type() -> None:
    job("tests.rated_tenant", fair_key="tenant", limit=Limit(rate="2/h"))(lambda payload: None)
    try:
        submit_many([NewJob("tests.rated_tenant", {"tenant": key}) for key in "aaaaab"])
        hours = []
        with worker_process() as process_id:
            for _ in range(3):
                jobs = claim("default", 10, process_id)
                assert all(starts.record_start(one.id, one.fence, one.rated) for one in jobs)
                settle([Outcome.completed(one, "null") for one in jobs], process_id)
                hours.append(sorted(str(Job.objects.get(pk=one.id).fair_key) for one in jobs))
                advance_time(timedelta(hours=1))
                slots.take_turns()
        assert hours == [["a", "b"], ["a", "a"], ["a", "a"]]
    finally:
        registry.forget("tests.rated_tenant")
