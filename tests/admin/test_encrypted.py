"""The console where payloads are stored encrypted: it shows them to those who may see payloads, and never finds them."""

import pytest
from django.test import override_settings

from django_jobs.handlers import make_handler, registry
from django_jobs.testing import make_job
from tests.support.console import ROOT
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db
ENCRYPTED = override_settings(DJANGO_JOBS={"ENCRYPT": True})
JOBS = f"{ROOT}job/"


@ENCRYPTED
def test_who_may_see_payloads_sees_them_and_nobody_else_and_masks_hold() -> None:
    job = make_job(
        "t.echo", {"word": "rosebud", "password": "geheim"}, status="completed", result={"word": "rosebud too"}
    )
    seeing = browse(staff("view_payload", name="seeing")).get(f"{JOBS}{job.pk}/change/").text
    assert "rosebud" in seeing
    assert "rosebud too" in seeing
    assert "geheim" not in seeing
    assert "$encrypted" not in seeing
    assert "rosebud" not in browse(staff(name="blind")).get(f"{JOBS}{job.pk}/change/").text


@ENCRYPTED
def test_a_job_that_no_key_reads_has_its_page_and_cannot_be_edited() -> None:
    job = make_job("t.echo", {"word": "rosebud"}, status="dead")
    dead_letter = job.dead_letters.get()
    client = operator()
    with override_settings(SECRET_KEY="another-key"):
        client.logout()
        client.force_login(staff("view_payload", "replay_deadletter", name="other"))
        for url in (f"{JOBS}{job.pk}/change/", f"{ROOT}deadletter/{dead_letter.pk}/change/"):
            page = client.get(url).text
            assert "encrypted; no key of this site reads it" in page
            assert 'name="payload"' not in page
        assert client.get(JOBS).status_code == 200


def test_a_search_says_that_it_does_not_look_into_what_is_encrypted() -> None:
    note, client = "stored encrypted were not searched", operator()
    assert note not in client.get(JOBS, {"q": "word:rosebud"}).text
    with ENCRYPTED:
        make_job("t.echo", {"word": "rosebud"})
        for q in ("word:rosebud", "rosebud", "result.word:rosebud"):
            answer = client.get(JOBS, {"q": q})
            assert note in answer.text
            assert not answer.context["cl"].result_list
        for q in ("type:t.echo", "metadata.tenant:a", "error:rosebud"):
            assert note not in client.get(JOBS, {"q": q}).text
        assert note not in browse(staff(name="blind")).get(JOBS, {"q": "rosebud"}).text
    registry.register(make_handler(lambda payload: None, "t.hidden", {"encrypt": True}))
    try:
        assert note in client.get(JOBS, {"q": "rosebud"}).text
    finally:
        registry.forget("t.hidden")


@ENCRYPTED
def test_no_link_leads_to_a_search_that_finds_nothing() -> None:
    job = make_job("t.echo", {"word": "rosebud"}, metadata={"tenant": "a"})
    page = operator().get(f"{JOBS}{job.pk}/change/").text
    assert "word%3Arosebud" not in page
    assert "metadata.tenant%3Aa" in page
