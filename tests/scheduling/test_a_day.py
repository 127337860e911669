"""A day's worth of ticks, by moving the database's clock: three processes, a night in which the clocks are set back."""

import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connections

from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.scheduling import cron
from django_jobs.scheduling.store import create_schedule
from django_jobs.scheduling.ticks import tick
from tests.support.moved_clock import Clock, moved_clock

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("sqlite")]

START = datetime(2026, 10, 24, 12, 0, 30, tzinfo=UTC)
END = START + timedelta(hours=25)
CRONS = {
    "each quarter": ("*/15 * * * *", "Europe/Berlin"),
    "at night": ("30 2 * * *", "Europe/Berlin"),
    "twice an hour": ("7,37 0-23 * * *", "Europe/Berlin"),
    "here": ("0 * * * *", "UTC"),
}
EVERY = {"each minute": 60.0, "each 97 seconds": 97.0}


class Processes:
    """Threads that make all ticks that are due, together, each time they are told to."""

    def __init__(self, number: int) -> None:
        self._turn = threading.Barrier(number + 1, timeout=60)
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            self._turn.wait()
            if self._is_over:
                return connections.close_all()
            while Schedule.objects.due().exists():
                tick()
            self._turn.wait()

    def make_ticks(self) -> None:
        self._turn.wait()
        self._turn.wait()

    def end(self) -> None:
        self._is_over = True
        self._turn.wait()
        for thread in self._threads:
            thread.join(60)


def _go_through_the_day(clock: Clock, longest: float) -> None:
    """Move the clock to the end, in steps of up to so many seconds and now and then back, as a bad time server would."""
    chance, processes = random.Random(7), Processes(3)
    try:
        while clock.now < END:
            clock.move(min(END - clock.now, timedelta(seconds=chance.uniform(0.5, longest))))
            if chance.random() < 0.05 and clock.now < END:
                clock.move(timedelta(seconds=-chance.uniform(1, 30)))
            processes.make_ticks()
    finally:
        processes.end()


def _due_of_cron(name: str) -> list[datetime]:
    expression, zone = CRONS[name]
    moments = [cron.next_after(expression, START, zone)]
    while moments[-1] <= END:
        moments.append(cron.next_after(expression, moments[-1], zone))
    return moments[:-1]


@pytest.mark.parametrize(
    "catch_up", [pytest.param("all", marks=pytest.mark.slow), pytest.param("latest", marks=pytest.mark.load)]
)
def test_each_tick_of_a_day_makes_one_job(catch_up: str) -> None:
    with moved_clock(START) as clock:
        for name, (expression, zone) in CRONS.items():
            create_schedule(name, "effects.record", cron=expression, timezone=zone, catch_up=catch_up)
        for name, seconds in EVERY.items():
            create_schedule(name, "effects.record", every=seconds, catch_up=catch_up)
        firsts = dict(Schedule.objects.values_list("name", "next_run_at"))
        _go_through_the_day(clock, longest=200 if catch_up == "all" else 50)
        ticks = list(ScheduleTick.objects.values_list("schedule__name", "due_at", "job"))
    assert len({job for _, _, job in ticks}) == len(ticks) == Job.objects.count()
    made: dict[str, list[datetime]] = {}
    for name, due, _ in sorted(ticks):
        made.setdefault(name, []).append(due)
    assert [moment for moments in made.values() for moment, number in Counter(moments).items() if number > 1] == []
    for name in CRONS:
        assert made[name] == _due_of_cron(name), name
    for name, seconds in EVERY.items():
        number = int((END - firsts[name]).total_seconds() // seconds) + 1
        assert made[name] == [firsts[name] + timedelta(seconds=seconds) * each for each in range(number)], name
