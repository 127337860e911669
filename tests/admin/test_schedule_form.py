"""Schedules made and changed in the admin: what is checked, the preview, who may, and what stays as it was."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import override_settings
from django.utils import timezone

from django_jobs.exceptions import InvalidJob, ScheduleNotFound
from django_jobs.models import Job, Schedule
from django_jobs.scheduling.store import create_schedule, save_schedule
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

SCHEDULES = "/admin/django_jobs/schedule/"
CRON = {
    "name": "report", "job_type": "effects.record", "kind": "cron", "cron": "30 2 * * MON-FRI", "timezone": "Europe/Berlin",
    "payload": '{"result": 7}', "catch_up": "latest", "overlap": "skip", "jitter_seconds": "0", "enabled": "on",
}  # fmt: skip


def test_a_schedule_is_made_after_a_look_at_its_next_ten_ticks() -> None:
    client = operator()
    preview = client.post(f"{SCHEDULES}add/", {**CRON, "preview": "1"})
    assert len(preview.context["ticks"]) == 10
    assert {tick.astimezone(UTC).hour for tick in preview.context["ticks"]} <= {0, 1}
    assert "Monday through Friday" in preview.text
    assert not Schedule.objects.exists()
    answer = client.post(f"{SCHEDULES}add/", CRON, follow=True)
    assert "Made schedule report." in answer.text
    row = Schedule.objects.get()
    assert (row.cron, row.payload, row.overlap, row.enabled, row.declared) == (
        "30 2 * * MON-FRI", {"result": 7}, "skip", True, False,
    )  # fmt: skip
    assert row.next_run_at is not None
    assert row.next_run_at == preview.context["ticks"][0]
    assert "Made schedule report." in LogEntry.objects.get().get_change_message()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cron": "61 * * * *"}, "minute"),
        ({"job_type": "effects.recrod"}, "effects.record"),
        ({"timezone": "Mars/Base"}, "Mars/Base"),
        ({"payload": "{"}, "This is no JSON"),
        ({"payload": "[1]"}, "Give a JSON object"),
        ({"kind": "once"}, "at"),
        ({"kind": "interval", "interval_seconds": "-1"}, "every"),
        ({"priority": "11"}, "priority"),
        ({"name": "taken"}, "already exists"),
        ({"name": ""}, "required"),
        ({"grace_seconds": "nan"}, "number"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_reason(change: dict[str, str], words: str) -> None:
    create_schedule("taken", "effects.record", every=60)
    for data in ({**CRON, **change}, {**CRON, **change, "preview": "1"}):
        answer = operator_once().post(f"{SCHEDULES}add/", data)
        assert answer.status_code == 200
        assert words in answer.text
        assert "see below" in answer.text
    assert Schedule.objects.count() == 1


def operator_once() -> Any:
    from django.contrib.auth.models import User
    from django.test import Client

    user, _ = User.objects.get_or_create(username="operator", is_superuser=True, is_staff=True)
    client = Client()
    client.force_login(user)
    return client


def test_once_and_every_are_made_too() -> None:
    client = operator()
    at = timezone.now() + timedelta(days=3)
    once = {**CRON, "name": "once", "kind": "once", "cron": "", "run_at": f"{at:%Y-%m-%dT%H:%M:%S}"}
    often = {**CRON, "name": "often", "kind": "interval", "cron": "", "interval_seconds": "600"}
    preview = client.post(f"{SCHEDULES}add/", {**once, "preview": "1"})
    assert len(preview.context["ticks"]) == 1
    for data in (once, often):
        client.post(f"{SCHEDULES}add/", data)
    rows = {row.name: row for row in Schedule.objects.all()}
    assert rows["once"].next_run_at == at.replace(microsecond=0)
    assert rows["often"].interval_seconds == 600


def test_a_schedule_is_changed_ticks_by_its_new_timing_and_keeps_what_is_masked() -> None:
    row = create_schedule("report", "effects.record", every=3600, payload={"token": "geheim", "a": 1})
    client = operator()
    page = client.get(f"{SCHEDULES}{row.pk}/edit/")
    assert "geheim" not in page.text
    typed = page.context["form"]["payload"].value().replace("1", "2")
    data = {**CRON, "kind": "interval", "cron": "", "interval_seconds": "60", "payload": typed}
    answer = client.post(f"{SCHEDULES}{row.pk}/edit/", data, follow=True)
    assert "Changed schedule report" in answer.text
    row.refresh_from_db()
    assert row.payload == {"token": "geheim", "a": 2}
    assert row.next_run_at is not None
    assert row.next_run_at < timezone.now() + timedelta(seconds=70)


def test_who_may_not_see_payloads_changes_all_but_them() -> None:
    row = create_schedule("report", "effects.record", every=3600, payload={"a": 1})
    client = browse(staff("change_schedule"))
    page = client.get(f"{SCHEDULES}{row.pk}/edit/")
    assert "payload" not in page.context["form"].fields
    client.post(f"{SCHEDULES}{row.pk}/edit/", {**CRON, "payload": '{"a": 2}'})
    row.refresh_from_db()
    assert (row.kind, row.payload) == ("cron", {"a": 1})


@pytest.mark.parametrize("right", ["add_schedule", "change_schedule", "run_schedule"])
def test_making_and_changing_take_their_own_rights(right: str) -> None:
    row = create_schedule("report", "effects.record", every=3600)
    client = browse(staff(right))
    assert (client.get(f"{SCHEDULES}add/").status_code == 200) is (right == "add_schedule")
    assert (client.get(f"{SCHEDULES}{row.pk}/edit/").status_code == 200) is (right == "change_schedule")
    assert ("Make a schedule" in client.get(SCHEDULES).text) is (right == "add_schedule")
    assert ("/edit/" in client.get(f"{SCHEDULES}{row.pk}/change/").text) is (right == "change_schedule")


@override_settings(DJANGO_JOBS={"SHELL_JOBS": True})
def test_commands_of_the_shell_are_not_scheduled_here() -> None:
    """Who has the rights to schedules has none to the machine; one that a program made at run time is not changed here either."""
    client = operator()
    given = {**CRON, "job_type": " shell ", "payload": '{"command": "true"}'}
    for act in ({"preview": "1"}, {}):
        assert client.post(f"{SCHEDULES}add/", given | act).status_code == 403
    assert not Schedule.objects.exists()
    row = create_schedule("clean", "shell", every=3600, payload={"command": "true"})
    assert client.get(f"{SCHEDULES}{row.pk}/edit/").status_code == 403
    assert client.post(f"{SCHEDULES}{row.pk}/edit/", given).status_code == 403


def test_what_the_code_declares_is_changed_in_the_code() -> None:
    row = create_schedule("report", "effects.record", every=3600)
    Schedule.objects.update(declared=True)
    client = operator()
    assert client.get(f"{SCHEDULES}{row.pk}/edit/").status_code == 403
    assert "/edit/" not in client.get(f"{SCHEDULES}{row.pk}/change/").text
    with pytest.raises(InvalidJob, match="declared in the code"):
        save_schedule(row)
    Schedule.objects.all().delete()
    with pytest.raises(ScheduleNotFound):
        save_schedule(row)
    assert "may have been pruned" in client.get(f"{SCHEDULES}{row.pk}/edit/", follow=True).text


def test_a_tick_that_comes_while_somebody_edits_is_not_made_again() -> None:
    row = create_schedule("report", "effects.record", every=3600)
    edited = Schedule.objects.get()
    later = datetime(2099, 1, 1, tzinfo=UTC)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=later, last_run_at=row.next_run_at)
    edited.payload = {"a": 2}
    save_schedule(edited)
    row.refresh_from_db()
    assert (row.next_run_at, row.payload) == (later, {"a": 2})
    assert row.last_run_at is not None
    assert not Job.objects.exists()


def test_what_somebody_made_is_deleted_and_what_the_code_declares_stays() -> None:
    made, declared = (create_schedule(name, "effects.record", every=60) for name in ("made", "declared"))
    Schedule.objects.filter(pk=declared.pk).update(declared=True)
    client = operator()
    assert client.get(f"{SCHEDULES}{made.pk}/change/").context["may_delete"]
    assert not client.get(f"{SCHEDULES}{declared.pk}/change/").context["may_delete"]
    data = {"action": "delete_selected", "_selected_action": [made.pk, declared.pk]}
    assert "The jobs that they submitted stay." in client.post(SCHEDULES, data).text
    assert Schedule.objects.count() == 2
    answer = client.post(SCHEDULES, {**data, "confirmed": "1"}, follow=True)
    assert "Deleted 1 schedule." in answer.text
    assert "left as it is" in answer.text
    assert Schedule.objects.get() == declared
    looker = browse(staff("view_schedule", "change_schedule", name="eve"))
    looker.post(SCHEDULES, {**data, "confirmed": "1"})
    assert Schedule.objects.get() == declared
