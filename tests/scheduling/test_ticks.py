"""Ticks: each is made once, with its job and the next tick's time; catch-up, overlap, jitter, broken rows, one-offs."""

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import DatabaseError, connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_jobs.db.transactions import database_now
from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.models.schedule import ScheduleQuerySet
from django_jobs.scheduling import ticks
from django_jobs.scheduling.spec import check_schedule
from django_jobs.scheduling.store import create_schedule, disable
from django_jobs.scheduling.ticks import run_schedule_now, tick
from tests.support.factories import JobFactory
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db
MINUTE = timedelta(minutes=1)
JUST_NOW = timedelta(milliseconds=2)  # SQLite's clock has milliseconds


@pytest.fixture(autouse=True)
def _no_declared_schedules(db: None) -> None:
    """Begin without the rows that `migrate` wrote for the schedules of the test project."""
    Schedule.objects.all().delete()


def make(name: str = "tick", overdue: timedelta | None = None, **said: Any) -> Schedule:
    """Create a schedule of `effects.record`, by default every minute; `overdue` sets the clock in its row."""
    if not {"every", "cron", "at"} & said.keys():
        said["every"] = MINUTE
    row = create_schedule(name, "effects.record", **said)
    if overdue is not None:
        Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - overdue)
    return row


def assert_ticks_and_jobs_match() -> None:
    """Each tick has its job, each job of a schedule its tick."""
    jobs = {job.pk: (job.metadata["schedule"], job.metadata["tick"]) for job in Job.objects.all()}
    ticks = {
        row.job_id: (row.schedule.name, row.due_at.isoformat())
        for row in ScheduleTick.objects.select_related("schedule")
    }
    assert jobs == ticks


# --- one tick, one job


def test_nothing_is_submitted_before_the_tick_is_due() -> None:
    make()
    rest = tick()
    assert rest is not None
    assert 0 < rest <= 60
    assert not Job.objects.exists()


def test_without_schedules_there_is_nothing_to_wait_for() -> None:
    assert tick() is None


def test_a_due_tick_submits_the_job_with_all_that_the_schedule_says() -> None:
    row = make(
        "nightly", overdue=timedelta(seconds=1), payload={"kind": "night"}, queue="reports", priority=8,
        max_retries=1, timeout_seconds=30, metadata={"tenant": "a"},
    )  # fmt: skip
    due = Schedule.objects.get().next_run_at
    rest = tick()
    job = Job.objects.get()
    assert (job.job_type, job.queue, job.priority) == ("effects.record", "reports", 8)
    assert (job.max_retries, job.timeout_seconds, job.payload) == (1, 30, {"kind": "night"})
    assert job.metadata == {"tenant": "a", "schedule": "nightly", "tick": due.isoformat()}
    assert (job.status, job.scheduled_at) == ("pending", None)
    assert_ticks_and_jobs_match()
    row.refresh_from_db()
    assert row.next_run_at == due + MINUTE
    assert row.last_run_at == due
    assert rest is not None
    assert 0 < rest < 60


def test_the_next_tick_of_an_interval_stays_in_step_however_late_this_one_is() -> None:
    make(overdue=timedelta(seconds=150))
    due = Schedule.objects.get().next_run_at
    tick()
    assert Schedule.objects.get().next_run_at == due + 3 * MINUTE


def test_the_next_tick_of_a_cron_schedule_is_by_its_zone() -> None:
    make(cron="0 3 * * *", timezone="Europe/Berlin", overdue=timedelta(seconds=1))
    tick()
    upcoming = Schedule.objects.get().next_run_at
    assert upcoming > timezone.now()
    assert upcoming.astimezone(UTC).hour in (1, 2)
    assert upcoming.minute == 0


def test_a_job_type_that_lives_in_another_process_is_submitted() -> None:
    row = create_schedule("elsewhere", "elsewhere.job", every=MINUTE, handlers=None)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - JUST_NOW)
    tick()
    assert Job.objects.get().job_type == "elsewhere.job"


def test_so_is_a_payload_that_only_other_code_takes() -> None:
    """In a deploy, a process with the old code may make the tick: to disable the schedule would outlast the deploy."""
    row = create_schedule("greet", "effects.greet", every=MINUTE, payload={"name": "Ann"})
    Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - JUST_NOW, payload={"surname": "Ann"})
    tick()
    assert Job.objects.get().payload == {"surname": "Ann"}
    row.refresh_from_db()
    assert row.enabled


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_four_threads_that_tick_at_once_make_each_tick_once() -> None:
    for round_ in range(10):
        for number in range(3):
            make(f"{round_}-{number}", overdue=timedelta(seconds=1))
        run_in_threads(tick, count=4)
    while (rest := tick()) is not None and rest <= 0.05:
        pass  # what one thread held while the others passed it by
    assert Job.objects.count() == ScheduleTick.objects.count() == 30
    assert_ticks_and_jobs_match()


