"""Compare `cron.next_after` with an oracle that walks through every minute of two years and cannot be clever."""

import calendar
import random
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from zoneinfo import ZoneInfo

import pytest

from django_jobs.scheduling import cron

# Each with the first of its two years: those in which its clocks did something worth a look.
ZONES = {
    "Europe/Berlin": 2025,
    "Europe/Dublin": 2025,  # winter time is the exception there
    "America/New_York": 2025,
    "America/St_Johns": 2010,  # changed at one minute past midnight until 2011
    "America/Santiago": 2025,  # midnight is left out
    "America/Scoresbysund": 2023,  # changed its offset and its daylight saving at once
    "Africa/Casablanca": 2025,  # goes back for Ramadan
    "Africa/Cairo": 2025,  # midnight is left out, and 23:00 repeated
    "Asia/Kathmandu": 2025,
    "Australia/Lord_Howe": 2025,  # moves by half an hour
    "Pacific/Chatham": 2025,
    "Pacific/Apia": 2011,  # had no 30 December 2011
    "Antarctica/Troll": 2025,  # moves by two hours
    "UTC": 2025,
}
FEW_ZONES = {"Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Pacific/Apia"}  # in the default run
EXPRESSIONS = (
    "* * * * *",
    "*/5 * * * *",
    "*/7 * * * *",
    "3-59/15 * * * *",
    "0 * * * *",
    "30 * * * *",
    "59 * * * *",
    "0,30 * * * *",
    "0 */2 * * *",
    "0 */3 * * *",
    "15 */4 * * *",
    "45 */6 * * *",
    "* 2 * * *",
    "*/10 0 * * *",
    "*/15 1-3 * * *",
    "* 23 * * 6,0",
    "0 0 * * *",
    "30 0 * * *",
    "0 1 * * *",
    "30 1 * * *",
    "59 1 * * *",
    "0 2 * * *",
    "15 2 * * *",
    "30 2 * * *",
    "0 3 * * *",
    "45 23 * * *",
    "0,30 2,3 * * *",
    "5-50/15 0-4 * * *",
    "0 0-23/2 * * *",
    "20 0-23 * * *",
    "0 0 1 * *",
    "30 2 L * *",
    "0 1 LW * *",
    "30 2 * * SUN",
    "0 0 * * 7",
    "15 1 * * SUN#1",
    "45 2 * * 0L",
    "0 12 13 * FRI",
    "30 1 */2 * MON-FRI",
    "0 2 29 FEB,MAR,OCT *",
    "0 12 30 12 *",
    "* * 30 12 *",
)
NAMES = {
    name: number
    for names in ("SUN MON TUE WED THU FRI SAT", "_ JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC")
    for number, name in enumerate(names.split())
}


def values(field: str, low: int, high: int) -> set[int]:
    """Expand a field that consists of numbers, names, ranges, steps and lists."""
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = span.partition("-")
        start = low if span == "*" else NAMES[first] if first in NAMES else int(first)
        end = high if span == "*" or (step and not last) else NAMES[last] if last in NAMES else int(last or start)
        found.update(range(start, end + 1, int(step or 1)))
    return found


def day_matches(day: date, expression: str) -> bool:
    _, _, dom, months, dow = expression.split()
    if day.month not in values(months, 1, 12):
        return False
    length = calendar.monthrange(day.year, day.month)[1]
    if dom == "L":
        on_day = day.day == length
    elif dom == "LW":
        later = [date(day.year, day.month, number).weekday() for number in range(day.day + 1, length + 1)]
        on_day = day.weekday() < 5 and all(weekday >= 5 for weekday in later)
    else:
        on_day = day.day in values(dom, 1, 31)
    number, _, nth = dow.partition("#")
    weekdays = {weekday % 7 for weekday in values(number.removesuffix("L"), 0, 7)}
    on_weekday = day.isoweekday() % 7 in weekdays
    if nth:
        on_weekday = on_weekday and (day.day - 1) // 7 + 1 == int(nth)
    if number.endswith("L"):
        on_weekday = on_weekday and day.day + 7 > length
    # Debian cron: "and" when one of the two begins with a star, else "or".
    return (on_day and on_weekday) if dom.startswith("*") or dow.startswith("*") else (on_day or on_weekday)


