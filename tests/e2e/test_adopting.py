"""Adopting the rows of other queues: with their real packages where they are installed, which `.ci/matrix` sees to."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_jobs import job
from django_jobs.handlers import registry
from django_jobs.models import Job, Schedule
from django_jobs.testing import run_due

pytestmark = pytest.mark.django_db(transaction=True)
BEAT = pytest.mark.skipif(
    not apps.is_installed("django_celery_beat"), reason="wants JOBS_TEST_PEERS=django_celery_beat"
)
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
    ("source", "app"), [("celery-beat", "django_celery_beat"), ("django-tasks-db", "django_tasks_db")]
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
