"""Each lock and each look of fair keys and of rates is needed: a check holds with it, and fails once it is taken out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db.models import F

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.dialects import dialect
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, scopes, slots, starts, turns
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.limit import Rate
from django_jobs.models import FairTurn, Job, LimitStart, LimitTurn, WorkerProcess
from django_jobs.testing import advance_time
from tests.support.guards import EVERYWHERE, SERVERS, each_guard

from .test_guards import _meanwhile

pytestmark = pytest.mark.django_db(transaction=True)
KEYED, ONE_AT_ONCE, RATED = "guarded.keyed", "guarded.one_at_once", "guarded.rated"


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    job(KEYED, fair_key="tenant")(lambda payload: None)
    job(ONE_AT_ONCE, fair_key="tenant", limit=Limit(concurrency=1))(lambda payload: None)
    job(RATED, limit=Limit(rate="1/h"))(lambda payload: None)
    yield
    for name in (KEYED, ONE_AT_ONCE, RATED):
        registry.forget(name)
    active_limits.forget_queues()


def begin(name: str, keys: str) -> None:
    for process_id in ("one", "two"):
        leases.register(process_id, queues=[], threads=1)
    submit_many([NewJob(name, {"tenant": key}, job_id=f"{key}{place}") for place, key in enumerate(keys)])


def ids(jobs: Sequence[ClaimedJob]) -> list[str]:
    return [one.id for one in jobs]


def claimed(most: int = 1) -> list[str]:
    return ids(claim("default", most, "one"))


def run_one() -> list[str]:
    jobs = claim("default", 1, "one")
    settle([Outcome.completed(one) for one in jobs], "one")
    return ids(jobs)


# --- fair keys


def a_claim_beside_another_takes_the_next_turn() -> None:
    begin(KEYED, "aabb")
    with mock.patch.object(turns, "first_in_turn", side_effect=turns.first_in_turn) as look:
        first, second = _meanwhile(lambda: claim("default", 1, "one"), lambda: claim("default", 1, "two"))
    assert ids(first) + ids(second) == ["a0", "b2"]
    assert [call.args[1] for call in look.call_args_list] == [1, 1], "who is behind those that the other one has locked"


def the_round_goes_on_behind_the_key_that_was_served_last() -> None:
    begin(KEYED, "aaabc")
    assert [claimed() for _ in range(4)] == [["a0"], ["b3"], ["c4"], ["a1"]]


def a_key_in_the_middle_of_the_round_is_not_passed_over() -> None:
    begin(KEYED, "aabbcc")
    assert claimed(2) == ["a0", "b2"]
    assert claimed(2) == ["c4", "a1"]


def jobs_with_a_key_are_found_by_who_knew_of_none() -> None:
    begin(KEYED, "a")
    turns._known.keep("default", False)
    assert claimed() == ["a0"]


def held_back_jobs_take_turns() -> None:
    begin(ONE_AT_ONCE, "aaaaab")
    assert "b5" in [job_id for _ in range(3) for job_id in run_one()]


def a_keys_job_that_arrives_late_does_not_overtake_those_that_wait() -> None:
    begin(ONE_AT_ONCE, "ab")
    assert claimed() == ["a0"]
    Job.objects.filter(pk="a0").delete()  # nobody was told
    submit(ONE_AT_ONCE, {"tenant": "z"}, job_id="z")
    assert claimed(5) == ["b1"]


def without_lock_of_turns() -> AbstractContextManager[Any]:
    return mock.patch.object(type(dialect()), "lock_turns", return_value=None)


def without_keeping_whose_turn_it_was() -> AbstractContextManager[Any]:
    return mock.patch.object(turns, "serve", return_value=None)


def without_order_of_the_ring() -> AbstractContextManager[Any]:
    return mock.patch.object(turns, "_in_ring", lambda line, rank, served, most: turns.lines.keys(line, rank, "", most))


def without_another_look_for_keys() -> AbstractContextManager[Any]:
    return mock.patch.object(turns, "look_again", return_value=False)


def without_turns_for_slots() -> AbstractContextManager[Any]:
    return mock.patch.object(scopes.Scopes, "serve_turns", return_value=None)


def without_a_look_at_who_is_ahead() -> AbstractContextManager[Any]:
    return mock.patch.object(turns, "number_ahead", return_value=0)


# --- rates


def start(one: ClaimedJob) -> bool:
    return starts.record_start(one.id, one.fence, one.rated)


def two_claims_take_one_start() -> None:
    begin(RATED, "a")
    submit(RATED, {}, job_id="b", queue="other")
    first, second = _meanwhile(lambda: claim("default", 1, "one"), lambda: claim("other", 1, "two"))
    assert len(first) + len(second) == 1


def a_claimed_job_counts_before_it_starts() -> None:
    begin(RATED, "ab")
    assert claimed() == ["a0"]
    advance_time(timedelta(hours=2))
    slots.take_turns()
    assert claimed() == []


def a_start_counts_for_its_time() -> None:
    begin(RATED, "ab")
    (one,) = claim("default", 1, "one")
    assert start(one)
    settle([Outcome.completed(one)], "one")
    assert claimed() == []


def a_start_in_the_midst_of_a_claim_is_counted_once() -> None:
    registry.forget(RATED)
    job(RATED, limit=Limit(rate="2/h"))(lambda payload: None)
    begin(RATED, "a")
    (one,) = claim("default", 1, "one")
    submit(RATED, {}, job_id="b")
    windows, started = starts.windows, list[bool]()

    def a_moment_later(rates: Mapping[str, Rate], now: Any) -> dict[str, starts.Window]:
        if not started:
            started.append(start(one))
        return windows(rates, now)

    with mock.patch.object(starts, "windows", a_moment_later):
        assert claimed() == ["b"]
    assert started == [True]


def who_waits_for_a_rate_is_let_in_when_its_turn_comes() -> None:
    begin(RATED, "ab")
    (one,) = claim("default", 1, "one")
    assert start(one)
    settle([Outcome.completed(one)], "one")
    assert claimed() == []
    advance_time(timedelta(hours=1))
    slots.take_turns()
    assert claimed() == ["b1"]


def a_start_lies_in_the_past_once_its_job_is_settled() -> None:
    begin(RATED, "a")
    (one,) = claim("default", 1, "one")
    assert start(one)
    LimitStart.objects.update(started_at=F("started_at") + timedelta(minutes=5))  # as a long allowance for lateness
    settle([Outcome.completed(one)], "one")
    assert not LimitStart.objects.filter(started_at__gt=starts.DbNow()).exists()


def a_clock_that_was_set_back_does_not_stop_a_rate() -> None:
    begin(RATED, "ab")
    (one,) = claim("default", 1, "one")
    assert start(one)
    settle([Outcome.completed(one)], "one")
    LimitStart.objects.update(started_at=F("started_at") + timedelta(hours=9))
    slots.sweep()  # as workers do every few seconds
    assert claimed() == []
    advance_time(timedelta(hours=1))
    slots.take_turns()
    assert claimed() == ["b1"]


def who_is_claimed_early_does_not_start_early() -> None:
    begin(RATED, "a")
    (one,) = claim("default", 1, "one")
    assert start(one)
    settle([Outcome.completed(one)], "one")
    advance_time(timedelta(minutes=40))
    submit(RATED, {}, job_id="b")
    with mock.patch.object(starts, "EARLY_SECONDS", 1800.0):
        (early,) = claim("default", 1, "one")
    assert early.not_before > time.monotonic() + 300


def without_lock_of_scopes() -> AbstractContextManager[Any]:
    return mock.patch.object(type(dialect()), "lock_scopes", return_value=None)


def without_those_about_to_start() -> AbstractContextManager[Any]:
    take = scopes.Room.take
    return mock.patch.object(scopes.Room, "take", lambda room, number, starting: take(room, number, 0))


def without_log_of_starts() -> AbstractContextManager[Any]:
    return mock.patch.object(starts, "_record", return_value=True)


def without_another_look_at_those_about_to_start() -> AbstractContextManager[Any]:
    return mock.patch.object(scopes, "_about_to_start", lambda names: dict.fromkeys(names, 1))


def without_turns_of_rates() -> AbstractContextManager[Any]:
    return mock.patch.object(starts, "write_turns", return_value=None)


def without_a_correction_at_the_end() -> AbstractContextManager[Any]:
    return mock.patch.object(starts, "began_by_now", return_value=None)


def without_mending() -> AbstractContextManager[Any]:
    return mock.patch.object(starts, "mend", return_value=None)


def without_a_moment_to_start_at() -> AbstractContextManager[Any]:
    return mock.patch.object(scopes.Room, "last_may_start_at", None)


GUARDS: list[tuple[Callable[[], AbstractContextManager[Any]], Callable[[], None], tuple[str, ...]]] = [
    (without_lock_of_turns, a_claim_beside_another_takes_the_next_turn, SERVERS),
    (without_keeping_whose_turn_it_was, the_round_goes_on_behind_the_key_that_was_served_last, EVERYWHERE),
    (without_order_of_the_ring, a_key_in_the_middle_of_the_round_is_not_passed_over, EVERYWHERE),
    (without_another_look_for_keys, jobs_with_a_key_are_found_by_who_knew_of_none, EVERYWHERE),
    (without_turns_for_slots, held_back_jobs_take_turns, EVERYWHERE),
    (without_a_look_at_who_is_ahead, a_keys_job_that_arrives_late_does_not_overtake_those_that_wait, EVERYWHERE),
    (without_lock_of_scopes, two_claims_take_one_start, SERVERS),
    (without_those_about_to_start, a_claimed_job_counts_before_it_starts, EVERYWHERE),
    (without_log_of_starts, a_start_counts_for_its_time, EVERYWHERE),
    (without_another_look_at_those_about_to_start, a_start_in_the_midst_of_a_claim_is_counted_once, EVERYWHERE),
    (without_turns_of_rates, who_waits_for_a_rate_is_let_in_when_its_turn_comes, EVERYWHERE),
    (without_a_correction_at_the_end, a_start_lies_in_the_past_once_its_job_is_settled, EVERYWHERE),
    (without_mending, a_clock_that_was_set_back_does_not_stop_a_rate, EVERYWHERE),
    (without_a_moment_to_start_at, who_is_claimed_early_does_not_start_early, EVERYWHERE),
]


@pytest.mark.parametrize(("taken_out", "check"), [*each_guard(GUARDS)])
def test_the_check_holds_and_fails_without_its_guard(
    taken_out: Callable[[], AbstractContextManager[Any]], check: Callable[[], None]
) -> None:
    check()
    for model in (Job, WorkerProcess, FairTurn, LimitStart, LimitTurn):
        model.objects.all().delete()
    turns.forget_queues()
    with taken_out(), pytest.raises(AssertionError):
        check()