@dataclass
class Clock:
    """A zone's wall clock at every minute of a span, both counted in minutes since 1970."""

    zone: ZoneInfo
    start: int
    walls: list[int]
    earliest: dict[int, int]
    highest: list[int]

    @classmethod
    def of(cls, zone: ZoneInfo, since: datetime, until: datetime) -> "Clock":
        start = int(since.timestamp()) // 60
        walls = []
        for minute in range(start, int(until.timestamp()) // 60):
            wall = datetime.fromtimestamp(minute * 60, zone).replace(tzinfo=UTC)
            walls.append(int(wall.timestamp()) // 60)
        earliest: dict[int, int] = {}
        for minute, wall_minute in enumerate(walls, start):
            earliest.setdefault(wall_minute, minute)
        return cls(zone, start, walls, earliest, list(accumulate(walls, max)))

    def ticks(self, expression: str) -> list[int]:
        """Give every minute at which the expression is due."""
        minute_field, hour_field = expression.split()[:2]
        minutes, hours = values(minute_field, 0, 59), values(hour_field, 0, 23)
        days = {
            day
            for day in range(min(self.walls) // 1440, max(self.walls) // 1440 + 1)
            if day_matches(date(1970, 1, 1) + timedelta(days=day), expression)
        }
        in_day = [time_of_day // 60 in hours and time_of_day % 60 in minutes for time_of_day in range(1440)]
        if hour_field.startswith("*"):
            return [
                minute
                for minute, wall in enumerate(self.walls, self.start)
                if in_day[wall % 1440] and wall // 1440 in days
            ]
        due = set()
        for day in days:
            for time_of_day in (moment for moment in range(1440) if in_day[moment]):
                wall = day * 1440 + time_of_day
                if self.walls[0] <= wall <= self.highest[-1]:
                    after_the_gap = self.start + bisect_left(self.highest, wall)
                    due.add(self.earliest.get(wall, after_the_gap))
        return sorted(due)


def changes_of_the_clocks(zone: ZoneInfo, since: datetime, until: datetime) -> list[int]:
    """Give the full hours, in minutes since 1970, by which the clocks have been put forward or back."""
    hours = range(int(since.timestamp()) // 3600, int(until.timestamp()) // 3600)
    offsets = [datetime.fromtimestamp(hour * 3600, zone).utcoffset() for hour in hours]
    return [hours[index] * 60 for index in range(1, len(hours)) if offsets[index] != offsets[index - 1]]


def moment(minute: float) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC)


def differences(zone: ZoneInfo, expression: str, ticks: list[int], since: int, until: int) -> list[str]:
    """Walk from tick to tick between two minutes, and say where the library and the oracle part."""
    wrong = []
    for tick_before, tick in zip([since, *ticks], ticks, strict=False):
        if since <= tick_before and tick < until:
            found = cron.next_after(expression, moment(tick_before), zone)
            if found != moment(tick):
                wrong.append(f"{expression!r} in {zone} after {moment(tick_before)}: {found}, should be {moment(tick)}")
    return wrong


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW_ZONES else pytest.mark.slow) for name in ZONES]
)
def test_ticks_around_changes_of_the_clocks_agree_with_brute_force(name: str) -> None:
    zone, year = ZoneInfo(name), ZONES[name]
    changes = changes_of_the_clocks(zone, datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 3, 1, tzinfo=UTC))
    assert changes or name in ("UTC", "Asia/Kathmandu")
    wrong, compared = [], 0
    for change in changes[-2:] or [int(datetime(year, 2, 1, tzinfo=UTC).timestamp()) // 60]:
        clock = Clock.of(zone, moment(change) - timedelta(days=2), moment(change) + timedelta(days=2))
        for expression in EXPRESSIONS:
            near = [tick for tick in clock.ticks(expression) if -300 < tick - change < 1560]
            wrong += differences(zone, expression, near, change - 300, change + 1560)
            compared += len(near)
    assert not wrong, "\n".join(wrong[:20])
    assert compared > 1000


@pytest.mark.load
@pytest.mark.parametrize("name", ZONES)
def test_two_years_of_ticks_agree_with_brute_force(name: str) -> None:
    year = ZONES[name]
    clock = Clock.of(ZoneInfo(name), datetime(year, 1, 1, tzinfo=UTC), datetime(year + 2, 1, 1, tzinfo=UTC))
    choose = random.Random(name)
    wrong, compared, started = [], 0, time.perf_counter()
    for expression in EXPRESSIONS:
        ticks = clock.ticks(expression)
        first = clock.start + 2 * 1440  # the oracle knows nothing of what a gap before its start moved in
        wrong += differences(clock.zone, expression, [tick for tick in ticks if tick > first], first, ticks[-1] + 1)
        for _ in range(500):
            after = choose.uniform(first, ticks[-1] - 1)
            found = cron.next_after(expression, moment(after), clock.zone)
            if found != moment(ticks[bisect_right(ticks, after)]):
                wrong.append(f"{expression!r} in {name} after {moment(after)}: {found}")
        compared += len(ticks) + 500
    print(f"\n{name}: {compared:,} ticks, {len(wrong)} differences, {time.perf_counter() - started:.0f} s")
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("expression", ["* * * * *", "0 3 * * *", "0 0 29 2 *", "0 0 * 2 MON#5", "* * 29 2 *"])
@pytest.mark.parametrize("name", ["Europe/Berlin", "America/Santiago", "Pacific/Apia"])
def test_one_next_takes_less_than_five_milliseconds(name: str, expression: str) -> None:
    zone = ZoneInfo(name)
    cron.validate(expression)
    seconds = []
    for _ in range(20):
        started = time.thread_time()  # of computing, which does not depend on what else the machine does
        cron.next_after(expression, datetime(2011, 12, 29, 12, tzinfo=UTC), zone)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.005
