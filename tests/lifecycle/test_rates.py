"""Rates by their moves: how many start in a time, who waits for a turn, and who takes it."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db.models import F

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.db.transactions import database_now
from django_jobs.due import has_due_work
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, limits, slots, starts
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import run_now
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.limit import Rate, parse_rate
from django_jobs.models import Attempt, Job, LimitSlot, LimitStart, LimitTurn
from django_jobs.models import Limit as LimitRow
from django_jobs.testing import advance_time, drain
from django_jobs.worker.maintenance import TURN_SECONDS

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture(autouse=True)
def process() -> Iterator[str]:
    """Leave no handler and no number behind."""
    leases.register("p", queues=[], threads=1)
    yield "p"
    for handler in list(registry):
        if handler.job_type.startswith("rated."):
            registry.forget(handler.job_type)
    active_limits.forget_queues()


def rated(name: str = "rated.job", /, **limit: Any) -> str:
    """Declare a type with a rate."""

    @job(name, limit=Limit(**limit), base_delay=0)
    def handler(payload: dict[str, Any]) -> None: ...

    return name


def submitted(name: str, number: int, payload: dict[str, Any] | None = None, first: int = 0) -> None:
    for place in range(first, first + number):
        submit(name, payload or {}, job_id=f"j{place}")


def claimed(most: int = 10) -> list[ClaimedJob]:
    return claim("default", most, "p")


def started(most: int = 10) -> list[str]:
    """Claim, start and settle; return the ids."""
    jobs = claimed(most)
    for one in jobs:
        assert not one.rated or starts.record_start(one.id, one.fence, one.rated)
    settle([Outcome.completed(one) for one in jobs], "p")
    return [one.id for one in jobs]


def after(delta: timedelta, most: int = 10) -> list[str]:
    """Let time go by, take turns as a worker does, and run what may start then."""
    advance_time(delta)
    slots.take_turns()
    return started(most)


# --- what may be written


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/s", Rate(10, 1)),
        ("1/sec", Rate(1, 1)),
        ("7/second", Rate(7, 1)),
        ("100/m", Rate(100, 60)),
        ("100/min", Rate(100, 60)),
        ("5/hour", Rate(5, 3600)),
        ("5/h", Rate(5, 3600)),
        ("1000000/day", Rate(1_000_000, 86400)),
    ],
)
def test_a_rate_is_a_number_and_a_unit(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert Limit(rate=text).rate == text


@pytest.mark.parametrize(
    "text",
    ["fast", "10", "10/", "/s", "0/s", "-1/s", "1.5/s", "10/w", "5/2m", " 5/m", "5 /m", "5/m\n", "5/M", "", 10, 1.5],
)
def test_anything_else_is_refused(text: Any) -> None:
    with pytest.raises(InvalidJob, match="Limit: rate="):
        Limit(rate=text)


def test_a_limit_needs_a_number() -> None:
    for given in ({}, {"key": "account"}, {"name": "bank"}):
        with pytest.raises(InvalidJob, match="it needs concurrency or rate"):
            Limit(**given)


# --- the window


def test_no_more_start_than_the_rate_says_and_the_next_when_the_first_has_left_the_window() -> None:
    name = rated(rate="2/h")
    submitted(name, 5)
    assert started() == ["j0", "j1"]
    assert started() == []
    assert after(50 * MINUTE) == []
    assert after(10 * MINUTE) == ["j2", "j3"]
    assert after(59 * MINUTE) == []
    assert after(MINUTE) == ["j4"]


def test_the_window_slides() -> None:
    name = rated(rate="2/h")
    submitted(name, 1)
    assert started() == ["j0"]
    advance_time(40 * MINUTE)
    submitted(name, 3, first=1)
    assert started() == ["j1"]
    assert after(20 * MINUTE) == ["j2"], "20 minutes after j1, an hour after j0"
    assert after(39 * MINUTE) == []
    assert after(MINUTE) == ["j3"]


def test_each_value_of_a_key_has_a_rate_of_its_own() -> None:
    name = rated(rate="1/m", key="account")
    for number in range(6):
        submit(name, {"account": number % 2}, job_id=f"j{number}")
    submit(name, {"account": None}, job_id="z")
    assert started() == ["j0", "j1", "z"]
    assert after(MINUTE) == ["j2", "j3"]


def test_a_queue_has_a_rate_and_a_rate_and_a_concurrency_hold_at_once(settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": {"default": {"limit": {"rate": "3/m"}}}}
    name = rated(rate="4/m", concurrency=2)
    submitted(name, 6)
    first = claimed()
    assert len(first) == 2
    assert claimed() == []
    for one in first:
        assert starts.record_start(one.id, one.fence, one.rated)
    settle([Outcome.completed(one) for one in first], "p")
    assert started() == ["j2"], "the third of the queue's minute"
    assert after(timedelta(seconds=30)) == []
    assert after(timedelta(seconds=30)) == ["j3", "j4"]


def test_a_claimed_job_counts_until_it_starts_and_from_then_on_for_the_window() -> None:
    name = rated(rate="1/m")
    submitted(name, 3)
    (first,) = claimed()
    advance_time(timedelta(minutes=5))
    slots.take_turns()
    assert claimed() == [], "it may start at any moment"
    assert starts.record_start(first.id, first.fence, first.rated)
    slots.sweep()
    assert claimed() == []
    settle([Outcome.completed(first)], "p")
    assert after(MINUTE) == ["j1"]


@pytest.mark.parametrize("way", ["released", "rescued"])
def test_a_job_that_was_claimed_and_never_started_is_no_start(way: str) -> None:
    name = rated(rate="1/m")
    submitted(name, 2)
    (first,) = claimed()
    assert claimed() == []
    if way == "released":
        release([first])
    else:
        rescue_process("p")
        leases.register("p", queues=[], threads=1)
    assert len(started()) == 1
    assert LimitStart.objects.count() == 1


def test_a_run_that_lost_its_job_does_not_start() -> None:
    name = rated(rate="1/m")
    submitted(name, 1)
    (first,) = claimed()
    release([first])
    assert not starts.record_start(first.id, first.fence, first.rated)
    (second,) = claimed()
    assert not starts.record_start(first.id, first.fence, first.rated)
    assert starts.record_start(second.id, second.fence, second.rated)
    assert LimitStart.objects.count() == 1


def test_a_start_outlives_its_job() -> None:
    name = rated(rate="2/m")
    submitted(name, 4)
    assert started() == ["j0", "j1"]
    Job.objects.filter(pk="j0").delete()
    Job.objects.filter(pk="j1").update(finished_at=F("finished_at") - timedelta(days=400))
    assert prune() == 1
    slots.sweep()
    assert started() == []
    assert after(MINUTE) == ["j2", "j3"]


def test_retries_are_starts() -> None:
    name = rated(rate="1/m")
    submitted(name, 1)
    (first,) = claimed()
    starts.record_start(first.id, first.fence, first.rated)
    settle([Outcome.snoozed(first, 0, "again")], "p")
    Job.objects.update(status="pending")
    assert claimed() == []
    assert after(MINUTE) == ["j0"]
    assert LimitStart.objects.count() == 2


# --- who waits


def test_a_job_that_waits_spends_nothing_and_says_when_its_turn_comes() -> None:
    name = rated(rate="1/m")
    submitted(name, 2)
    before = database_now()
    assert started() == ["j0"]
    assert started() == []
    held = Job.objects.get(pk="j1")
    assert (held.status, held.retry_count, held.held_back_by) == ("pending", 0, "type:rated.job")
    assert not Attempt.objects.exists()
    for moment in (held.scheduled_at, held.held_back_until):
        assert moment is not None
        assert timedelta(seconds=59) < moment - before < timedelta(seconds=65)


def test_of_a_batch_each_knows_at_the_submit_when_it_may_start_at_the_earliest() -> None:
    name = rated(rate="2/m")
    jobs = submit_many([NewJob(name, {}, job_id=f"j{number}") for number in range(6)])
    now = database_now()
    assert [one.pending_limits for one in jobs] == [0, 0, 1, 1, 1, 1]
    minutes = [one.scheduled_at and round((one.scheduled_at - now) / MINUTE) for one in Job.objects.order_by("pk")]
    assert minutes == [None, None, 1, 1, 2, 2]
    assert [one.scheduled_at for one in jobs] == [one.scheduled_at for one in Job.objects.order_by("pk")]
    order = started()
    order += [job_id for _ in range(2) for job_id in after(MINUTE)]
    assert order == [f"j{number}" for number in range(6)]


def test_when_a_turn_comes_the_first_in_claim_order_takes_it() -> None:
    name = rated(rate="1/m")
    submitted(name, 3)
    assert started() == ["j0"]
    assert started() == []
    submit(name, {}, job_id="urgent", priority=9)
    assert after(MINUTE) == ["urgent"]
    submit(name, {}, job_id="more-urgent", priority=10)
    assert claimed() == []
    assert [after(MINUTE) for _ in range(3)] == [["more-urgent"], ["j1"], ["j2"]]


@pytest.mark.slow
def test_nobody_looks_at_ten_thousand_jobs_that_wait() -> None:
    name = rated(rate="1/m", key="account")
    submit_many([NewJob(name, {"account": 7}) for _ in range(200)])
    assert len(started()) == 1
    assert claimed() == []
    turn = LimitTurn.objects.get()
    assert turn.scope == "type:rated.job 7"
    assert Job.objects.held_back().count() == 199
    assert not Job.objects.ready().exists()
    assert (slots.take_turns() or 0) > 50
    assert len(after(MINUTE)) == 1
    assert Job.objects.held_back().count() == 198
    assert LimitTurn.objects.count() == 1


def test_a_turn_that_nobody_waits_for_any_more_is_forgotten() -> None:
    name = rated(rate="1/m")
    submitted(name, 2)
    assert started() == ["j0"]
    assert claimed() == []
    assert LimitTurn.objects.exists()
    Job.objects.get(pk="j1").cancel()
    assert not LimitTurn.objects.exists()
    assert not LimitSlot.objects.exists()
    assert slots.take_turns() is None


def test_run_now_does_not_exceed_a_rate() -> None:
    name = rated(rate="1/m")
    submitted(name, 2)
    submit(name, {}, job_id="later", delay=3600)
    assert started() == ["j0"]
    assert claimed() == []
    run_now(["j1", "later"])
    assert claimed() == []
    assert after(MINUTE) == ["j1"]
    assert after(MINUTE) == ["later"]


def test_a_drain_waits_for_slots_and_not_for_turns() -> None:
    name = rated(rate="1/m", concurrency=5)
    submitted(name, 2)
    assert started() == ["j0"]
    assert claimed() == []
    assert not has_due_work(), "its turn comes later"
    advance_time(MINUTE)
    assert has_due_work()
    limits.set_limit(f"type:{name}", concurrency=1, rate=None)
    (one,) = claimed()
    submit(name, {}, job_id="z")
    assert claimed() == []
    assert has_due_work(), "z waits for a slot"
    settle([Outcome.completed(one)], "p")


def test_the_testing_kit_obeys_rates_and_lets_their_time_go_by() -> None:
    name = rated(rate="2/h")
    submitted(name, 5)
    assert [one.id for one in drain()] == ["j0", "j1"]
    assert drain() == []
    assert Job.objects.get(pk="j2").held_back_by == "type:rated.job"
    advance_time(HOUR)
    assert [one.id for one in drain()] == ["j2", "j3"]
    advance_time(59 * MINUTE)
    assert drain() == []
    advance_time(MINUTE)
    assert [one.id for one in drain()] == ["j4"]


# --- operators, clocks, maintenance


def test_an_operator_sets_a_rate_and_the_starts_that_were_count() -> None:
    name = rated(rate="5/s")
    submitted(name, 9)
    assert len(started(5)) == 5
    limits.set_limit(f"type:{name}", rate="3/m")
    assert after(timedelta(seconds=30)) == []
    limits.set_limit(f"type:{name}", rate="7/m")
    assert started() == ["j5", "j6"]
    limits.set_limit(f"type:{name}", concurrency=1)
    assert active_limits.active_limits().by_name[f"type:{name}"].rate == Rate(7, 60)
    limits.set_limit(f"type:{name}", rate=None, concurrency=None)
    assert started() == ["j7", "j8"]
    limits.reset_limit(f"type:{name}")
    assert active_limits.active_limits().by_name[f"type:{name}"].rate == Rate(5, 1)
    with pytest.raises(InvalidJob, match="rate='often'"):
        limits.set_limit(f"type:{name}", rate="often")


def test_a_rate_that_was_removed_holds_nobody() -> None:
    name = rated(rate="1/h")
    submitted(name, 3)
    assert started() == ["j0"]
    assert claimed() == []
    registry.forget(name)
    job(name)(lambda payload: None)
    slots.sweep()
    assert [one.id for one in claimed()] == ["j1", "j2"]
    assert not LimitTurn.objects.exists()


def turns_since(past: timedelta, *scopes: str) -> None:
    """Write turns that came so long ago."""
    LimitTurn.objects.bulk_create([LimitTurn(scope=scope, due_at=database_now() - past) for scope in scopes])


def turns() -> set[str]:
    return set(LimitTurn.objects.values_list("pk", flat=True))


def test_a_turn_goes_with_its_rate_where_the_concurrency_stays() -> None:
    name = rated(rate="1/m", concurrency=5)
    submitted(name, 8)
    assert started() == ["j0"]
    assert claimed() == []
    assert turns() == {f"type:{name}"}
    limits.set_limit(f"type:{name}", rate=None)
    slots.sweep()
    assert turns() == set()
    assert len(claimed()) == 5


def test_a_turn_that_nobody_waits_for_and_whose_limit_has_no_rate_is_deleted_when_it_is_due() -> None:
    rated(concurrency=5)
    rated("rated.removed", concurrency=5)
    registry.forget("rated.removed")
    job("rated.removed")(lambda payload: None)
    turns_since(HOUR, "type:rated.job", "type:rated.job 7", "type:rated.removed")
    turns_since(-HOUR, "type:rated.job 8")
    assert starts.take_due_turns() == []
    assert turns() == {"type:rated.job 8"}


def test_dead_turns_and_those_of_another_site_keep_no_turn_from_being_taken() -> None:
    rated("rated.dead", concurrency=5, key="account")
    name = rated(rate="1/m")
    submitted(name, 2)
    assert started() == ["j0"]
    assert claimed() == []
    LimitRow.objects.create(name="name:elsewhere", declared=True, rate="1/m", site="another")
    theirs = {f"name:elsewhere {number}" for number in range(starts.MOST_TURNS + 10)}
    turns_since(2 * HOUR, *theirs)
    turns_since(HOUR, *(f"type:rated.dead {number}" for number in range(starts.MOST_TURNS + 10)))
    assert after(MINUTE) == ["j1"]
    assert turns() == theirs, "their own processes take them"


def test_a_turn_that_only_another_site_can_take_is_not_asked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rated(rate="1/m")
    LimitRow.objects.create(name="name:elsewhere", declared=True, rate="1/m", site="another")
    turns_since(HOUR, "name:elsewhere")
    assert slots.take_turns() == starts.AGAIN_SECONDS
    monkeypatch.setattr(starts, "OVERDUE_SECONDS", 24 * 3600.0)
    assert slots.take_turns() == starts.EARLY_SECONDS, "another process may be at it"
    assert turns() == {"name:elsewhere"}


def test_a_clock_that_was_set_back_stops_nobody_for_longer_than_the_window() -> None:
    name = rated(rate="2/m")
    submitted(name, 5)
    assert started() == ["j0", "j1"]
    assert claimed() == []
    hour = timedelta(hours=1)  # later by the old clock
    LimitStart.objects.update(started_at=F("started_at") + hour, expires_at=F("expires_at") + hour)
    LimitTurn.objects.update(due_at=F("due_at") + hour)
    slots.sweep()  # as workers do every few seconds
    assert claimed() == [], "nor does it let all start at once"
    assert after(MINUTE) == ["j2", "j3"]


def test_a_clock_that_was_set_forward_lets_no_more_start_than_the_rate_says() -> None:
    name = rated(rate="2/m")
    submitted(name, 6)
    assert started() == ["j0", "j1"]
    assert after(timedelta(days=1)) == ["j2", "j3"]
    assert started() == []


def test_starts_that_no_rate_counts_any_more_are_pruned_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "PRUNE_ROWS", 2)
    name = rated(rate="3/s")
    submitted(name, 3)
    assert len(started()) == 3
    advance_time(timedelta(seconds=30))
    assert starts.prune_starts() == 0, "an operator may set a rate of a minute, which counts them"
    advance_time(timedelta(seconds=35))
    assert [starts.prune_starts() for _ in range(3)] == [2, 1, 0]


def test_a_start_whose_record_took_long_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    name = rated(rate="1/m")
    submitted(name, 1)
    (first,) = claimed()
    clock = iter([0.0, 30.0, 30.0, 30.1])
    monkeypatch.setattr(starts, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    records: list[Any] = []
    again = starts._record_again
    monkeypatch.setattr(starts, "_record_again", lambda *given: (records.append(given), again(*given))[1])
    assert starts.record_start(first.id, first.fence, first.rated)
    assert len(records) == 1
    assert LimitStart.objects.count() == 1


def test_a_job_is_claimed_a_moment_early_and_told_when_it_may_start() -> None:
    name = rated(rate="1/m")
    submitted(name, 2)
    assert started() == ["j0"]
    assert claimed() == []
    advance_time(MINUTE - timedelta(seconds=starts.EARLY_SECONDS / 2))
    slots.take_turns()
    early = claimed()
    if early:  # a slow machine may be past that moment
        assert early[0].not_before >= 0.0
    assert [one.id for one in early] == ["j1"]


def test_a_process_without_rates_does_not_ask_for_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not active_limits.active_limits().have_rates
    rated(rate="1/m")
    assert active_limits.active_limits().have_rates
    assert TURN_SECONDS < 1.0, "a job starts within a second of its turn, although the process that set it has died"
