"""Searching jobs and dead letters by their content: what is found, what is never told, and how far a search looks."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.admin import base, paging, search
from django_jobs.admin.search import Search
from django_jobs.db.transactions import database_now
from django_jobs.models import Job
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

JOBS = "/admin/django_jobs/job/"
DEAD_LETTERS = "/admin/django_jobs/deadletter/"
VALUES: dict[str, Any] = {
    "job_type": "shop.settle",
    "queue": "mail",
    "payload": {
        "account": 7,
        "user": {"name": "Ada Lovelace"},
        "lines": [{"sku": "A-1"}, {"sku": "B-2"}],
        "paid": True,
    },
    "metadata": {"tenant": "größe"},
    "result": {"invoice": "R/2026"},
    "error": "TimeoutError: no answer from the bank",
}


def found(client: Any, q: str, url: str = JOBS, **more: str) -> list[str]:
    """Return the keys of the rows that a search shows."""
    answer = client.get(url, {"q": q, **more})
    assert answer.status_code == 200
    return [str(row.pk) for row in answer.context["cl"].result_list]


@pytest.mark.parametrize(
    "q",
    [
        "account:7", "payload.account:7", "user.name:'ada lovelace'", "lines.sku:B-2", "paid:true", "tenant:größe",
        "metadata.tenant:GRÖSSE".replace("SS", "ß"), "result.invoice:R/2026", "error:timeout", "lovelace", "R/2026",
        "BANK", "größe", "type:shop.settle", "queue:mail", "account:7 error:bank queue:mail", '"no answer"',
    ],
)  # fmt: skip
def test_a_job_is_found_by_what_is_in_it(q: str) -> None:
    JobFactory(payload={"account": 77, "user": {"name": "Ada"}}, metadata={"tenant": "b"}, error="KeyError: 'x'")
    wanted = JobFactory(status="dead", **VALUES)
    assert found(operator(), q) == [wanted.pk]


@pytest.mark.parametrize(
    "q",
    [
        "account:8",
        "name:ada",
        "metadata.account:7",
        "account:7 queue:other",
        "sku:A-1",
        "tenant:",
        '"',
        "a:'",
        "%",
        "_",
    ],
)
def test_a_job_is_not_found_by_what_is_not_there(q: str) -> None:
    JobFactory(status="dead", **VALUES)
    assert found(operator(), q) == []


def test_dates_narrow_a_search() -> None:
    now = database_now()
    old, new = JobFactory(created_at=now - timedelta(days=9)), JobFactory(created_at=now)
    day = f"{now - timedelta(days=3):%Y-%m-%d}"
    assert found(operator(), f"after:{day}") == [new.pk]
    client = browse(staff())
    assert found(client, f"before:{day}T12:00") == [old.pk]
    answer = client.get(JOBS, {"q": "after:yesterday"})
    assert "This was not searched" in answer.text
    assert "after:yesterday" in answer.text


def test_what_a_mask_hides_is_not_found_and_payloads_take_their_right() -> None:
    secret = {"password": "geheim", "deep": [{"api_key": "geheim"}], "account": 7}
    JobFactory(payload=secret, metadata=secret, result=secret, status="completed")
    client = operator()
    for q in ("geheim", "password:geheim", "metadata.password:geheim", "deep.api_key:geheim", "result.password:geheim"):
        assert found(client, q) == [], q
    assert len(found(client, "account:7")) == 1
    blind = browse(staff())
    assert "This was not searched" in blind.get(JOBS, {"q": "account:7"}).text
    assert found(blind, "7") == []


def test_dead_letters_are_found_by_the_values_of_their_jobs() -> None:
    wanted = DeadLetterFactory(job__payload={"account": 7}, job__metadata={"tenant": "a"}, error="KeyError: 'zip'")
    DeadLetterFactory(job__payload={"account": 8})
    client = operator()
    for q in ("account:7", "metadata.tenant:a", "error:zip", "zip", f"id:{wanted.job_id}"):
        assert found(client, q, DEAD_LETTERS) == [str(wanted.pk)], q
    assert found(client, "account:7", DEAD_LETTERS, state="replayed") == []


def test_a_search_by_content_says_how_far_it_looked_and_goes_on_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHORT_SEARCH", "LONGEST_SEARCH"):
        monkeypatch.setattr(base, name, 3600)
    monkeypatch.setattr(search, "STEP", 5)  # then 10, and the 5 that are left of the window
    monkeypatch.setattr(paging, "WINDOW", 20)
    client = operator()
    old = JobFactory(payload={"account": 7})
    JobFactory.create_batch(40)
    answer = client.get(JOBS, {"q": "account:7"})
    assert [*answer.context["cl"].result_list] == []
    assert "Only the newest 20 were searched." in answer.text
    answer = client.get(JOBS + answer.context["cl"].window_url)
    assert [row.pk for row in answer.context["cl"].result_list] == [old.pk]
    assert "were searched" not in answer.text


def test_a_search_stops_at_its_limit_of_hits_and_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STEP", 10)
    JobFactory.create_batch(40, payload={"account": 7})
    wanted = Search(text="account:7", may_see=True)
    assert (wanted.look(Job.objects.all(), most=None, seconds=3600).is_complete) is True
    assert wanted.look(Job.objects.all(), most=None, seconds=0).read == 10
    monkeypatch.setattr(search, "MOST_FOUND", 15)
    looked = wanted.look(Job.objects.all(), most=None, seconds=3600)
    assert (len(looked.keys), looked.read, looked.is_complete) == (15, 30, False)
    newest = list(Job.objects.order_by("-pk").values_list("pk", flat=True)[:15])
    assert looked.keys == newest


def test_all_that_a_search_finds_can_be_operated_on() -> None:
    client = operator()
    JobFactory.create_batch(3, payload={"account": 7}, status="dead")
    JobFactory(payload={"account": 8}, status="dead")
    data = {"action": "replay_selected", "select_across": "1", "index": "0", "_selected_action": [""], "confirmed": "1"}
    client.post(f"{JOBS}?q=account:7", data)
    assert Job.objects.filter(status="pending").count() == 3


def test_every_fact_of_a_job_leads_to_the_jobs_that_share_it() -> None:
    job = JobFactory(
        status="dead", job_type="shop.settle", queue="mail", worker_id="host:1:a", payload={"account": "a b", "token": "x"},
        metadata={"tenant": "a"},
    )  # fmt: skip
    JobFactory()
    client = operator()
    text = client.get(f"{JOBS}{job.pk}/change/").text
    links = {link.replace("&amp;", "&") for link in re.findall(rf'href="({JOBS}\?[^"]+)"', text)}
    assert len(links) == 3, "queue, account, tenant; nothing that is masked"
    for link in links:
        assert [row.pk for row in client.get(link).context["cl"].result_list] == [job.pk], link


def test_a_search_reads_by_the_key_and_asks_little() -> None:
    JobFactory.create_batch(30)
    client = operator()
    with CaptureQueriesContext(connection) as queries:
        found(client, "account:7")
    assert len(queries) <= 20
    looks = [query["sql"] for query in queries if "low_payload" in query["sql"] or "LIKE" in query["sql"]]
    assert len(looks) == 1
    assert "OFFSET" not in looks[0]
