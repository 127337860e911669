"""Adopting the rows of other queues: with their real packages where they are installed, which `.ci/matrix` sees to."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from django_jobs import job
from django_jobs.handlers import registry
from django_jobs.models import Job, Schedule
from django_jobs.testing import run_due

pytestmark = pytest.mark.django_db(transaction=True)
BEAT = pytest.mark.skipif(
    not apps.is_installed("django_celery_beat"), reason="wants JOBS_TEST_PEERS=django_celery_beat"
)
Q2 = pytest.mark.skipif(not apps.is_installed("django_q"), reason="wants JOBS_TEST_PEERS=django_q")
OX = pytest.mark.skipif(not apps.is_installed("django_ox"), reason="wants JOBS_TEST_PEERS=django_ox")
TASKS_DB = pytest.mark.skipif(not apps.is_installed("django_tasks_db"), reason="wants JOBS_TEST_PEERS=django_tasks_db")


def adopt(*args: str) -> list[str]:
    out = StringIO()
    call_command("jobs", "adopt", *args, stdout=out)
    return out.getvalue().splitlines()


def told(*args: str) -> dict[str, str]:
    """Return why each stays there, and an empty text for what was adopted."""
    return {one["name"]: one["why"] for one in map(json.loads, adopt(*args, "--json"))}


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    Schedule.objects.all().delete()

    def report(year: int, kind: str = "short") -> list[Any]:
        return [year, kind]

    job("shop.tasks.report", queue="reports")(report)
    job("shop.tasks.whole")(lambda payload: payload)
    yield
    for name in ("shop.tasks.report", "shop.tasks.whole"):
        registry.forget(name)


@pytest.mark.parametrize(
    ("source", "app"),
    [
        ("celery-beat", "django_celery_beat"),
        ("django-ox", "django_ox"),
        ("django-q2", "django_q"),
        ("django-tasks-db", "django_tasks_db"),
    ],
)
def test_what_is_not_installed_is_named(source: str, app: str) -> None:
    if not apps.is_installed(app):
        with pytest.raises(CommandError, match=f"{app} is not in INSTALLED_APPS"):
            adopt(source)


def test_another_queue_is_a_wrong_word() -> None:
    with pytest.raises(CommandError, match="invalid choice: 'celery'"):
        adopt("celery")


# --- django-celery-beat


@pytest.fixture
def beat() -> Any:
    """Periodic tasks of every kind, as its admin makes them."""
    from django_celery_beat import models

    crontab = models.CrontabSchedule.objects.create(
        minute="30", hour="6", day_of_week="mon-fri", timezone="Europe/Berlin"
    )
    both = models.CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="1", day_of_week="mon")
    interval = models.IntervalSchedule.objects.create(every=10, period="minutes")
    sun = models.SolarSchedule.objects.create(event="sunset", latitude="52.5", longitude="13.4")
    once = models.ClockedSchedule.objects.create(clocked_time=datetime(2090, 1, 1, tzinfo=UTC))
    make = models.PeriodicTask.objects.create
    make(
        name="report",
        task="shop.tasks.report",
        crontab=crontab,
        args="[2026]",
        kwargs='{"kind": "long"}',
        queue="night",
    )
    make(name="often", task="shop.tasks.whole", interval=interval, kwargs='{"any": 1}')
    make(name="once", task="shop.tasks.whole", clocked=once, one_off=True)
    make(name="sunset", task="shop.tasks.whole", solar=sun)
    make(name="both days", task="shop.tasks.whole", crontab=both)
    make(name="off", task="shop.tasks.whole", interval=interval, enabled=False)
    make(name="expires", task="shop.tasks.whole", interval=interval, expire_seconds=60)
    make(name="first one", task="shop.tasks.whole", interval=interval, one_off=True)
    make(name="positional", task="shop.tasks.whole", interval=interval, args="[7]")
    make(name="misfit", task="shop.tasks.report", interval=interval, kwargs='{"yaer": 2026}')
    make(name="unknown", task="crm.tasks.sync", interval=interval)
    return models.PeriodicTask


ADOPTED = {"report", "often", "once"}


@BEAT
def test_schedules_of_celery_become_ours_and_each_is_told(beat: Any) -> None:
    why = told("celery-beat")
    assert {name for name, reason in why.items() if not reason} == ADOPTED
    assert "solar schedules (sunset) do not exist here" in why["sunset"]
    assert "both to match" in why["both days"]
    assert why["off"] == "disabled there"
    assert "expire_seconds" in why["expires"]
    assert "it runs once" in why["first one"]
    assert "[7] have no names" in why["positional"]
    assert "Did you mean 'year'" in why["misfit"]
    assert why["unknown"] == "no handler here"
    rows = {row.name: row for row in Schedule.objects.all()}
    assert rows.keys() == ADOPTED
    report = rows["report"]
    assert (report.cron, report.timezone, report.queue) == ("30 6 * * mon-fri", "Europe/Berlin", "night")
    assert report.payload == {"year": 2026, "kind": "long"}
    assert (rows["often"].interval_seconds, rows["often"].payload) == (600, {"any": 1})
    assert rows["once"].run_at == datetime(2090, 1, 1, tzinfo=UTC)
    assert set(beat.objects.filter(enabled=False).values_list("name", flat=True)) == {*ADOPTED, "off"}


@BEAT
def test_a_dry_run_says_the_same_and_changes_nothing(beat: Any) -> None:
    before = list(beat.objects.order_by("pk").values())
    dry = told("celery-beat", "--dry-run")
    assert not Schedule.objects.exists()
    assert list(beat.objects.order_by("pk").values()) == before
    assert told("celery-beat") == dry


@BEAT
def test_none_is_adopted_twice(beat: Any) -> None:
    told("celery-beat")
    again = told("celery-beat")
    assert [name for name, reason in again.items() if not reason] == []
    beat.objects.filter(name="report").update(enabled=True)
    assert "exists already" in told("celery-beat")["report"]
    assert Schedule.objects.count() == len(ADOPTED)


@BEAT
def test_types_without_a_handler_get_a_module_to_paste(beat: Any) -> None:
    lines = adopt("celery-beat", "--dry-run")
    assert "schedule report: would be adopted" in lines
    module = "\n".join(lines[lines.index("from django_jobs import job") :])
    try:
        exec(compile(module, "jobs.py", "exec"), {"__name__": "pasted"})
        assert told("celery-beat")["unknown"] == ""
    finally:
        registry.forget("crm.tasks.sync")


# --- django-tasks-db


@TASKS_DB
def test_waiting_tasks_become_ours_with_their_ids_and_the_others_stay() -> None:
    from django_tasks_db.models import DBTaskResult

    from django_jobs.compat import task_backends
    from tests.support.effects import tasks

    later = timezone.now() + timedelta(days=1)
    soon = tasks.add.using(backend="theirs", priority=7).enqueue(2, two=3)
    tomorrow = tasks.add.using(backend="theirs", run_after=later).enqueue(4, 5)
    running = tasks.add.using(backend="theirs").enqueue(6, 7)
    DBTaskResult.objects.filter(pk=running.id).update(status="RUNNING")
    unknown = tasks.add.using(backend="theirs").enqueue(8, 9)
    DBTaskResult.objects.filter(pk=unknown.id).update(task_path="crm.tasks.sync")

    assert told("django-tasks-db") == {soon.id: "", tomorrow.id: "", unknown.id: "no handler here"}
    assert {str(pk) for pk in DBTaskResult.objects.values_list("pk", flat=True)} == {running.id, unknown.id}
    first, second = Job.objects.get(pk=soon.id), Job.objects.get(pk=tomorrow.id)
    assert (first.rank, first.status, first.payload) == (-7, "pending", {"args": [2], "kwargs": {"two": 3}})
    assert (second.status, second.scheduled_at) == ("scheduled", later)
    assert [one.result for one in run_due()] == [5]
    assert task_backends["default"].get_result(soon.id).return_value == 5
    assert told("django-tasks-db") == {unknown.id: "no handler here"}


@TASKS_DB
def test_of_waiting_tasks_a_dry_run_takes_none() -> None:
    from django_tasks_db.models import DBTaskResult

    from tests.support.effects import tasks

    one = tasks.add.using(backend="theirs").enqueue(2, 3)
    assert told("django-tasks-db", "--dry-run") == {one.id: ""}
    assert DBTaskResult.objects.count() == 1
    assert not Job.objects.exists()


# --- django-q2


@Q2
def test_schedules_of_django_q2_become_ours_and_each_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_q.conf import Conf
    from django_q.models import Schedule as Theirs
    from django_q.tasks import schedule

    soon = timezone.now().replace(microsecond=0) + timedelta(minutes=3)
    morning = datetime(2090, 3, 5, 5, 30, tzinfo=UTC)  # a Sunday, 06:30 in Berlin
    call, whole = "shop.tasks.report", "shop.tasks.whole"
    monkeypatch.setattr(Conf, "TIME_ZONE", "Europe/Berlin")
    cron = Theirs(name="cron", func=call, args="2026", kwargs="kind='long'", schedule_type="C", cron="0 6 * * mon-fri")
    cron.cluster, cron.next_run = "night", soon
    Theirs.objects.bulk_create([cron])  # its `save` wants another package for crontabs
    schedule(whole, name="often", schedule_type="I", minutes=10, next_run=soon, any=1)
    schedule(whole, name="hourly", schedule_type="H", next_run=soon)
    for name, kind in (("daily", "D"), ("weekly", "W"), ("monthly", "M"), ("quarterly", "Q"), ("yearly", "Y")):
        schedule(whole, name=name, schedule_type=kind, next_run=morning)
    schedule(whole, name="once", schedule_type="O", next_run=morning)
    schedule(whole, schedule_type="I", next_run=soon)
    schedule(whole, name="as in a call", schedule_type="H", next_run=soon)
    Theirs.objects.filter(name="as in a call").update(kwargs="any=[1, 2], other='x'", args="")
    adopted = {"cron", "often", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "once", "as in a call"}

    schedule(whole, name="fortnight", schedule_type="BW", next_run=morning)
    schedule(whole, name="the 31st", schedule_type="M", next_run=morning.replace(day=31))
    schedule(whole, name="three times", schedule_type="H", repeats=3)
    schedule(whole, name="off", schedule_type="H", repeats=0)
    schedule(whole, name="hook", schedule_type="H", hook="shop.tasks.report")
    schedule(whole, name="tick", schedule_type="H", intended_date_kwarg="at")
    schedule(whole, 7, name="positional", schedule_type="H")
    schedule(whole, name="options", schedule_type="H", q_options={"timeout": 5})
    schedule(call, name="misfit", schedule_type="H", yaer=2026)
    schedule(call, name="unreadable", schedule_type="H")
    Theirs.objects.filter(name="unreadable").update(args="open('x')")
    schedule("crm.tasks.sync", name="unknown", schedule_type="H")

    before = list(Theirs.objects.order_by("pk").values())
    dry = told("django-q2", "--dry-run")
    assert not Schedule.objects.exists()
    assert list(Theirs.objects.order_by("pk").values()) == before
    why = told("django-q2")
    assert why == dry
    (nameless,) = {name for name in why if name.startswith(f"{whole} ")}
    assert {name for name, reason in why.items() if not reason} == {*adopted, nameless}
    assert "timedelta(days=14)" in why["fortnight"]
    assert "a day 31" in why["the 31st"]
    assert "3 more times" in why["three times"]
    assert why["off"] == "it has ended there"
    again = told("django-q2")
    assert {again[name] for name in adopted} == {"it has ended there; one of this name is here"}
    assert "shop.tasks.report with each result" in why["hook"]
    assert "`tick`" in why["tick"]
    assert "[7] have no names" in why["positional"]
    assert "options timeout are said at the handler" in why["options"]
    assert "Did you mean 'year'" in why["misfit"]
    assert "no literals of Python" in why["unreadable"]
    assert why["unknown"] == "no handler here"

    rows = {row.name: row for row in Schedule.objects.all()}
    assert rows.keys() == {*adopted, nameless}
    ours = rows["cron"]
    assert (ours.cron, ours.timezone, ours.queue) == ("0 6 * * mon-fri", "Europe/Berlin", "night")
    assert ours.payload == {"year": 2026, "kind": "long"}
    assert (rows["often"].interval_seconds, rows["often"].next_run_at, rows["often"].payload) == (600, soon, {"any": 1})
    assert (rows["hourly"].interval_seconds, rows["hourly"].next_run_at) == (3600, soon)
    assert {name: rows[name].cron for name in ("daily", "weekly", "monthly", "quarterly", "yearly")} == {
        "daily": "30 6 * * *", "weekly": "30 6 * * 0", "monthly": "30 6 5 * *",
        "quarterly": "30 6 5 3,6,9,12 *", "yearly": "30 6 5 3 *",
    }  # fmt: skip
    assert {rows[name].next_run_at for name in ("once", "yearly")} >= {morning}
    assert rows["as in a call"].payload == {"any": [1, 2], "other": "x"}

    assert not [name for name, reason in told("django-q2").items() if not reason], "none is adopted twice"
    Theirs.objects.filter(name="often").update(repeats=-1)
    assert "exists already" in told("django-q2")["often"]


@Q2
def test_what_waits_in_django_q2_becomes_ours_and_what_it_runs_stays() -> None:
    from django_q.models import OrmQ
    from django_q.tasks import async_task

    first = async_task("shop.tasks.report", 2026, kind="long", q_options={"group": "night", "timeout": 30})
    second = async_task("shop.tasks.whole", any=1)
    hooked = async_task("shop.tasks.whole", hook="shop.tasks.report")
    unknown = async_task("crm.tasks.sync")
    async_task("shop.tasks.whole", any=2)
    running = OrmQ.objects.last()
    OrmQ.objects.filter(pk=running.pk).update(lock=timezone.now() + timedelta(minutes=1))
    forged = OrmQ.objects.create(key="site", payload="forged", lock=timezone.now() - timedelta(minutes=1))
    OrmQ.objects.exclude(pk=running.pk).update(lock=timezone.now() - timedelta(minutes=1))

    dry = told("django-q2", "--dry-run")
    assert not Job.objects.exists()
    why = told("django-q2")
    assert why == dry
    assert (why.pop(first), why.pop(second)) == ("", "")
    assert why == {
        hooked: "its hook ['shop.tasks.report'] has no equal here",
        unknown: "no handler here",
        str(forged.pk): "it cannot be read (BadSignature)",
    }
    assert OrmQ.objects.count() == 4
    job = Job.objects.get(pk=first)
    assert (job.queue, job.payload, job.timeout_seconds) == ("reports", {"year": 2026, "kind": "long"}, 30)
    assert job.metadata == {"group": "night"}
    assert {one.pk: one.result for one in run_due()} == {first: [2026, "long"], second: {"any": 1}}


# --- django-ox


@OX
@override_settings(TIME_ZONE="Europe/Berlin")
def test_schedules_of_django_ox_become_ours_and_each_is_told() -> None:
    from django_ox import registry as theirs
    from django_ox.models import OxSchedule
    from django_ox.stored import create_schedule

    from tests.support.effects import tasks

    for key, task in (("sums.add", tasks.add), ("leave", tasks.leave)):
        theirs.register(theirs.ScheduleKind(key=key, task=task))
    numbers = {"one": 1, "two": 2}

    def make(name: str, **fields: Any) -> Any:
        create_schedule(name=name, task_key="sums.add", arguments=numbers, **fields)

    make("cron", trigger="cron", cron="30 6 * * mon-fri")
    make("macro", trigger="cron", cron="@daily")
    make("often", trigger="interval", every_seconds=600, phase_seconds=60, starting_deadline_seconds=90)
    make("ends", trigger="cron", cron="0 0 * * *", end_time=datetime(2090, 1, 1, tzinfo=UTC))
    make("both days", trigger="cron", cron="0 0 */2 * mon")
    make("off", trigger="cron", cron="0 0 * * *")
    OxSchedule.objects.filter(name="off").update(enabled=False)
    make("gone", trigger="cron", cron="0 0 * * *")
    OxSchedule.objects.filter(name="gone").update(task_key="no.such")

    dry = told("django-ox", "--dry-run")
    assert not Schedule.objects.exists()
    why = told("django-ox")
    assert why == dry
    assert {name for name, reason in why.items() if not reason} == {"cron", "macro", "often"}
    assert "end_time" in why["ends"]
    assert "cron where both do" in why["both days"]
    assert why["off"] == "disabled there"
    assert why["gone"] == "its key names no task there"
    rows = {row.name: row for row in Schedule.objects.all()}
    assert (rows["cron"].cron, rows["cron"].timezone) == ("30 6 * * mon-fri", "Europe/Berlin")
    assert rows["cron"].job_type == tasks.add.module_path
    assert rows["cron"].payload == {"args": [], "kwargs": numbers}
    assert rows["macro"].cron == "0 0 * * *"
    often = rows["often"]
    assert (often.interval_seconds, often.grace_seconds, often.next_run_at.minute % 10) == (600, 90, 1)
    assert set(OxSchedule.objects.filter(enabled=True).values_list("name", flat=True)) == {"ends", "both days", "gone"}
    assert not [name for name, reason in told("django-ox").items() if not reason], "none is adopted twice"


@OX
def test_what_waits_in_django_ox_becomes_ours_with_the_attempts_that_it_has_left() -> None:
    from django_ox.models import OxTask

    from django_jobs.compat import task_backends
    from tests.support.effects import tasks

    later = timezone.now() + timedelta(days=1)
    soon = tasks.add.using(backend="ox", priority=7).enqueue(2, two=3)
    tomorrow = tasks.add.using(backend="ox", run_after=later).enqueue(4, 5)
    OxTask.objects.filter(pk=tomorrow.id).update(attempts=1, max_attempts=4)
    running = tasks.add.using(backend="ox").enqueue(6, 7)
    OxTask.objects.filter(pk=running.id).update(status="RUNNING")
    unknown = tasks.add.using(backend="ox").enqueue(8, 9)
    OxTask.objects.filter(pk=unknown.id).update(task_path="crm.tasks.sync")

    assert told("django-ox", "--dry-run") == {soon.id: "", tomorrow.id: "", unknown.id: "no handler here"}
    assert OxTask.objects.count() == 4
    assert told("django-ox") == {soon.id: "", tomorrow.id: "", unknown.id: "no handler here"}
    assert {str(pk) for pk in OxTask.objects.values_list("pk", flat=True)} == {running.id, unknown.id}
    first, second = Job.objects.get(pk=soon.id), Job.objects.get(pk=tomorrow.id)
    assert (first.rank, first.status, first.payload) == (-7, "pending", {"args": [2], "kwargs": {"two": 3}})
    assert (second.status, second.scheduled_at, second.max_retries) == ("scheduled", later, 2)
    assert [one.result for one in run_due()] == [5]
    assert task_backends["default"].get_result(soon.id).return_value == 5
    assert told("django-ox") == {unknown.id: "no handler here"}
