"""Cron expressions: what is refused and how it is said, and what happens to ticks when the clocks change."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, reset_tzpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_jobs.exceptions import InvalidJob, NoTimeZoneData
from django_jobs.scheduling import cron
from django_jobs.scheduling.spec import check_schedule


def ticks(expression: str, start: str, end: str, zone: str) -> list[str]:
    """Return the ticks in [start, end) of a zone's clock, as `day hour:minute+offset` of that zone."""
    here = ZoneInfo(zone)
    last = datetime.fromisoformat(end).replace(tzinfo=here)
    moment = datetime.fromisoformat(start).replace(tzinfo=here) - timedelta(seconds=1)
    found = []
    while (moment := cron.next_after(expression, moment, zone)) < last:
        assert moment.tzinfo is UTC
        found.append(f"{moment.astimezone(here):%d %H:%M%z}"[:-2])
    return found


# --- Berlin: a gap on 2024-03-31 02:00 → 03:00, a fold on 2024-10-27 03:00 → 02:00


def test_a_fixed_hour_in_the_gap_ticks_once_at_the_gaps_end() -> None:
    assert ticks("30 2 * * *", "2024-03-30", "2024-04-02", "Europe/Berlin") == [
        "30 02:30+01",
        "31 03:00+02",
        "01 02:30+02",
    ]


def test_all_fixed_times_in_one_gap_make_one_tick() -> None:
    assert ticks("*/10 2 * * *", "2024-03-31", "2024-04-01", "Europe/Berlin") == ["31 03:00+02"]


def test_a_fixed_time_at_the_gaps_end_does_not_tick_twice() -> None:
    assert ticks("0 2,3 * * *", "2024-03-31", "2024-04-01", "Europe/Berlin") == ["31 03:00+02"]


def test_a_fixed_hour_in_the_fold_ticks_in_the_first_pass_only() -> None:
    assert ticks("30 2 * * *", "2024-10-26", "2024-10-29", "Europe/Berlin") == [
        "26 02:30+02",
        "27 02:30+02",
        "28 02:30+01",
    ]


def test_a_tick_asked_for_in_the_second_pass_comes_after_it() -> None:
    second_pass = datetime(2024, 10, 27, 1, 10, tzinfo=UTC)
    assert cron.next_after("30 2 * * *", second_pass, "Europe/Berlin") == datetime(2024, 10, 28, 1, 30, tzinfo=UTC)


def test_a_wildcard_hour_follows_elapsed_time_through_the_gap_and_the_fold() -> None:
    assert ticks("0 * * * *", "2024-03-31T01:00", "2024-03-31T05:00", "Europe/Berlin") == [
        "31 01:00+01", "31 03:00+02", "31 04:00+02",
    ]  # fmt: skip
    assert ticks("0 * * * *", "2024-10-27T01:00", "2024-10-27T04:00", "Europe/Berlin") == [
        "27 01:00+02", "27 02:00+02", "27 02:00+01", "27 03:00+01",
    ]  # fmt: skip


def test_half_an_hour_of_summer_time_on_lord_howe_keeps_the_hours_whole() -> None:
    # Back from 02:00+11 to 01:30+10:30 on 2024-04-07.
    assert ticks("0 */3 * * *", "2024-04-07", "2024-04-07T12:00", "Australia/Lord_Howe") == [
        "07 00:00+11", "07 03:00+10", "07 06:00+10", "07 09:00+10",
    ]  # fmt: skip
    assert ticks("*/30 * * * *", "2024-04-07T01:00", "2024-04-07T02:30", "Australia/Lord_Howe") == [
        "07 01:00+11", "07 01:30+11", "07 01:30+10", "07 02:00+10",
    ]  # fmt: skip


def test_midnight_that_does_not_exist_in_santiago_ticks_at_one() -> None:
    assert ticks("0 0 * * *", "2024-09-07T12:00", "2024-09-09T12:00", "America/Santiago") == [
        "08 01:00-03",
        "09 00:00-03",
    ]
    assert ticks("0 */2 * * *", "2024-09-07T22:00", "2024-09-08T05:00", "America/Santiago") == [
        "07 22:00-04", "08 02:00-03", "08 04:00-03",
    ]  # fmt: skip


def test_the_day_that_apia_skipped_ticks_once_at_its_end() -> None:
    assert ticks("0 3 * * *", "2011-12-29", "2012-01-02", "Pacific/Apia") == [
        "29 03:00-10", "31 00:00+14", "31 03:00+14", "01 03:00+14",
    ]  # fmt: skip


# --- what is asked and answered


def test_the_next_tick_is_later_than_the_moment_asked_about() -> None:
    on_the_dot = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
    assert cron.next_after("0 12 * * *", on_the_dot, "UTC") == on_the_dot + timedelta(days=1)
    assert cron.next_after("0 12 * * *", on_the_dot - timedelta(microseconds=1), "UTC") == on_the_dot


