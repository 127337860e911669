"""The lists of jobs and dead letters: what they show, filter and find, page by page."""

import re
from datetime import timedelta

import pytest
from django.urls import reverse

from django_jobs.admin import paging
from django_jobs.db.transactions import database_now
from django_jobs.models import Job
from tests.support.console import LISTS
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import operator

pytestmark = pytest.mark.django_db

JOBS = "/admin/django_jobs/job/"
DEAD_LETTERS = "/admin/django_jobs/deadletter/"


def shown(client, url: str, **params: str) -> list[str]:
    """Return the keys of the rows of a list."""
    answer = client.get(url, params)
    assert answer.status_code == 200, answer
    return [str(row.pk) for row in answer.context["cl"].result_list]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("status", "dead"),
        ("queue", "mail"),
        ("job_type", "shop.mail"),
        ("worker_id", "host:1:a"),
    ],
)
def test_jobs_are_filtered_by_a_property(parameter: str, value: str) -> None:
    JobFactory()
    wanted = JobFactory(**{parameter: value})
    assert shown(operator(), JOBS, **{parameter: value}) == [wanted.pk]


def test_a_job_is_found_by_id_unique_key_and_part_of_its_type() -> None:
    client = operator()
    JobFactory()
    wanted = JobFactory(id="order/7 & more", job_type="shop.settle", unique_key="welcome:7")
    for term in ("order/7 & more", "order/7", "welcome:7", "SETTLE"):
        assert shown(client, JOBS, q=term) == [wanted.pk], term


@pytest.mark.slow
def test_pages_go_by_key_forth_and_back_and_miss_nothing() -> None:
    client = operator()
    JobFactory.create_batch(120)
    everything = list(Job.objects.order_by("-pk").values_list("pk", flat=True))
    answer, seen = client.get(JOBS), []
    while True:
        rows = answer.context["cl"]
        seen += [row.pk for row in rows.result_list]
        if rows.older_url is None:
            break
        answer = client.get(JOBS + rows.older_url)
    assert seen == everything
    back = client.get(JOBS + rows.newer_url).context["cl"]
    assert [row.pk for row in back.result_list] == everything[50:100]


@pytest.mark.parametrize("name", LISTS)
def test_an_empty_list_says_what_would_be_here(name: str) -> None:
    client = operator()
    text = client.get(f"/admin/django_jobs/{name}/").text
    if name in ("queue", "job/_types") and "jobs-empty" not in text:
        assert '<tr>\n<th scope="row">' in text or '<tr><th scope="row">' in text, "what the code names is always there"
        return
    assert re.search(r'jobs-empty">[^<]{20,}', text), name
    if f"/admin/django_jobs/{name}/?" in text or 'name="q"' in text:
        assert "Nothing here fits" in client.get(f"/admin/django_jobs/{name}/", {"q": "mail"}).text


def test_the_list_of_pending_jobs_has_those_that_wait_for_a_worker_a_dependency_or_a_limit() -> None:
    ready, turning, blocked = JobFactory(), JobFactory(fair_key="a"), JobFactory(pending_dependencies=1)
    held = JobFactory(pending_limits=1)
    for status in ("running", "scheduled", "completed"):
        JobFactory(status=status)
    assert shown(operator(), JOBS, status="pending") == [job.pk for job in (held, blocked, turning, ready)]


def test_a_count_stops_at_its_limit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "MOST_COUNTED", 60)
    JobFactory.create_batch(70)
    assert "60+ jobs" in operator().get(JOBS).text


def test_a_search_is_for_the_newest_jobs_until_all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "WINDOW", 10)
    client = operator()
    old = JobFactory(job_type="shop.old")
    JobFactory.create_batch(10)
    assert shown(client, JOBS, q="old") == []
    answer = client.get(JOBS, {"q": "old"})
    assert shown(client, JOBS + answer.context["cl"].window_url) == [old.pk]


def test_a_filter_for_live_jobs_sees_the_oldest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "WINDOW", 10)
    old = JobFactory(status="scheduled")
    JobFactory.create_batch(12)
    assert shown(operator(), JOBS, status="scheduled") == [old.pk]


def test_dead_letters_are_open_ones_unless_others_are_asked_for() -> None:
    client = operator()
    now = JobFactory().created_at
    open_one, closed, replayed = DeadLetterFactory.create_batch(3)
    type(closed).objects.filter(pk=closed.pk).update(acknowledged_at=now)
    type(closed).objects.filter(pk=replayed.pk).update(replayed_at=now)
    assert shown(client, DEAD_LETTERS) == [str(open_one.pk)]
    assert shown(client, DEAD_LETTERS, state="acknowledged") == [str(closed.pk)]
    assert shown(client, DEAD_LETTERS, state="replayed") == [str(replayed.pk)]
    assert len(shown(client, DEAD_LETTERS, state="all")) == 3


