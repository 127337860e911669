"""The page of a cause: since when and which release, what replays came to, where in the site's code, payloads side by side."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import localtime

from django_jobs.admin import causes
from django_jobs.admin.causes import place_in
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.causes import note_cause
from django_jobs.models import Cause, DeadLetter, Job
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

CAUSES = "/admin/django_jobs/deadletter/causes/"


def page(fingerprint: str = "f1", client: Any = None) -> Any:
    answer = (client or operator()).get(f"{CAUSES}{quote(fingerprint)}/")
    assert answer.status_code == 200
    return answer


def letter(job: Job | None = None, *, replayed: Any = None, **more: Any) -> DeadLetter:
    """Write a dead letter of the cause, replayed at a time or open."""
    row = DeadLetterFactory(job=job or JobFactory(status="dead"), fingerprint="f1", **more)
    DeadLetter.objects.filter(pk=row.pk).update(
        replayed_at=replayed, replayed_by=User.objects.filter(username="ada").first()
    )
    return row


def test_a_cause_tells_what_came_of_each_replay() -> None:
    User.objects.create_user("ada")
    now = database_now().replace(second=30)
    again = JobFactory.create_batch(3, status="dead")
    for job in again:
        letter(job, replayed=now - timedelta(hours=5))
    for status in ("completed", "completed", "pending"):
        letter(JobFactory(status=status), replayed=now - timedelta(hours=5))
    for job in again:
        letter(job, replayed=now - timedelta(hours=1))
        letter(job)
    history = page().context
    assert [(replay.count, replay.by, words) for replay, words in history["replays"]] == [
        (3, "ada", "3 died again"),
        (6, "ada", "3 died again, 2 completed, 1 pending"),
    ] or [(replay.count, words) for replay, words in history["replays"]] == [
        (3, "3 died again"),
        (6, "2 completed, 3 died again, 1 pending"),
    ]
    assert (history["history"].count, history["history"].open) == (12, 3)


def test_a_cause_knows_when_and_in_which_release_it_was_first_seen_though_that_one_is_closed() -> None:
    now = database_now()
    first = letter(died_at=now - timedelta(days=9), replayed=now)
    DeadLetter.objects.filter(pk=first.pk).update(release="2026.11.3")
    letter(died_at=now)
    answer = page()
    assert answer.context["history"].first.pk == first.pk
    assert "2026.11.3" in answer.text
    assert "9 d ago" in answer.text
    assert "0 completed, 1 failed" in answer.text, "deaths by hour"


def test_payloads_stand_side_by_side_masked_and_for_those_who_may_see_them() -> None:
    for number in range(5):
        letter(JobFactory(status="dead", payload={"account": number, "token": "geheim"}))
    text = page().text
    assert [number for number in range(5) if f"&quot;account&quot;: {number}" in text] == [2, 3, 4]
    assert "geheim" not in text
    blind = page(client=browse(staff())).text
    assert "account" not in blind
    assert "may not see payloads" in blind


def test_notes_of_acknowledged_ones_are_kept_in_sight() -> None:
    row = letter()
    row.acknowledge(note="the bank was closed")
    assert "the bank was closed" in page().text


FRAMES = """Traceback (most recent call last):
  File "/usr/lib/python3.13/contextlib.py", line 79, in inner
  File "/srv/shop/orders/bank.py", line 71, in charge
  File "/srv/venv/lib/python3.13/site-packages/requests/api.py", line 7, in post