@pytest.mark.parametrize(("queryset", "step"), [(QuerySet, "bulk_create"), (ScheduleQuerySet, "update")])
def test_an_error_in_the_middle_of_a_tick_leaves_neither_job_nor_tick(queryset: type[Any], step: str) -> None:
    make(overdue=timedelta(seconds=1))
    due = Schedule.objects.get().next_run_at
    with mock.patch.object(queryset, step, side_effect=_away) as broken, pytest.raises(DatabaseError):
        tick()
    assert broken.called
    assert not Job.objects.exists()
    assert not ScheduleTick.objects.exists()
    assert Schedule.objects.get().next_run_at == due
    tick()
    assert Job.objects.count() == 1


def _away(*args: Any, **kwargs: Any) -> None:
    error = DatabaseError("the server has gone away")
    error.__cause__ = type("Cause", (Exception,), {"sqlstate": "57P01"})()
    raise error


def test_a_clock_that_was_set_back_by_hand_makes_no_tick_twice() -> None:
    make(overdue=timedelta(seconds=1))
    due = Schedule.objects.get().next_run_at
    tick()
    Schedule.objects.update(next_run_at=due)
    tick()
    assert Job.objects.count() == 1
    assert Schedule.objects.get().next_run_at > due


@pytest.mark.slow
def test_ten_thousand_schedules_of_which_none_is_due_cost_one_indexed_query() -> None:
    later = database_now() + timedelta(hours=1)
    Schedule.objects.bulk_create(
        (
            Schedule(
                name=f"s{number}", job_type="effects.record", kind="interval", interval_seconds=3600,
                next_run_at=later + timedelta(seconds=number),
            )
            for number in range(10_000)
        ),
        batch_size=1_000,
    )  # fmt: skip
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE django_jobs_schedule")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        rest = tick()
    assert rest is not None
    assert 3500 < rest <= 3600
    assert len(queries) == 1
    with connection.cursor() as cursor:
        explain = "EXPLAIN QUERY PLAN " if connection.vendor == "sqlite" else "EXPLAIN "
        cursor.execute(explain + queries[0]["sql"])
        assert "django_jobs_schedule_due" in str(cursor.fetchall())


# --- catch up


@pytest.mark.parametrize(("catch_up", "jobs"), [("latest", 1), ("skip", 0), ("all", 60)])
@pytest.mark.parametrize("said", [{"every": MINUTE}, {"cron": "* * * * *"}], ids=["interval", "cron"])
def test_an_hour_of_downtime(catch_up: str, jobs: int, said: dict[str, Any]) -> None:
    row = make(catch_up=catch_up, **said)
    now = database_now()
    # An hour ago by the schedule's own step: the tick that was due then is the first of sixty.
    first = (
        now - timedelta(minutes=59, seconds=30)
        if "every" in said
        else now.replace(second=0, microsecond=0) - 59 * MINUTE
    )
    Schedule.objects.filter(pk=row.pk).update(next_run_at=first)
    before = database_now()
    tick()
    row.refresh_from_db()
    assert row.next_run_at is not None
    assert before < row.next_run_at <= database_now() + MINUTE
    extra = int((row.next_run_at - first) / MINUTE) - 60  # a minute may have passed meanwhile
    assert Job.objects.count() == jobs + (extra if catch_up == "all" else 0)
    assert_ticks_and_jobs_match()
    if catch_up == "latest":
        assert ScheduleTick.objects.get().due_at == row.next_run_at - MINUTE


def test_all_is_caught_up_a_hundred_at_a_time_oldest_first() -> None:
    make(every=1, catch_up="all", overdue=timedelta(seconds=250.5))
    begin = Schedule.objects.get().next_run_at
    assert tick() == 0
    assert Job.objects.count() == 100
    assert ScheduleTick.objects.order_by("-due_at")[0].due_at == begin + timedelta(seconds=99)
    while tick() == 0:
        pass
    assert Job.objects.count() >= 251
    assert_ticks_and_jobs_match()


