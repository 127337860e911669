"""The rows of schedules: made, cancelled, turned on and off, edited by hand, and kept as the code declares them."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.utils import timezone

from django_jobs.conf import this_site
from django_jobs.db.transactions import database_now
from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.handlers import Registry, make_handler, registry
from django_jobs.models import Job, Schedule, ScheduleTick
from django_jobs.queue import Scheduler
from django_jobs.scheduling import spec
from django_jobs.scheduling.spec import declare
from django_jobs.scheduling.store import (
    NO_LONGER_DECLARED,
    create_schedule,
    delete_schedule,
    disable,
    disable_undeclared,
    enable,
    sync_declared,
)
from django_jobs.scheduling.ticks import run_schedule_now, tick
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
JUST_NOW = timedelta(milliseconds=2)  # SQLite's clock has milliseconds


@pytest.fixture(autouse=True)
def _no_declared_schedules(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the schedules that the test project declares."""
    monkeypatch.setattr(spec, "_declared", {})
    Schedule.objects.all().delete()


def get() -> Schedule:
    return Schedule.objects.get()


def near(moment: datetime | None, ahead: timedelta) -> bool:
    return moment is not None and abs(moment - database_now() - ahead) < timedelta(minutes=1)


# --- create and cancel


def test_an_interval_ticks_first_one_interval_from_now() -> None:
    Scheduler().schedule_interval("poll", "effects.record", 3600, {"kind": "poll"}, queue="feeds", priority=9)
    row = get()
    assert (row.name, row.kind, row.interval_seconds, row.payload) == ("poll", "interval", 3600, {"kind": "poll"})
    assert (row.queue, row.priority, row.enabled, row.declared) == ("feeds", 9, True, False)
    assert near(row.next_run_at, HOUR)


def test_a_cron_schedule_ticks_first_at_its_next_time() -> None:
    Scheduler().schedule_cron("nightly", "effects.record", "0 3 * * *", timezone="Europe/Berlin", catch_up="all")
    row = get()
    assert (row.kind, row.cron, row.timezone, row.catch_up) == ("cron", "0 3 * * *", "Europe/Berlin", "all")
    assert row.next_run_at is not None
    assert row.next_run_at > timezone.now()


@pytest.mark.slow
def test_a_one_off_ticks_at_its_time() -> None:
    when = datetime(2100, 1, 1, tzinfo=UTC)
    Scheduler().schedule_once("party", "effects.record", when)
    assert Scheduler().schedule_once(job_id="by id", job_type="effects.record", run_at=when).name == "by id"
    assert Scheduler().schedule_once(name="by name", job_type="effects.record", run_at=when).name == "by name"
    assert [Scheduler().cancel(name="by id"), Scheduler().cancel(job_id="by name")] == [True, True]
    Scheduler().schedule_once("in seconds", "effects.record", when.timestamp())
    for row in Schedule.objects.all():
        assert (row.kind, row.run_at, row.next_run_at) == ("once", when, when)
    for wrong in (float("nan"), "tomorrow", None, datetime(2100, 1, 1)):
        with pytest.raises(InvalidJob):
            Scheduler().schedule_once("wrong", "effects.record", wrong)  # type: ignore[arg-type]
    assert Schedule.objects.count() == 2


def test_a_scheduler_of_a_queue_sends_its_jobs_there() -> None:
    class Queue:
        name = "mail"
        handlers = Registry()

    Queue.handlers.register(make_handler(lambda payload: None, "only.here", {}))
    Scheduler("mail").schedule_interval("a", "effects.record", 60)
    Scheduler(Queue()).schedule_interval("b", "only.here", 60)
    Scheduler(Queue()).schedule_interval("c", "only.here", 60, queue="other")
    assert list(Schedule.objects.values_list("name", "queue")) == [("a", "mail"), ("b", "mail"), ("c", "other")]


def test_cancel_deletes_the_schedule_and_keeps_its_jobs() -> None:
    Scheduler().schedule_interval("poll", "effects.record", 60)
    run_schedule_now("poll")
    assert Scheduler().cancel("poll") is True
    assert not Schedule.objects.exists()
    assert not ScheduleTick.objects.exists()
    assert Job.objects.count() == 1
    assert Scheduler().cancel("poll") is False
    assert delete_schedule("never was") is False


def test_a_name_is_taken_once() -> None:
    Scheduler().schedule_interval("poll", "effects.record", 60)
    with pytest.raises(InvalidJob, match="schedule 'poll' exists already"):
        Scheduler().schedule_interval("poll", "effects.record", 60)
    Scheduler().schedule_interval("Poll", "effects.record", 60)


