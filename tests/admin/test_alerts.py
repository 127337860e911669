"""The page of alerts: who is told, what was, and the button that sends a test; and the logs on a job's page."""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core import mail
from django.test import override_settings

from django_jobs.models import Alert, Job, JobLog
from django_jobs.models.fields import DbNow
from tests.support.console import ROOT
from tests.support.factories import JobFactory
from tests.support.hooks import hook
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

ALERTS = f"{ROOT}alert/"
BUTTON = "Send a test alert"


def test_the_page_shows_who_is_told_and_what_was_and_no_secret() -> None:
    Alert.objects.create(key="queue:mail", text="queue mail: a ready job has waited 11 minutes", told_at=DbNow())
    Alert.objects.create(key="queue:slow", text="being sent", claimed_at=DbNow())
    both = {"email": ["ops@example.com"], "webhook": "https://hooks.example.com/T0/secret"}
    with override_settings(DJANGO_JOBS={"ALERTS": both}):
        page = browse(staff("view_alert")).get(ALERTS)
    for text in ("ops@example.com", "hooks.example.com", "queue mail: a ready job has waited 11 minutes", "10 min"):
        assert text in page.text
    for text in ("secret", "being sent", BUTTON):
        assert text not in page.text
    assert "names neither" in operator().get(ALERTS).text


def test_a_test_alert_needs_its_permission_and_leaves_an_entry() -> None:
    with (
        hook(500) as server,
        override_settings(DJANGO_JOBS={"ALERTS": {"email": ["ops@example.com"], "webhook": server.url}}),
    ):
        client = browse(staff("view_alert", "send_test_alert"))
        assert BUTTON in client.get(ALERTS).text
        assert client.get(f"{ALERTS}test/").status_code == 405
        page = client.post(f"{ALERTS}test/", follow=True)
        assert "Sent a test alert by email." in page.text
        assert "Not sent by webhook: HTTPError" in page.text
        assert (len(mail.outbox), server.keys) == (1, ["test"])
        assert LogEntry.objects.get().change_message == "Sent a test alert."
        assert "Sent a test alert." in operator().get(f"{ROOT}overview/acts/").text
        looker = browse(staff("view_alert", name="bob"))
        assert looker.post(f"{ALERTS}test/").status_code == 403
        eve = User.objects.create_user("eve", password="secret", is_staff=True)
        assert browse(eve).get(ALERTS).status_code == 403
    assert server.keys == ["test"]


def _log(job: Job, number: int, text: str) -> None:
    JobLog.objects.create(job=job, number=number, text=text)


def test_the_logs_of_the_newest_attempts_are_on_the_page_of_the_job_for_who_may_see_payloads() -> None:
    job = JobFactory(status="running", started_at=DbNow())
    for number in range(1, 8):
        _log(job, number, f"line of <attempt> {number}\n")
    url = f"{ROOT}job/{job.pk}/change/"
    page = browse(staff("view_payload")).get(url).text
    assert [number for number in range(1, 8) if f"line of &lt;attempt&gt; {number}" in page] == [3, 4, 5, 6, 7]
    assert page.count("data-follow") == 1
    assert 'data-refresh="' in page, "it is live"
    hidden = browse(staff(name="bob")).get(url).text
    assert "line of" not in hidden
    assert "Hidden: you may not see payloads." in hidden


def test_a_job_without_a_log_has_no_word_of_one_and_a_finished_one_is_not_followed() -> None:
    job = JobFactory(status="completed", started_at=DbNow(), finished_at=DbNow())
    url = f"{ROOT}job/{job.pk}/change/"
    assert "Logs" not in operator().get(url).text
    _log(job, 1, "text")
    page = browse(staff("view_payload")).get(url).text
    assert "Logs" in page
    assert "data-follow" not in page