def test_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks, "MOST_CAUGHT_UP", 5)
    make("interval", catch_up="all", overdue=timedelta(days=30, seconds=30))
    make("cron", cron="*/2 * * * *", catch_up="all", overdue=timedelta(days=30))
    make("rare", cron="0 0 * * *", catch_up="all", overdue=timedelta(days=3))
    due = Schedule.objects.get(name="rare").next_run_at
    assert due is not None
    before = database_now()
    while tick() == 0:
        pass
    least, most = ((now.date() - due.date()).days for now in (before, database_now()))
    made = [job.metadata["schedule"] for job in Job.objects.all()]
    assert made.count("interval") == 5
    assert made.count("cron") in (4, 5, 6)
    assert least <= made.count("rare") - 1 <= most  # the one in its row, and each midnight since: three


@pytest.mark.parametrize("cron", ["* * * * *", "*/5 * * * *", "0 * * * *", "0 7 * * MON-FRI"])
def test_about_as_many_are_caught_up_as_the_bound_says_whatever_the_expression(cron: str) -> None:
    timing = check_schedule("cron", "effects.record", cron=cron, catch_up="all").timing
    now = datetime(2024, 5, 1, tzinfo=UTC)
    first = timing.first(now - timedelta(days=400))
    left = sum(1 for _ in timing.ticks(timing.bounded(first, now, 100), now))
    assert 90 <= left <= 110


def test_all_goes_on_where_the_bound_leaves_no_time_with_a_tick() -> None:
    spec = check_schedule("cron", "effects.record", cron="0-9 * * * *", catch_up="all")
    due = datetime(2024, 5, 1, 0, 0, tzinfo=UTC)
    last = datetime(2024, 5, 1, 12, 9, tzinfo=UTC)
    with mock.patch.object(ticks, "MOST_CAUGHT_UP", 5):
        assert ticks._plan(spec, due, last + 21 * MINUTE) == ([last], last + 51 * MINUTE)


def test_the_latest_is_caught_up_within_its_grace_only() -> None:
    make("in time", every=timedelta(days=1), grace_seconds=7200, overdue=timedelta(hours=1))
    make("too late", every=timedelta(days=1), grace_seconds=7200, overdue=timedelta(hours=3))
    tick()
    assert [job.metadata["schedule"] for job in Job.objects.all()] == ["in time"]
    assert not Schedule.objects.filter(next_run_at__lt=timezone.now() + timedelta(hours=20)).exists()


def test_skip_still_makes_the_tick_that_is_merely_a_little_late() -> None:
    make("a little", every=timedelta(hours=1), catch_up="skip", overdue=timedelta(seconds=5))
    make("missed", every=timedelta(hours=1), catch_up="skip", overdue=timedelta(minutes=5))
    tick()
    assert [job.metadata["schedule"] for job in Job.objects.all()] == ["a little"]


def test_the_latest_of_a_year_of_minutes_is_found_without_counting_them() -> None:
    make(cron="* * * * *", overdue=timedelta(days=365))
    tick()
    assert Job.objects.count() == 1
    assert (timezone.now() - ScheduleTick.objects.get().due_at) < 2 * MINUTE


# --- overlap, jitter, one-offs


def test_overlap_skip_waits_for_the_last_ticks_job() -> None:
    row = make(overlap="skip", overdue=timedelta(seconds=1))
    tick()
    job = Job.objects.get()

    def again() -> int:
        Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - JUST_NOW)
        tick()
        return Job.objects.count()

    assert again() == 1
    for status in ("scheduled", "running"):
        Job.objects.all().delete()
        ScheduleTick.objects.update(job=JobFactory(status=status))
        assert again() == 1
    Job.objects.all().delete()
    ScheduleTick.objects.update(job=JobFactory(status="dead"))
    assert again() == 2
    assert job.pk not in Job.objects.values_list("pk", flat=True)


def test_overlap_skip_waits_for_each_of_the_schedules_jobs() -> None:
    row = make(overlap="skip", overdue=timedelta(seconds=1))
    tick()
    first = Job.objects.get()
    run_schedule_now("tick").cancel()
    Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - JUST_NOW)
    tick()
    assert Job.objects.live().get() == first


def test_overlap_allow_submits_another() -> None:
    row = make(overdue=timedelta(seconds=1))
    tick()
    Schedule.objects.filter(pk=row.pk).update(next_run_at=database_now() - JUST_NOW)
    tick()
    assert Job.objects.ready().count() == 2


def test_overlap_skip_with_catch_up_all_submits_one() -> None:
    make(overlap="skip", catch_up="all", overdue=timedelta(minutes=30))
    tick()
    assert Job.objects.count() == 1


def test_jitter_delays_the_job_and_not_the_schedule() -> None:
    make(every=3600, jitter_seconds=600, overdue=timedelta(seconds=1))
    due = Schedule.objects.get().next_run_at
    tick()
    job = Job.objects.get()
    assert job.scheduled_at is not None
    assert due <= job.scheduled_at <= due + timedelta(seconds=600)
    assert Schedule.objects.get().next_run_at == due + timedelta(hours=1)
    assert ScheduleTick.objects.get().due_at == due