@pytest.mark.django_db(transaction=True)
def test_of_four_threads_that_take_one_name_one_gets_it() -> None:
    def take() -> bool:
        try:
            create_schedule("poll", "effects.record", every=60)
        except InvalidJob:
            return False
        return True

    assert sorted(run_in_threads(take, count=4)) == [False, False, False, True]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"every": 0}, "an interval is"),
        ({"cron": "61 * * * *"}, "bad minute"),
        ({"cron": "0 0 30 2 *"}, "never ticks"),
        ({"cron": "@daily", "timezone": "Europe/Berln"}, "Did you mean 'Europe/Berlin'?"),
        ({"every": 60, "prioriy": 1}, "Did you mean 'priority'?"),
        ({"every": 60, "job_type": "effects.recor"}, "Did you mean 'effects.record'?"),
    ],
)
def test_what_is_refused_leaves_no_row(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        create_schedule(**{"name": "bad", "job_type": "effects.record", **said})
    assert problem in str(caught.value)
    assert not Schedule.objects.exists()


# --- enable and disable


def test_a_disabled_schedule_does_not_tick_and_catches_nothing_up_when_it_is_enabled() -> None:
    create_schedule("poll", "effects.record", every=3600, catch_up="all")
    Schedule.objects.update(next_run_at=database_now() - 5 * HOUR)
    disable("poll")
    assert (get().enabled, get().next_run_at) == (False, None)
    assert tick() is None
    enable("poll")
    assert near(get().next_run_at, HOUR)
    tick()
    assert not Job.objects.exists()


def test_enabling_an_enabled_schedule_keeps_its_next_tick() -> None:
    create_schedule("poll", "effects.record", every=3600)
    Schedule.objects.update(next_run_at=timezone.now() + timedelta(minutes=5))
    before = get().next_run_at
    enable("poll")
    assert get().next_run_at == before


def test_a_broken_schedule_is_enabled_only_after_it_was_mended() -> None:
    Schedule.objects.create(name="poll", job_type="effects.record", kind="cron", cron="61 * * * *")
    Schedule.objects.update(next_run_at=database_now() - timedelta(seconds=1))
    tick()
    assert get().enabled is False
    with pytest.raises(InvalidJob, match="bad minute"):
        enable("poll")
    assert "bad minute" in get().last_error
    Schedule.objects.update(cron="0 * * * *")
    enable("poll")
    assert (get().enabled, get().last_error) == (True, "")


def test_a_one_off_whose_time_is_over_cannot_be_enabled() -> None:
    create_schedule("party", "effects.record", at=timezone.now() - HOUR)
    tick()
    with pytest.raises(InvalidJob, match="give it another time"):
        enable("party")
    assert get().enabled is False


def test_an_unknown_name_is_said() -> None:
    for move in (enable, disable, run_schedule_now):
        with pytest.raises(ScheduleNotFound, match="there is no schedule 'nope'"):
            move("nope")
    with pytest.raises(KeyError):
        enable("nope")


# --- edited by hand


def test_a_form_refuses_what_the_api_refuses() -> None:
    row = Schedule(name="bad", job_type="effects.recor", kind="cron", cron="61 25 * * *", timezone="Europe/Berln")
    with pytest.raises(ValidationError) as caught:
        row.full_clean()
    said = " ".join(caught.value.messages)
    for part in ("bad minute", "bad hour", "Did you mean 'Europe/Berlin'?", "Did you mean 'effects.record'?"):
        assert part in said


def test_a_row_that_is_saved_by_hand_finds_its_next_tick() -> None:
    row = Schedule.objects.create(name="poll", job_type="effects.record", kind="interval", interval_seconds=3600)
    assert near(row.next_run_at, HOUR)
    row.interval_seconds = 7200
    row.save()
    assert near(get().next_run_at, 2 * HOUR)
    row = get()
    row.payload = {"kind": "other"}
    row.save()
    assert get().next_run_at == row.next_run_at
    row.enabled = False
    row.save()
    assert get().next_run_at is None
    row = get()
    row.enabled = True
    row.save()
    assert near(get().next_run_at, 2 * HOUR)


def test_a_next_tick_that_is_set_by_hand_is_kept() -> None:
    when = datetime(2100, 1, 1, tzinfo=UTC)
    row = Schedule.objects.create(
        name="poll", job_type="effects.record", kind="interval", interval_seconds=3600, next_run_at=when
    )
    row.next_run_at, row.interval_seconds = when + HOUR, 60
    row.save()
    assert get().next_run_at == when + HOUR


def test_a_row_can_be_read_in_part() -> None:
    create_schedule("poll", "effects.record", every=60)
    row = Schedule.objects.only("name").get()
    assert row.interval_seconds == 60


# --- declared in code


def test_declared_schedules_are_written_once() -> None:
    declare("poll", "effects.record", every=3600, payload={"kind": "poll"}, queue="feeds")
    sync_declared()
    row = get()
    assert (row.declared, row.queue, row.interval_seconds) == (True, "feeds", 3600)
    assert near(row.next_run_at, HOUR)
    sync_declared()
    assert (get().pk, get().next_run_at, get().updated_at) == (row.pk, row.next_run_at, row.updated_at)


def test_an_operators_pause_and_the_next_tick_survive_a_new_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    declare("poll", "effects.record", every=3600)
    declare("paused", "effects.record", every=3600)
    sync_declared()
    disable("paused")
    Schedule.objects.filter(name="poll").update(next_run_at=datetime(2100, 1, 1, tzinfo=UTC))
    monkeypatch.setattr(spec, "_declared", {})
    for name in ("poll", "paused"):
        declare(name, "effects.record", every=3600, priority=9)
    sync_declared()
    poll, paused = Schedule.objects.get(name="poll"), Schedule.objects.get(name="paused")
    assert (poll.priority, paused.priority) == (9, 9)
    assert poll.next_run_at == datetime(2100, 1, 1, tzinfo=UTC)
    assert (paused.enabled, paused.next_run_at) == (False, None)


def test_other_times_in_the_declaration_move_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    declare("poll", "effects.record", every=3600)
    sync_declared()
    monkeypatch.setattr(spec, "_declared", {})
    declare("poll", "effects.record", every=7200)
    sync_declared()
    assert near(get().next_run_at, 2 * HOUR)


def test_a_new_declaration_mends_what_a_broken_tick_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    declare("poll", "effects.record", every=3600)
    sync_declared()
    Schedule.objects.update(interval_seconds=0, next_run_at=database_now() - JUST_NOW)
    tick()
    assert get().enabled is False
    sync_declared()
    assert (get().enabled, get().last_error) == (True, "")
    assert near(get().next_run_at, HOUR)


def test_a_row_made_by_hand_is_not_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    create_schedule("poll", "effects.record", every=60)
    declare("poll", "effects.record", every=3600)
    with caplog.at_level(logging.WARNING, "django_jobs"):
        sync_declared()
    assert (get().interval_seconds, get().declared) == (60, False)
    assert "made by hand and is kept" in caplog.text


def test_a_declared_job_type_without_a_handler_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    declare("typo", "effects.recor", every=60)
    declare("poll", "effects.record", every=60)
    sync_declared()
    assert get().name == "poll"
    assert "Did you mean 'effects.record'?" in caplog.text


def test_a_payload_that_does_not_fit_the_handler_is_refused_and_a_declared_one_is_not_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InvalidJob, match="'nam' is too much, for greet"):
        create_schedule("greet", "effects.greet", every=60, payload={"nam": "Ann"})
    declare("greet", "effects.greet", every=60, payload={"nam": "Ann"})
    declare("poll", "effects.record", every=60)
    sync_declared()
    assert get().name == "poll"
    assert "schedule 'greet' is declared and was not written: payload: 'name' is missing" in caplog.text


