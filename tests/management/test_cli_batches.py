"""`manage.py jobs`: the verbs of batches."""

from typing import Any

import pytest
from django.test import override_settings

import django_jobs
from django_jobs import NewJob
from django_jobs.encryption import as_stored
from django_jobs.models import Batch, Job
from django_jobs.testing import drain
from tests.support.commands import jobs, json_lines, refused

pytestmark = pytest.mark.django_db


@pytest.fixture
def batch() -> Batch:
    """Give a batch of a member that will complete and one that will be dead."""
    callback = NewJob("effects.record", job_id=None)
    with django_jobs.batch("import 7", metadata={"file": "a.csv"}, on_finish=callback) as batch:
        batch.submit_many([NewJob("effects.record"), NewJob("effects.fail", max_retries=0)])
    return batch


def test_batches_are_listed_with_how_many_members_have_ended(batch: Batch) -> None:
    with django_jobs.batch("empty"):
        pass
    newest, first = json_lines("batches")
    assert (newest["description"], newest["status"], sum(newest["progress"].values())) == ("empty", "completed", 0)
    assert (first["id"], first["status"], first["progress"]["pending"]) == (batch.pk, "running", 2)
    assert [one["id"] for one in json_lines("batches", "--status", "running")] == [batch.pk]
    drain(reraise=False)
    assert "2      2 " in jobs("batches"), "ended, and members"
    assert len(json_lines("batches", "--limit", "1")) == 1


def test_show_tells_all_of_one_batch(batch: Batch) -> None:
    drain(reraise=False)
    text = jobs("batch", "show", batch.pk)
    assert "status: failed" in text
    assert "progress: completed: 1, dead: 1" in text
    assert "callbacks: on_finish: effects.record" in text
    (values,) = json_lines("batch", "show", batch.pk)
    assert (values["metadata"], values["nested"], values["parent"]) == ({"file": "a.csv"}, [], None)
    assert refused("batch", "show", "nobody") == (1, ["there is no batch 'nobody'"])


def test_jobs_are_listed_by_their_batch(batch: Batch) -> None:
    django_jobs.submit("effects.record")
    found = json_lines("list", "--batch", batch.pk)
    assert [(job["job_type"], job["batch"]) for job in found] == [
        ("effects.fail", batch.pk),
        ("effects.record", batch.pk),
    ]


def test_wait_ends_with_one_for_a_batch_that_ended_badly(batch: Batch) -> None:
    assert refused("batch", "wait", batch.pk, "--timeout", "0.01")[0] == 1
    drain(reraise=False)
    assert refused("batch", "wait", batch.pk) == (1, [f"batch {batch.pk!r} ended failed"])
    with django_jobs.batch() as empty:
        pass
    assert jobs("batch", "wait", empty.pk) == "completed\n"


def test_cancel_and_replay_say_how_many_members_they_moved(batch: Batch) -> None:
    assert jobs("batch", "cancel", batch.pk) == f"{batch.pk}: 2 members cancelled or asked to stop\n"
    assert refused("batch", "cancel", batch.pk)[0] == 1
    assert json_lines("batch", "replay", batch.pk) == [{"id": batch.pk, "members": 2}]
    assert Job.objects.filter(status="pending", job_type="effects.fail").count() == 1


BY_HAND = ["effects.record", {"on_finish": {"job_id": None}}, {"on_finish": "effects.record"}, ["on_finish"]]


@pytest.mark.parametrize("callbacks", BY_HAND, ids=str)
def test_callbacks_that_a_hand_has_written_are_shown_as_they_are(batch: Batch, callbacks: Any) -> None:
    Batch.objects.filter(pk=batch.pk).update(callbacks=callbacks)
    assert "status: running" in jobs("batch", "show", batch.pk)
    (values,) = json_lines("batch", "show", batch.pk)
    assert values["id"] == batch.pk


@pytest.mark.parametrize("callbacks", BY_HAND, ids=str)
def test_callbacks_that_a_hand_has_written_are_left_and_those_behind_them_are_encrypted(
    batch: Batch, callbacks: Any
) -> None:
    with django_jobs.batch("behind", on_finish=NewJob("effects.record", {"word": "secret"})) as behind:
        behind.submit("effects.record")
    assert batch.pk < behind.pk
    Batch.objects.filter(pk=batch.pk).update(callbacks=callbacks)
    with override_settings(DJANGO_JOBS={"ENCRYPT": True}):
        (told,) = json_lines("encrypt")
    assert told["unreadable"] == 0
    with as_stored():
        stored = dict(Batch.objects.values_list("pk", "callbacks"))
    assert stored[batch.pk] == callbacks
    assert set(stored[behind.pk]["on_finish"]["payload"]) == {"$encrypted"}
