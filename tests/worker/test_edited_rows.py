"""Rows that a hand with SQL has left, as far as the database takes them: nobody ends or spins, and what is wrong is said."""

import json
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from django_jobs import NewJob, batch
from django_jobs.lifecycle.batches import with_nested
from django_jobs.lifecycle.operations import begin
from django_jobs.lifecycle.rescue import rescue_nameless
from django_jobs.lifecycle.submit import submit
from django_jobs.models import Batch, DeadLetter, Job, Operation, OperationKind, Schedule
from django_jobs.transfer.exporting import export_dicts
from tests.support.console import ROOT
from tests.support.edits import DEEP, edit
from tests.support.factories import JobFactory
from tests.support.staff import operator

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
REFUSED_BY_MYSQL = (3140, 3157)  # invalid JSON, and JSON that is too deep


def _write(job: Job, text: str, column: str = "payload") -> None:
    """Write JSON text into a column of a job's row; what MySQL takes for none cannot get there."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE django_jobs_job SET {column} = %s WHERE id = %s", (text, job.pk))
    except OperationalError as error:
        if error.args[0] in REFUSED_BY_MYSQL:
            pytest.skip(f"the server itself refuses it: {error}")
        raise


@pytest.mark.parametrize("text", ["null", "[]", "7", '"text"', DEEP], ids=lambda text: text[:6])
@pytest.mark.parametrize("way", ["handle", "handle_with_arguments"])
def test_a_payload_that_is_no_object_is_a_dead_letter_and_its_thread_goes_on(bench: Bench, way: str, text: str) -> None:
    """A list in the place of the payload once ended the process, and the one that was started in its place."""
    if way == "handle":
        bench.handle("t", lambda payload: payload["a"])
    else:
        bench.handle_with_arguments("t", lambda a: a)
    bad, good = bench.submit("t", {"a": 1}), bench.submit("t", {"a": 2})
    _write(bad, text)
    assert bench.run(bad, good) == ["dead", "completed"]
    letter = DeadLetter.objects.get()
    assert (letter.job_id, letter.reason) == (bad.pk, "bad payload")
    assert "the payload " in letter.error


@pytest.mark.databases("mariadb")
def test_text_that_is_no_json_is_a_dead_letter_and_can_be_shown(bench: Bench) -> None:
    bench.handle("t", lambda payload: None)
    bad, good = bench.submit("t"), bench.submit("t")
    _write(bad, "not JSON")
    assert bench.run(bad, good) == ["dead", "completed"]
    assert "(unreadable: " in Job.objects.get(pk=bad.pk).payload
    assert operator().get(f"{ROOT}job/{bad.pk}/change/").status_code == 200


@pytest.mark.slow
def test_a_list_spares_the_jobs_whose_payloads_can_be_read(bench: Bench) -> None:
    seen: list[Any] = []
    bench.handle("t", lambda payloads: seen.extend(payloads), bulk=10, bulk_wait=0.2)
    bad, *good = [bench.submit("t", {"number": number}) for number in range(4)]
    _write(bad, "[]")
    assert bench.run(bad, *good) == ["dead", "completed", "completed", "completed"]
    assert sorted(payload["number"] for payload in seen) == [1, 2, 3]
    assert DeadLetter.objects.get().reason == "bad payload"


@pytest.mark.parametrize("column", ["payload", "metadata"])
@pytest.mark.parametrize("text", [DEEP, '{"a": 1e400}'], ids=["deep", "infinite"])
def test_the_job_of_a_process_that_is_gone_is_rescued_whatever_is_in_its_row(column: str, text: str) -> None:
    """A number too large for a float once kept each job of each dead process from being rescued."""
    bad, good = (
        JobFactory(job_type="effects.record", status="running", worker_id="gone:1:a", fence=1) for _ in range(2)
    )
    _write(bad, text, column)
    assert rescue_nameless() == 2
    assert set(Job.objects.values_list("status", flat=True)) == {"scheduled"}
    assert good.pk != bad.pk


@pytest.mark.parametrize(
    "callbacks", [None, 7, [], {"on_finish": {}}, {"on_finish": 7}, {"on_finish": {"job_type": [], "payload": 5, "rank": "x"}}]
)  # fmt: skip
def test_a_batch_ends_whatever_its_callbacks_are(
    bench: Bench, callbacks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The last member of such a batch once ended its process, and each that ran it again."""
    bench.handle("t", lambda payload: None)
    with batch(on_finish=NewJob("effects.record")) as begun:
        member = submit("t", None, handlers=bench.handlers, options={}, member_of=begun.pk)
    text = json.dumps(callbacks).replace("'", "''")
    edit(Batch._meta.get_field("callbacks"), f"'{text}'")
    good = bench.submit("t")
    assert bench.run(member, good) == ["completed", "completed"]
    assert Batch.objects.get().status == "completed"
    assert "callback" in caplog.text or callbacks == []
    assert operator().get(f"{ROOT}batch/{begun.pk}/change/").status_code == 200


@pytest.mark.parametrize("text", ["null", "7", "[]", '"text"', DEEP], ids=lambda text: text[:6])
def test_the_page_of_a_job_shows_any_payload(text: str) -> None:
    job = JobFactory(payload={"a": 1})
    for column in ("payload", "metadata", "result"):
        _write(job, text, column)
    assert operator().get(f"{ROOT}job/{job.pk}/change/").status_code == 200


def test_the_page_of_an_operation_shows_any_options() -> None:
    operation = begin(OperationKind.ACKNOWLEDGE, filters={}, options={"note": "seen"}, address="")
    edit(Operation._meta.get_field("options"), "'\"text\"'")
    assert operator().get(f"{ROOT}operation/{operation.pk}/change/").status_code == 200


@pytest.mark.databases("postgresql", "sqlite")
def test_the_page_of_a_schedule_shows_a_jitter_without_end() -> None:
    schedule = Schedule.objects.create(name="a", job_type="t", kind="interval", interval_seconds=60)
    edit(Schedule._meta.get_field("jitter_seconds"), {"postgresql": "'Infinity'"}.get(connection.vendor, "9e999"))
    assert operator().get(f"{ROOT}schedule/{schedule.pk}/change/").status_code == 200


@pytest.mark.parametrize("parent", ["nobody", "inner"])
def test_an_export_ends_whatever_the_parent_of_a_batch_is(parent: str) -> None:
    """It once looked for a parent that is not there without end."""
    with batch("outer") as outer, outer.batch("inner") as inner:
        inner.submit("effects.record", {})
    by_hand = {"nobody": "nobody", "inner": inner.id}[parent]
    with transaction.atomic(), connection.constraint_checks_disabled():
        Batch.objects.filter(pk=outer.id).update(parent_id=by_hand)
        Batch.objects.filter(pk=inner.id).update(parent_id=outer.id)
        (exported,) = export_dicts(Job.objects.all())
        assert set(with_nested(outer.id)) == {outer.id, inner.id}
        transaction.set_rollback(True)
    assert exported["extra"]["batch"]["parent"]["parent"] is None