def test_a_dead_letter_is_found_by_job_fingerprint_and_words_of_its_error() -> None:
    client = operator()
    DeadLetterFactory(error="KeyError: 'x'", fingerprint="f0")
    wanted = DeadLetterFactory(error="TimeoutError: no answer from the bank", fingerprint="f1")
    for term in (wanted.job_id, "f1", "answer from the BANK"):
        assert shown(client, DEAD_LETTERS, q=term) == [str(wanted.pk)], term


@pytest.mark.parametrize("url", [f"{JOBS}nobody/change/", f"{DEAD_LETTERS}999/change/", f"{DEAD_LETTERS}x/change/"])
def test_a_row_that_is_gone_leads_back_to_the_list_with_a_word(url: str) -> None:
    answer = operator().get(url, follow=True)
    assert answer.status_code == 200
    assert "may have been pruned" in answer.text


@pytest.mark.parametrize("query", ["?older_than=x", "?nonsense=1", "?status=%00", "?q=%00", "?older_than=%00"])
def test_a_mistyped_address_is_no_server_error(query: str) -> None:
    client = operator()
    JobFactory()
    DeadLetterFactory()
    for url in (JOBS, DEAD_LETTERS):
        assert client.get(url + query, follow=True).status_code == 200


def test_nothing_can_be_added_edited_or_deleted_by_a_form() -> None:
    client = operator()
    dead_letter = DeadLetterFactory()
    for model, pk in (("job", dead_letter.job_id), ("deadletter", dead_letter.pk)):
        assert client.get(reverse(f"admin:django_jobs_{model}_add")).status_code == 403
        assert client.post(reverse(f"admin:django_jobs_{model}_delete", args=(pk,)), {"post": "yes"}).status_code == 403
        assert client.post(reverse(f"admin:django_jobs_{model}_change", args=(pk,)), {}).status_code == 405
    assert type(dead_letter).objects.filter(pk=dead_letter.pk).exists()


@pytest.mark.slow
def test_jobs_are_listed_oldest_first_page_by_page_to_the_end() -> None:
    client = operator()
    JobFactory.create_batch(120)
    everything = list(Job.objects.order_by("pk").values_list("pk", flat=True))
    answer, seen = client.get(JOBS, {"sort": "oldest"}), []
    while True:
        rows = answer.context["cl"]
        seen += [row.pk for row in rows.result_list]
        if rows.newer_url is None:
            break
        answer = client.get(JOBS + rows.newer_url)
    assert seen == everything
    back = client.get(JOBS + rows.older_url).context["cl"]
    assert [row.pk for row in back.result_list] == everything[50:100]


def test_the_oldest_job_of_all_is_first_however_many_are_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "WINDOW", 3)
    first = JobFactory(status="completed")
    JobFactory.create_batch(5)
    assert shown(operator(), JOBS, sort="oldest")[0] == first.pk


@pytest.mark.parametrize("sort", ["run", "wait", "retries"])
def test_an_order_that_no_index_serves_is_among_the_newest_and_says_so(
    sort: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SORTED", 4)
    now = database_now()
    jobs = [
        JobFactory(
            status="completed", created_at=now - timedelta(seconds=9 * span), started_at=now - timedelta(seconds=3 * span),
            finished_at=now, retry_count=span,
        )
        for span in (90, 2, 5, 1)
    ]  # fmt: skip
    waiting = JobFactory(available_at=now + timedelta(hours=1))
    client = operator()
    answer = client.get(JOBS, {"sort": sort})
    assert [row.pk for row in answer.context["cl"].result_list] == [jobs[2].pk, jobs[1].pk, jobs[3].pk, waiting.pk]
    assert "first of the newest 4 that match" in answer.text
    monkeypatch.setattr(paging, "SORTED", 10)
    assert shown(client, JOBS, sort=sort)[0] == jobs[0].pk


@pytest.mark.parametrize(("term", "column"), [("limit:k7", "limit_key"), ("key:k7", "unique_key")])
def test_a_jobs_keys_are_links_to_the_jobs_with_the_same_one(term: str, column: str) -> None:
    JobFactory()
    wanted = JobFactory(**{column: "k7"}, status="completed")
    client = operator()
    assert f"?q={term.replace(':', '%3A')}" in client.get(f"{JOBS}{wanted.pk}/change/").text
    assert shown(client, JOBS, q=term) == [wanted.pk]