def test_run_now_waits_for_no_jitter() -> None:
    make(jitter_seconds=600)
    job = run_schedule_now("tick")
    assert (job.status, job.scheduled_at) == ("pending", None)


def test_a_one_off_disables_itself_after_its_tick() -> None:
    when = database_now() - timedelta(seconds=2)
    row = make(at=when)
    assert tick() is None
    assert Job.objects.count() == 1
    row.refresh_from_db()
    assert (row.enabled, row.next_run_at, row.last_error, row.last_run_at) == (False, None, "", when)


def test_a_one_off_in_the_future_waits() -> None:
    make(at=database_now() + timedelta(hours=1))
    rest = tick()
    assert rest is not None
    assert 3500 < rest <= 3600
    assert not Job.objects.exists()


def test_a_one_off_that_was_missed_says_so() -> None:
    row = make(at=timezone.now() - timedelta(hours=1), catch_up="skip")
    tick()
    row.refresh_from_db()
    assert not Job.objects.exists()
    assert not row.enabled
    assert row.last_error.startswith("missed: it was due at")


# --- broken rows


BROKEN: list[dict[str, Any]] = [
    {"kind": "cron", "cron": "61 * * * *"},
    {"kind": "cron", "cron": "0 0 30 2 *"},
    {"kind": "cron", "cron": ""},
    {"kind": "cron", "cron": "* * * * *", "timezone": "Europe/Berln"},
    {"kind": "interval", "interval_seconds": 0},
    {"kind": "interval", "interval_seconds": None},
    {"kind": "interval", "interval_seconds": -5},
    {"kind": "interval", "interval_seconds": 1e300},
    {"kind": "once", "run_at": None},
    {"kind": "interval", "interval_seconds": 60, "priority": 11},
    {"kind": "interval", "interval_seconds": 60, "job_type": "no blanks"},
    {"kind": "interval", "interval_seconds": 60, "payload": [1]},
    {"kind": "interval", "interval_seconds": 60, "queue": "a;drop"},
    {"kind": "interval", "interval_seconds": 60, "grace_seconds": -1},
]


def test_broken_rows_are_disabled_with_the_reason_and_the_good_ones_tick() -> None:
    for number, columns in enumerate(BROKEN):
        values = {"job_type": "effects.record", "next_run_at": database_now() - timedelta(seconds=9), **columns}
        Schedule.objects.create(name=f"broken {number}", **values)
    make("good", overdue=timedelta(seconds=1))
    tick()
    assert [job.metadata["schedule"] for job in Job.objects.all()] == ["good"]
    broken = Schedule.objects.filter(name__startswith="broken")
    assert not [row.name for row in broken if row.enabled or row.next_run_at or not row.last_error]
    assert Schedule.objects.get(name="good").enabled
    assert "Did you mean 'Europe/Berlin'?" in Schedule.objects.get(name="broken 3").last_error
    assert "never ticks" in Schedule.objects.get(name="broken 1").last_error


def test_a_database_that_is_away_disables_no_schedule() -> None:
    make(overdue=timedelta(seconds=1))
    with mock.patch.object(ticks, "_take", side_effect=_away), pytest.raises(DatabaseError):
        tick()
    assert Schedule.objects.get().enabled


# --- run now


def test_run_now_submits_beside_the_schedule() -> None:
    row = make()
    before = Schedule.objects.get().next_run_at
    jobs = [run_schedule_now(row.name), run_schedule_now(row.name)]
    assert {job.pk for job in jobs} == set(Job.objects.values_list("pk", flat=True))
    assert_ticks_and_jobs_match()
    assert Schedule.objects.get().next_run_at == before


def test_run_now_works_on_a_disabled_schedule_and_refuses_a_broken_one() -> None:
    make()
    disable("tick")
    run_schedule_now("tick")
    assert Job.objects.count() == 1
    Schedule.objects.update(interval_seconds=0)
    with pytest.raises(InvalidJob, match="an interval is"):
        run_schedule_now("tick")
    with pytest.raises(ScheduleNotFound, match="there is no schedule 'tock'"):
        run_schedule_now("tock")
    assert Job.objects.count() == 1


def test_the_clock_that_decides_is_the_databases() -> None:
    make(overdue=timedelta(seconds=1))
    with mock.patch.object(timezone, "now", return_value=datetime(2001, 1, 1, tzinfo=UTC)):
        tick()
    assert Job.objects.count() == 1
