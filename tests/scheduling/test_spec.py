"""Schedules before they are rows: what is refused, when they tick, and how code declares them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import django_jobs
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import Registry, make_handler, registry
from django_jobs.scheduling import spec as specs
from django_jobs.scheduling.spec import Timing, check_schedule, declare, declared

NOON = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "_declared", {})


# --- what may be said


def test_what_is_said_becomes_the_columns_of_a_row() -> None:
    spec = check_schedule(
        "nightly", "reports.build", cron="0 3 * * *", timezone="Europe/Berlin", payload={"days": (1, 2)},
        queue="reports", priority=7, max_retries=2, timeout_seconds=60, metadata={"tenant": "a"},
        catch_up="all", grace_seconds=3600, overlap="skip", jitter_seconds=5,
    )  # fmt: skip
    assert spec.columns() == {
        "name": "nightly", "job_type": "reports.build", "payload": {"days": [1, 2]}, "metadata": {"tenant": "a"},
        "kind": "cron", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "run_at": None, "interval_seconds": None,
        "queue": "reports", "priority": 7, "max_retries": 2, "timeout_seconds": 60,
        "limit_key": None, "fair_key": None, "catch_up": "all", "grace_seconds": 3600, "overlap": "skip", "jitter_seconds": 5,
    }  # fmt: skip


def test_an_interval_is_seconds_or_a_timedelta() -> None:
    assert check_schedule("a", "b", every=90).timing.interval_seconds == 90
    assert check_schedule("a", "b", every=timedelta(hours=1)).timing.interval_seconds == 3600


def test_the_sites_zone_is_the_default(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    assert check_schedule("a", "b", cron="@daily").timing.timezone == "Europe/Berlin"
    assert check_schedule("a", "b", cron="@daily", timezone=ZoneInfo("Asia/Tokyo")).timing.timezone == "Asia/Tokyo"


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "give exactly one of cron, every and at, not none"),
    ({"cron": "@daily", "every": 5}, "not cron and every"),
    ({"cron": "61 * * * *"}, "bad minute '61'"),
    ({"cron": "0 0 30 2 *"}, "never ticks"),
    ({"cron": "@dayly"}, "Did you mean '@daily'?"),
    ({"cron": "@daily", "timezone": "Europe/Berln"}, "Did you mean 'Europe/Berlin'?"),
    ({"every": 0}, "an interval is"),
    ({"every": -1}, "an interval is"),
    ({"every": "5"}, "an interval is"),
    ({"every": True}, "an interval is"),
    ({"every": float("inf")}, "an interval is"),
    ({"every": float("nan")}, "an interval is"),
    ({"every": timedelta(days=36500)}, "an interval is"),
    ({"at": "tomorrow"}, "at='tomorrow': give a datetime"),
    ({"at": datetime(2024, 1, 1)}, "no time zone"),
    ({"every": 5, "name": ""}, "schedule '': it must not be empty"),
    ({"every": 5, "name": "a" * 201}, "at most 200"),
    ({"every": 5, "name": "a\0b"}, "cannot be printed"),
    ({"every": 5, "name": 7}, "give a string"),
    ({"every": 5, "job_type": ""}, "job_type"),
    ({"every": 5, "payload": {"when": NOON}}, "payload.when"),
    ({"every": 5, "queue": "a;drop"}, "queue 'a;drop'"),
    ({"every": 5, "priority": 11}, "priority=11"),
    ({"every": 5, "max_retries": -1}, "max_retries=-1"),
    ({"every": 5, "timeout_seconds": 0}, "timeout_seconds=0"),
    ({"every": 5, "metadata": [1]}, "metadata"),
    ({"every": 5, "catch_up": "last"}, "catch_up='last': give one of 'latest', 'skip', 'all'"),
    ({"every": 5, "overlap": "alow"}, "Did you mean 'allow'?"),
    ({"every": 5, "overlap": 1}, "overlap=1"),
    ({"every": 5, "grace_seconds": -1}, "grace_seconds=-1"),
    ({"every": 5, "jitter_seconds": float("nan")}, "jitter_seconds=nan"),
    ({"every": 5, "prioriy": 1}, "unknown option 'prioriy'. Did you mean 'priority'?"),
    ({"every": 5, "unique_key": "a"}, "unknown option 'unique_key'"),
]


@pytest.mark.parametrize(("said", "problem"), BAD)
def test_what_is_wrong_is_refused_with_the_reason(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check_schedule(**{"name": "a", "job_type": "b", **said})
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InvalidJob) as caught:
        check_schedule("", "no blanks", cron="61 25 * * *", timezone="Nowhere", priority=0, catch_up="no", prioriy=1)
    assert len(caught.value.problems) == 8


def test_a_job_type_that_nobody_registered_is_refused_with_a_suggestion() -> None:
    handlers = Registry()
    handlers.register(make_handler(lambda payload: None, "reports.build", {}))
    check_schedule("a", "reports.build", every=5, handlers=handlers)
    with pytest.raises(InvalidJob, match=r"Did you mean 'reports.build'\?"):
        check_schedule("a", "reports.bild", every=5, handlers=handlers)
    with pytest.raises(InvalidJob) as caught:
        check_schedule("a", "reports.bild", every=5, priority=0, handlers=handlers)
    assert len(caught.value.problems) == 2


# --- when it ticks


def test_the_first_tick_of_an_interval_is_one_interval_from_now() -> None:
    assert Timing(kind="interval", interval_seconds=90).first(NOON) == NOON + timedelta(seconds=90)


def test_the_first_tick_of_a_cron_schedule_is_later_than_now() -> None:
    assert Timing(kind="cron", cron="0 12 * * *").first(NOON) == NOON + timedelta(days=1)


def test_a_one_off_ticks_at_its_time_even_if_that_is_past() -> None:
    timing = Timing(kind="once", run_at=NOON - SECOND)
    assert timing.first(NOON) == NOON - SECOND
    assert timing.following(NOON - SECOND, NOON) is None
    assert timing.latest(NOON - SECOND, NOON) == NOON - SECOND


@pytest.mark.parametrize("seconds", [60, 0.1, 1 / 3, 86_400])
def test_an_interval_keeps_its_step_however_late_it_is_looked_at(seconds: float) -> None:
    timing, step = Timing(kind="interval", interval_seconds=seconds), timedelta(seconds=seconds)
    for late in (timedelta(0), SECOND, timedelta(days=400, microseconds=7)):
        latest, following = timing.latest(NOON, NOON + late), timing.following(NOON, NOON + late)
        assert latest <= NOON + late
        assert following == latest + step > NOON + late
        assert (latest - NOON) % step == timedelta(0)


@pytest.mark.parametrize("cron", ["* * * * *", "*/7 3-5 * * *", "0 3 * * MON", "0 0 1 1 *", "30 2 * * *"])
def test_the_latest_cron_tick_is_the_last_one_of_all(cron: str) -> None:
    timing = Timing(kind="cron", cron=cron, timezone="Europe/Berlin")
    due = timing.first(datetime(2024, 10, 26, tzinfo=UTC))
    for late in (timedelta(0), SECOND, timedelta(days=2, seconds=7), timedelta(days=4)):
        ticks = list(timing.ticks(due, due + late))
        assert ticks[0] == due
        assert timing.latest(due, due + late) == ticks[-1]
        following = islice(timing.ticks(ticks[-1], NOON.replace(year=2060)), 1, None)
        assert timing.following(ticks[-1], due + late) == next(following)


def test_a_tick_that_was_set_by_hand_counts_although_the_expression_does_not_name_it() -> None:
    timing = Timing(kind="cron", cron="0 * * * *")
    by_hand = NOON + timedelta(minutes=20)
    assert timing.latest(by_hand, by_hand + SECOND) == by_hand
    assert list(timing.ticks(by_hand, by_hand + timedelta(hours=1))) == [by_hand, NOON + timedelta(hours=1)]


def test_the_missed_ticks_are_bounded() -> None:
    timing = Timing(kind="interval", interval_seconds=1)
    begin = timing.bounded(NOON, NOON + timedelta(days=9), 50)
    assert len(list(timing.ticks(begin, NOON + timedelta(days=9)))) == 50
    assert timing.bounded(NOON, NOON + timedelta(seconds=30), 50) == NOON
    dense, rare = Timing(kind="cron", cron="* * * * *"), Timing(kind="cron", cron="0 0 * * *")
    begin = dense.bounded(NOON, NOON + timedelta(days=9), 50)
    assert len(list(dense.ticks(begin, NOON + timedelta(days=9)))) == 50
    assert rare.bounded(NOON, NOON + timedelta(days=9), 50) == NOON


def test_of_ticks_that_lie_close_together_and_long_ago_the_last_one_is_left() -> None:
    timing = Timing(kind="cron", cron="0-9 * * * *")
    due, now = NOON - timedelta(hours=2), NOON + 30 * MINUTE
    begin = timing.bounded(due, now, 5)
    assert begin == NOON + 9 * MINUTE, "the next one after the last five minutes comes after now"
    assert [*timing.ticks(begin, now)] == [begin]
    assert timing.bounded(due, NOON + 12 * MINUTE, 5) == NOON + 8 * MINUTE
    assert timing.bounded(due, now, 50) == due, "there are no more than that"


# --- declared in code


@pytest.fixture
def _own_handlers() -> Iterator[None]:
    """Forget the handlers that a test registers."""
    before = dict(registry._handlers)
    yield
    registry._handlers.clear()
    registry._handlers.update(before)


@pytest.mark.usefixtures("_nothing_declared")
def test_a_declaration_is_remembered_and_may_be_repeated() -> None:
    for _ in range(2):
        django_jobs.schedule("nightly", "reports.build", cron="0 3 * * *", timezone="Europe/Berlin", payload={"a": 1})
    assert [(spec.name, spec.timing.cron, spec.payload) for spec in declared()] == [("nightly", "0 3 * * *", {"a": 1})]


@pytest.mark.usefixtures("_nothing_declared")
def test_two_declarations_of_one_name_are_refused() -> None:
    declare("nightly", "reports.build", every=5)
    with pytest.raises(InvalidJob, match="declared already, with other values"):
        declare("nightly", "reports.build", every=6)


@pytest.mark.usefixtures("_nothing_declared")
def test_a_wrong_declaration_is_refused_at_once() -> None:
    with pytest.raises(InvalidJob, match="never ticks"):
        django_jobs.schedule("nightly", "reports.build", cron="0 0 30 2 *")
    assert not declared()


@pytest.mark.usefixtures("_nothing_declared", "_own_handlers")
def test_a_job_declares_its_own_schedule() -> None:
    @django_jobs.job("feeds.poll", every=timedelta(minutes=5), queue="feeds")
    def poll(payload: dict[str, Any]) -> None: ...

    @django_jobs.job("feeds.clean", cron="0 4 * * *", timezone="Asia/Tokyo")
    def clean(payload: dict[str, Any]) -> None: ...

    assert [(spec.name, spec.job_type, spec.timing.kind) for spec in declared()] == [
        ("feeds.poll", "feeds.poll", "interval"), ("feeds.clean", "feeds.clean", "cron"),
    ]  # fmt: skip
    assert declared()[1].timing.timezone == "Asia/Tokyo"
    handler = registry.find("feeds.poll")
    assert handler is not None
    assert handler.queue == "feeds"
    with pytest.raises(InvalidJob, match="bad hour"):
        django_jobs.job("feeds.bad", cron="0 25 * * *")(lambda payload: None)
