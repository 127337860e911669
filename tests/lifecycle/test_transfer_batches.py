"""Batches move with their members: made once by id, open or finished as they were, and finished here when they can be."""

import json
from typing import Any

import pytest

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Batch, BatchMember, Job
from django_jobs.queue import JobQueue
from django_jobs.testing import drain
from tests.support.invariants import check_invariants
from tests.support.transfers import delete_all, exported, imported, refusal

pytestmark = pytest.mark.django_db
CALLBACK = NewJob("effects.record", {"result": 7}, queue="later", delay=5, metadata={"tenant": "a"})


def make_batches() -> tuple[Batch, Batch]:
    """Return a batch that is half done, and a finished one that is nested in it."""
    with django_jobs.batch("outer", metadata={"file": "ä"}, on_success=CALLBACK) as outer:
        outer.submit_many([NewJob("effects.record", job_id="z", delay=60), NewJob("effects.record", job_id="a")])
        with outer.batch("inner", on_finish=CALLBACK) as inner:
            inner.submit("effects.fail", max_retries=0)
    drain(reraise=False)
    return outer, inner


def columns(model: Any) -> list[dict[str, Any]]:
    return list(model.objects.order_by("pk").values())


def test_an_import_restores_batches_as_they_were() -> None:
    outer, _ = make_batches()
    before, data = (columns(Batch), columns(BatchMember), outer.progress), exported()
    delete_all()
    assert imported(data).written == 4
    assert (columns(Batch), columns(BatchMember), outer.progress) == before
    assert list(outer.jobs.values_list("pk", flat=True)) == ["z", "a"]
    assert Job.objects.filter(queue="later").count() == 1, "the callback that was there, and no other"
    assert exported() == data
    assert imported(data).known == 4
    check_invariants()


def test_an_imported_batch_goes_on_and_calls_back() -> None:
    outer, _ = make_batches()
    data = exported()
    delete_all()
    imported(data)
    assert outer.submit("effects.record").batch_id == outer.pk
    Job.objects.get(pk="z").run_now()
    Job.objects.get(job_type="effects.fail").replay()
    drain(reraise=False)
    outer.refresh_from_db()
    assert outer.status == "failed"
    assert Job.objects.filter(queue="later").count() == 2
    check_invariants()


def test_a_batch_whose_open_members_stayed_behind_finishes_with_the_import() -> None:
    with django_jobs.batch(on_finish=CALLBACK) as batch:
        batch.submit("effects.record", queue="mail")
        batch.submit("effects.record", delay=60)
    drain(queue="mail")
    dicts = json.loads(json.dumps(JobQueue("mail").export_jobs()))
    delete_all()
    assert JobQueue("mail").import_jobs(dicts) == 1
    assert Batch.objects.get(pk=batch.pk).status == "completed"
    callback = Job.objects.get(queue="later")
    assert (callback.payload, callback.metadata, callback.batch_id) == ({"result": 7}, {"tenant": "a"}, batch.pk)
    check_invariants()


def test_wrong_batches_are_refused_by_path() -> None:
    make_batches()
    head, *lines = exported().splitlines()
    delete_all()
    record = next(line for line in map(json.loads, lines) if line["extra"]["batch"]["parent"])

    def problems(**changes: Any) -> list[str]:
        batch = {**record["extra"]["batch"], **changes}
        changed = {**record, "extra": {**record["extra"], "batch": batch}}
        one = json.dumps({**json.loads(head), "jobs": 1}).encode()
        return refusal(lambda: imported(b"\n".join([one, json.dumps(changed).encode(), b""])))

    assert problems(description=7)[0].startswith("jobs.jsonl:2: extra.batch.description=7: give a string")
    assert "extra.batch.callbacks: give an object with any of" in problems(callbacks={"on_start": {}})[0]
    assert "extra.batch.callbacks.on_finish: give an object with job_type" in problems(callbacks={"on_finish": {}})[0]
    callback = {"job_type": "t", "payload": {}, "rank": 0, "options": {"scheduled_at": "soon"}}
    assert "extra.batch.callbacks.on_finish: " in problems(callbacks={"on_finish": callback})[0]
    assert "a failed batch cannot have None" in problems(finished_at=None)[0]
    assert "extra.batch.parent: give an object, not 7" in problems(parent=7)[0]