TimeoutError: no answer
"""


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        (FRAMES, "bank.py:71 in charge"),
        (FRAMES.replace("/srv/shop", "/usr/lib/python3.13"), "api.py:7 in post"),
        ('File "C:\\\\shop\\\\bank.py", line 7, in charge', "bank.py:7 in charge"),
        ("", ""),
    ],
)
def test_the_place_of_a_cause_is_in_the_sites_own_code(frames: str, place: str) -> None:
    assert place_in(frames) == place


def test_a_cause_is_reached_from_the_list_of_causes_a_dead_letter_and_the_overview() -> None:
    row = letter()
    client = operator()
    link = f"{CAUSES}f1/"
    assert page(client=client).context["newest"].pk == row.pk
    assert 'href="f1/"' in client.get(CAUSES).text
    for url in ("/admin/django_jobs/overview/", f"/admin/django_jobs/deadletter/{row.pk}/change/"):
        assert f'href="{link}"' in client.get(url).text
    answer = client.get(f"{CAUSES}nobody/", follow=True)
    assert "may have been pruned" in answer.text
    assert browse(staff(name="bob")).get(f"{CAUSES}{quote('a/b:c')}/", follow=True).status_code == 200


def test_a_causes_page_takes_a_few_queries_and_reads_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    client, counts = operator(), []
    for _ in range(2):
        for _ in range(10):
            letter()
        with CaptureQueriesContext(connection) as queries:
            page(client=client)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 14
    monkeypatch.setattr(causes, "MOST_READ", 15)
    monkeypatch.setattr("django_jobs.admin.dead_letters.MOST_READ", 15)
    answer = page(client=client)
    assert "14+ dead letters on record" in answer.text


def test_a_cause_keeps_a_note_and_is_muted_to_the_end_of_a_day() -> None:
    row, client = letter(), operator()
    until = localtime() + timedelta(days=3)
    answer = client.post(
        f"{CAUSES}f1/note/", {"note": "the <b>bank</b>", "muted_until": f"{until:%Y-%m-%d}"}, follow=True
    )
    assert "the &lt;b&gt;bank" in answer.text
    assert "muted" in answer.text
    assert Cause.objects.is_muted("f1")
    kept = Cause.objects.get()
    assert localtime(kept.muted_until).date() == until.date() + timedelta(days=1), "midnight"
    assert kept.changed_by.username == "operator"
    assert f'value="{until:%Y-%m-%d}"' in answer.text, "as it was typed"
    assert LogEntry.objects.get().object_id == "f1"
    for url in (
        CAUSES,
        f"{CAUSES}f1/",
        "/admin/django_jobs/deadletter/",
        f"/admin/django_jobs/deadletter/{row.pk}/change/",
    ):
        assert "muted" in client.get(url).text, url
    client.post(f"{CAUSES}f1/note/", {"note": "it is open again"})
    assert not Cause.objects.is_muted("f1")
    assert "it is open again" in client.get(CAUSES).text


def test_muted_dead_letters_are_counted_and_raise_no_alarm() -> None:
    letter()
    letter()
    note_cause("f1", muted_until=database_now() + timedelta(days=1))
    client = operator()
    card = client.get("/admin/django_jobs/overview/").context["cards"][0]
    assert (card["value"], card["note"], card["alarm"]) == ("2", "2 muted", False)
    DeadLetterFactory(fingerprint="f2")
    card = client.get("/admin/django_jobs/overview/").context["cards"][0]
    assert (card["value"], card["note"], card["alarm"]) == ("3", "2 muted", True)
    assert DeadLetter.objects.open().count() == 3, "muted ones are not lost"


@pytest.mark.parametrize("until", ["2020-01-01", "2999-01-01", "soon", "0001-01-01", "9999-12-31"])
def test_a_day_that_cannot_be_is_refused_and_the_note_is_kept_in_the_form(until: str) -> None:
    letter()
    answer = operator().post(f"{CAUSES}f1/note/", {"note": "known", "muted_until": until})
    assert answer.status_code == 200
    assert "errorlist" in answer.text
    assert 'value="known"' in answer.text
    assert not Cause.objects.exists()


def test_who_may_acknowledge_dead_letters_may_note_and_mute_and_nobody_else() -> None:
    letter()
    blind = browse(staff("replay_deadletter"))
    assert "muted_until" not in page(client=blind).text
    assert blind.post(f"{CAUSES}f1/note/", {"note": "x"}).status_code == 403
    assert (
        browse(staff("acknowledge_deadletter", name="bob")).post(f"{CAUSES}f1/note/", {"note": "x"}).status_code == 302
    )
    assert Cause.objects.get().note == "x"
    answer = operator().post(f"{CAUSES}nobody/note/", {"note": "x"}, follow=True)
    assert "may have been pruned" in answer.text