def test_the_moment_asked_about_may_be_in_any_zone() -> None:
    tokyo = datetime(2024, 5, 1, 12, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert cron.next_after("0 12 * * *", tokyo, "UTC") == datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def test_the_sites_zone_is_the_default(settings) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    assert cron.next_after("0 3 * * *", datetime(2024, 5, 1, tzinfo=UTC)) == datetime(2024, 5, 1, 1, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("nickname", "expression"),
    [("@daily", "0 0 * * *"), ("@Hourly", "0 * * * *"), (" @weekly ", "0 0 * * 0"), ("@annually", "0 0 1 1 *")],
)
def test_nicknames_stand_for_their_fields(nickname: str, expression: str) -> None:
    assert cron.preview(nickname, 5, timezone="UTC") == cron.preview(expression, 5, timezone="UTC")


def test_a_preview_shows_the_next_ticks() -> None:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    assert cron.preview("0 9 * * MON-FRI", 3, start, "UTC") == [
        datetime(2024, 5, day, 9, tzinfo=UTC) for day in (1, 2, 3)
    ]


def test_a_tick_that_is_28_years_away_is_found() -> None:
    leap_sunday = cron.next_after("0 0 29 2 */7", datetime(2004, 3, 1, tzinfo=UTC), "UTC")
    assert leap_sunday == datetime(2032, 2, 29, tzinfo=UTC)


def test_an_expression_is_said_in_english() -> None:
    assert cron.describe("0 3 * * *") == "At 03:00 every day"
    assert cron.describe("@hourly") == "At the start of every hour"
    with pytest.raises(InvalidJob):
        cron.describe("61 * * * *")


# --- what is refused


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("61 * * * *", "bad minute '61'; it is 0 to 59"),
        ("* * * * 8", "bad day of week '8'"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("* * * *", "it has 4 fields; give five"),
        ("0 0 3 * * *", "it has 6 fields; give five"),
        ("", "it has 0 fields"),
        ("@dayly", "Did you mean '@daily'?"),
        ("@reboot", "unknown nickname"),
        ("0 0 30 2 *", "never ticks"),
        ("0 0 31 2,4,6 *", "never ticks"),
        (f"{','.join('0' * 60)} * * * *", "at most 100"),
        (5, "give a string"),
        (None, "give a string"),
    ],
)
def test_an_unsound_expression_is_refused_with_the_reason(expression: object, said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        cron.validate(expression)
    assert said in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InvalidJob) as caught:
        cron.validate("61 25 32 13 9", "Europe/Berln")
    assert len(caught.value.problems) == 6
    assert "Did you mean 'Europe/Berlin'?" in str(caught.value)


@pytest.mark.parametrize(
    "zone", ["Europe/Berln", "Europe", "../etc/passwd", "/etc/passwd", "", "a" * 65, 3, b"UTC", "UTC\0"]
)
def test_an_unknown_zone_is_refused(zone: object) -> None:
    with pytest.raises(InvalidJob, match="there is no such time zone"):
        cron.zone_of(zone)


@pytest.fixture
def no_zone_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be a host that has no time zone data: neither a system folder nor the package tzdata."""
    reset_tzpath(to=())
    monkeypatch.setitem(sys.modules, "tzdata", None)
    ZoneInfo.clear_cache()
    cron.has_zone_data.cache_clear()
    yield
    monkeypatch.undo()
    reset_tzpath()
    ZoneInfo.clear_cache()
    cron.has_zone_data.cache_clear()


@pytest.mark.usefixtures("no_zone_data")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Nowhere/Atall", "America/Santiago"])
def test_a_host_without_data_says_install_tzdata(zone: str) -> None:
    with pytest.raises(NoTimeZoneData, match="install tzdata"):
        cron.zone_of(zone)


@pytest.mark.usefixtures("no_zone_data")
@pytest.mark.parametrize("zone", ["UTC", "Etc/UTC"])
def test_utc_needs_no_data(zone: str) -> None:
    assert cron.next_after("0 9 * * *", datetime(2024, 1, 1, 10, tzinfo=UTC), zone) == datetime(
        2024, 1, 2, 9, tzinfo=UTC
    )
    assert check_schedule("n", "t.x", cron="0 9 * * *", timezone=zone).timing.is_known_here


@pytest.mark.usefixtures("no_zone_data")
def test_a_schedule_in_a_zone_can_be_declared_there_and_ticks_elsewhere() -> None:
    timing = check_schedule("n", "t.x", cron="0 9 * * *", timezone="Europe/Berlin").timing
    assert not timing.is_known_here
    with pytest.raises(NoTimeZoneData):
        timing.first(datetime(2024, 1, 1, tzinfo=UTC))


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(InvalidJob, match="time zone"):
        cron.next_after("* * * * *", datetime(2024, 1, 1), "UTC")


def test_the_end_of_the_calendar_is_no_crash() -> None:
    with pytest.raises(InvalidJob, match="never ticks"):
        cron.next_after("0 0 1 1 *", datetime(9999, 6, 1, tzinfo=UTC), "UTC")


@given(st.text(alphabet="0159*/-,L#W?MONJA @\t\u00b2", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_sound_expression_or_refused(text: str) -> None:
    try:
        cron.validate(text)
    except InvalidJob:
        return
    assert cron.next_after(text, datetime(2024, 1, 1, tzinfo=UTC), "Europe/Berlin")
    assert cron.describe(text)
