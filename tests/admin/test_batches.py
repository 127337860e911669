"""The pages of batches: progress, members by status, and what operators may do with one."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Batch, Job
from django_jobs.testing import drain
from tests.support.console import ROOT
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db
BATCHES = f"{ROOT}batch/"


@pytest.fixture
def batch() -> Batch:
    """Give a batch of which one of four members has completed and one is dead."""
    finish = NewJob("effects.record", queue="later")
    with django_jobs.batch("import 7", metadata={"file": "a.csv", "password": "x"}, on_finish=finish) as batch:
        batch.submit_many([NewJob("effects.record"), NewJob("effects.fail", max_retries=0)])
        batch.submit("effects.record", delay=60)
        with batch.batch("nested"):
            pass
    drain(reraise=False)
    return batch


def page(batch: Batch, client: Any) -> str:
    return str(client.get(f"{BATCHES}{batch.pk}/change/").text)


def do(client: Any, action: str, batch: Batch) -> None:
    data = {"action": action, "index": "0", "_selected_action": [batch.pk], "confirmed": "1"}
    assert client.post(BATCHES, data, follow=True).status_code == 200


def test_the_page_shows_progress_members_callbacks_and_nested_batches(batch: Batch) -> None:
    client = operator()
    text = page(batch, client)
    assert "3 of 4 have ended" in text
    assert f'href="{ROOT}job/?batch={batch.pk}&amp;status=dead">1</a>' in text
    assert "on_finish" in text
    assert "nested" in text
    assert "a.csv" in text
    assert ">x<" not in text
    assert "a.csv" not in page(batch, browse(staff())), "metadata takes view_payload"
    nested = Batch.objects.get(description="nested")
    assert "No members." in page(nested, client)
    assert "import 7" in page(nested, client), "what it is part of"


def test_the_list_shows_the_newest_first_and_can_be_searched(batch: Batch) -> None:
    client = operator()
    text = client.get(BATCHES).text
    assert text.index("nested") < text.index("import 7")
    found = client.get(f"{BATCHES}?q=import").text
    assert "import 7" in found
    assert ">nested<" not in found


def test_the_members_are_listed_by_their_batch_and_name_it(batch: Batch) -> None:
    other = django_jobs.submit("effects.record")
    client = operator()
    text = client.get(f"{ROOT}job/?batch={batch.pk}").text
    assert "effects.fail" in text
    assert other.pk not in text
    member = Job.objects.get(job_type="effects.fail")
    assert f'href="{BATCHES}{batch.pk}/change/"' in client.get(f"{ROOT}job/{member.pk}/change/").text


def test_cancel_and_replay_take_the_rights_of_jobs_and_are_logged(batch: Batch) -> None:
    looker = browse(staff(name="looker"))
    do(looker, "cancel_selected", batch)
    assert "Cancel…" not in page(batch, looker)
    assert Batch.objects.get(pk=batch.pk).cancel_requested_at is None
    user = staff("cancel_job", "replay_deadletter", name="operator")
    client = browse(user)
    assert "Replay what failed…" in page(batch, client)
    do(client, "cancel_selected", batch)
    assert Batch.objects.get(pk=batch.pk).status == "failed"
    assert Job.objects.filter(queue="later").count() == 1
    do(client, "replay_selected", batch)
    assert Batch.objects.get(pk=batch.pk).status == "running"
    assert LogEntry.objects.filter(user=user, object_id=batch.pk).count() == 2