def test_what_the_code_no_longer_declares_is_disabled_and_comes_back_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    declare("poll", "effects.record", every=3600)
    sync_declared()
    create_schedule("by hand", "effects.record", every=3600)
    with monkeypatch.context() as patch:
        patch.setattr(spec, "_declared", {})
        sync_declared()
        assert Schedule.objects.get(name="poll").enabled
        disable_undeclared()
    gone = Schedule.objects.get(name="poll")
    assert (gone.enabled, gone.next_run_at, gone.last_error) == (False, None, NO_LONGER_DECLARED)
    assert Schedule.objects.get(name="by hand").enabled
    sync_declared()
    back = Schedule.objects.get(name="poll")
    assert (back.enabled, back.last_error) == (True, "")
    assert near(back.next_run_at, HOUR)


def at_site(settings: Any, name: str) -> None:
    """Go on as the code of another site."""
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "SITE": name}


def test_the_site_is_the_settings_or_the_package_of_the_settings_module(settings: Any) -> None:
    assert this_site() == "tests"
    at_site(settings, "shop")
    assert this_site() == "shop"
    declare("poll", "effects.record", every=3600)
    sync_declared()
    assert get().site == "shop"


def test_a_site_disables_no_schedule_that_another_one_declares(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_site(settings, "a")
    for name in ("a.kept", "a.gone"):
        declare(name, "effects.record", every=3600)
    sync_declared()
    create_schedule("by hand", "effects.record", every=3600)
    before = dict(Schedule.objects.values_list("name", "updated_at"))
    at_site(settings, "b")
    monkeypatch.setattr(spec, "_declared", {})
    declare("b.own", "effects.record", every=3600)
    sync_declared()
    disable_undeclared()
    assert dict(Schedule.objects.exclude(name="b.own").values_list("name", "updated_at")) == before
    assert set(Schedule.objects.filter(enabled=True).values_list("name", flat=True)) == {*before, "b.own"}
    at_site(settings, "a")
    monkeypatch.setattr(spec, "_declared", {})
    declare("a.kept", "effects.record", every=3600)
    disable_undeclared()
    assert list(Schedule.objects.filter(enabled=False).values_list("name", "site")) == [("a.gone", "a")]


def test_a_name_belongs_to_the_site_that_declared_it_until_it_no_longer_does(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at_site(settings, "a")
    declare("cleanup", "effects.record", every=3600, payload={"site": "a"})
    sync_declared()
    at_site(settings, "b")
    monkeypatch.setattr(spec, "_declared", {})
    declare("cleanup", "effects.record", every=60, payload={"site": "b"})
    sync_declared()
    assert (get().payload, get().interval_seconds, get().site) == ({"site": "a"}, 3600, "a")
    assert "the site 'a' declares one of that name" in caplog.text
    at_site(settings, "a")
    with monkeypatch.context() as patch:
        patch.setattr(spec, "_declared", {})
        disable_undeclared()
    assert "give each its own DJANGO_JOBS['SITE']" in caplog.text
    at_site(settings, "b")
    sync_declared()
    assert (get().payload, get().interval_seconds, get().site, get().enabled) == ({"site": "b"}, 60, "b", True)


def test_sites_that_share_a_declaration_share_its_row(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    declare("shared", "effects.record", every=3600)
    for site in ("a", "b", "a"):
        at_site(settings, site)
        sync_declared()
        disable_undeclared()
    assert (get().site, get().enabled, caplog.text) == ("a", True, "")


def test_a_tick_that_another_site_makes_has_the_options_of_the_site_that_declared(settings: Any) -> None:
    registry.register(make_handler(lambda payload: None, "a.report", {"queue": "reports", "priority": 9}))
    try:
        settings.DJANGO_JOBS = {"SITE": "a", "QUEUES": {"reports": {"max_retries": 7, "timeout_seconds": 30.0}}}
        declare("a.report", "a.report", every=3600)
        sync_declared()
        sync_declared()
    finally:
        registry.forget("a.report")
    settings.DJANGO_JOBS = {"SITE": "b", "MAX_RETRIES": 1}
    Schedule.objects.update(next_run_at=database_now() - JUST_NOW)
    tick()
    job = Job.objects.get()
    assert (job.queue, job.priority, job.max_retries, job.timeout_seconds) == ("reports", 9, 7, 30.0)


def test_rows_written_in_bulk_get_their_next_tick() -> None:
    Schedule.objects.bulk_create(
        [
            Schedule(name="good", job_type="effects.record", kind="interval", interval_seconds=3600),
            Schedule(name="broken", job_type="effects.record", kind="interval", interval_seconds=0),
        ]
    )
    sync_declared()
    assert near(Schedule.objects.get(name="good").next_run_at, HOUR)
    Schedule.objects.filter(name="broken").update(next_run_at=database_now() - timedelta(seconds=1))
    tick()
    assert "an interval is" in Schedule.objects.get(name="broken").last_error


@pytest.mark.django_db(transaction=True)
def test_workers_that_start_together_write_a_declared_schedule_once() -> None:
    declare("poll", "effects.record", every=3600)
    run_in_threads(sync_declared, count=4)
    assert get().declared


@pytest.mark.django_db(transaction=True)
def test_migrate_writes_the_declared_schedules() -> None:
    declare("poll", "effects.record", every=3600)
    call_command("migrate", verbosity=0)
    assert get().name == "poll"
