"""The page of what operators did: who, what, when, on what; its filters, its pages, and its link from each row."""

import re

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.admin import acts
from django_jobs.models import Job
from tests.support.factories import DeadLetterFactory, JobFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

ROOT = "/admin/django_jobs/"
ACTS = f"{ROOT}overview/acts/"


def log(user: User, model: type = Job, key: str | None = "a", what: str = "Replayed 1 job.") -> LogEntry:
    kind = ContentType.objects.get_for_model(model)
    return LogEntry.objects.create(
        user=user, content_type=kind, object_id=key, object_repr=f"row {key}", action_flag=CHANGE, change_message=what
    )


def test_what_operators_did_is_listed_with_their_names_and_leads_to_the_rows() -> None:
    client = operator()
    dead_letter = DeadLetterFactory()
    data = {"action": "acknowledge_selected", "index": "0", "_selected_action": [dead_letter.pk], "confirmed": "1"}
    client.post(f"{ROOT}deadletter/", {**data, "note": "the bank was closed"})
    client.post(f"{ROOT}queue/switch/", {"queue": "mail", "switch": "pause"})
    page = browse(staff()).get(ACTS)
    assert [act["user"] for act in page.context["acts"]] == ["operator", "operator"]
    assert "the bank was closed" in page.context["acts"][1]["what"]
    for link in (f"{ROOT}deadletter/{dead_letter.pk}/change/", f"{ROOT}queue/mail/change/"):
        assert f'href="{link}"' in page.text
        assert client.get(link, follow=True).status_code == 200


def test_acts_are_filtered_by_user_kind_and_row_and_others_are_not_ours() -> None:
    ada, bob = staff("cancel_job"), User.objects.create_user("bob")
    log(ada)
    log(bob, key="b")
    log(bob, type(DeadLetterFactory()), key="7")
    log(bob, Group, key="1")
    client = browse(ada)

    def keys(**filters: str) -> list[str | None]:
        rows = [act["row"] for act in client.get(ACTS, filters).context["acts"]]
        return [re.sub(r"<[^>]+>", "", row).removeprefix("row ") for row in rows]

    assert keys() == ["7", "b", "a"]
    assert keys(user="bob") == ["7", "b"]
    assert keys(kind="job") == ["b", "a"]
    assert keys(kind="job", key="a") == ["a"]
    assert keys(user="nobody") == []
    assert keys(kind="group") == []
    assert keys(older_than="x", key="\x00") == ["7", "b", "a"]
    assert "would be here with their names" in client.get(ACTS, {"user": "nobody"}).text


def test_a_row_leads_to_what_was_done_to_it() -> None:
    client = operator()
    job = JobFactory(id="order/7 & more", status="dead")
    client.post(
        f"{ROOT}job/", {"action": "replay_selected", "index": "0", "_selected_action": [job.pk], "back": "page"}
    )
    text = client.get(f"{ROOT}job/order_2F7%20_26%20more/change/").text
    (link,) = re.findall(r'href="([^"]+/acts/[^"]+)"', text)
    assert [act["what"] for act in client.get(link.replace("&amp;", "&")).context["acts"]] == ["Replayed 1 job."]


def test_acts_go_on_page_by_page_and_stop_at_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "ON_A_PAGE", 3)
    monkeypatch.setattr(acts, "LOOKED_AT", 7)
    user = staff()
    for number in range(9):
        log(user, key=str(number))
    client, seen, url = browse(user), [], ACTS
    while url:
        with CaptureQueriesContext(connection) as queries:
            page = client.get(url)
        assert len(queries) <= 14
        seen += [re.sub(r"<[^>]+>", "", act["row"]) for act in page.context["acts"]]
        url = page.context["older_url"] and ACTS + page.context["older_url"]
    assert seen == [f"row {number}" for number in range(8, 1, -1)]


def test_acts_take_the_right_to_view_jobs() -> None:
    user = staff()
    user.user_permissions.clear()
    assert browse(user).get(ACTS).status_code == 403
