"""Operations: many rows, one move, a step at a time; paused, stopped, broken off and gone on with."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError

from django_jobs.db.transactions import database_now
from django_jobs.due import has_due_work, look_ahead
from django_jobs.exceptions import InvalidJob, JobNotFound, OperationNotFound
from django_jobs.lifecycle import operations
from django_jobs.lifecycle.causes import note_cause
from django_jobs.lifecycle.delete import delete_finished, discard
from django_jobs.lifecycle.operations import begin, move_operations
from django_jobs.models import Batch, BatchMember, Cause, DeadLetter, Job, Operation, OperationKind
from tests.support.factories import (
    AttemptFactory,
    DeadLetterFactory,
    JobDependencyFactory,
    JobFactory,
    WorkerProcessFactory,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHUNK", 3)


def state(operation: Operation) -> tuple[str, int, int]:
    """Return the state, and how many rows were moved and left."""
    operation.refresh_from_db()
    return operation.state, operation.done, operation.skipped


def finish(operation: Operation) -> tuple[str, int, int]:
    for _ in range(50):
        if move_operations() is None:
            break
    return state(operation)


def statuses() -> dict[str, int]:
    return {status: number for status, number in Job.objects.counts_by_status().items() if number}


def test_an_operation_goes_forward_a_step_at_a_time_and_ends_finished() -> None:
    JobFactory.create_batch(7, status="dead", queue="mail")
    JobFactory(status="dead")
    operation = begin(OperationKind.REPLAY, filters={"status": "dead", "queue": "mail"})
    assert (operation.total, operation.progress) == (7, 0.0)
    assert has_due_work()
    assert move_operations() == 0.0
    assert state(operation) == ("running", 3, 0)
    assert round(operation.progress, 2) == 0.43
    assert move_operations() == 0.0
    assert move_operations() is None
    assert state(operation) == ("finished", 7, 0)
    assert statuses() == {"pending": 7, "dead": 1}
    assert operation.started_at <= operation.ended_at


def test_a_long_operation_lets_a_short_one_through() -> None:
    JobFactory.create_batch(7, status="dead")
    waiting = JobFactory(status="pending")
    long = begin(OperationKind.REPLAY, filters={"status": "dead"})
    short = begin(OperationKind.CANCEL, ids=[waiting.pk])
    move_operations()
    move_operations()
    assert (state(long), state(short)) == (("running", 3, 0), ("finished", 1, 0))


def test_rows_that_come_later_are_not_moved_and_those_in_other_states_are_counted() -> None:
    running = JobFactory.create_batch(2, status="running")
    JobFactory.create_batch(5)
    finished = JobFactory(status="completed")
    operation = begin(OperationKind.CANCEL, ids=sorted([*Job.objects.values_list("pk", flat=True), "~nobody"]))
    JobFactory.create_batch(4)
    assert finish(operation) == ("finished", 7, 2)
    assert statuses() == {"cancelled": 5, "running": 2, "completed": 1, "pending": 4}
    assert Job.objects.filter(pk__in=[job.pk for job in running], cancel_requested_at=None).count() == 0
    finished.refresh_from_db()
    later = begin(OperationKind.CANCEL, filters={"status": "pending"})
    JobFactory(created_at=database_now() + timedelta(minutes=1))
    assert finish(later) == ("finished", 4, 0)


def test_each_kind_makes_its_move() -> None:
    made: dict[str, Any] = {
        OperationKind.RUN_NOW: (lambda: JobFactory(status="scheduled"), {}, lambda job: job.status == "pending"),
        OperationKind.CHANGE: (JobFactory, {"priority": 9}, lambda job: job.priority == 9),
        OperationKind.CANCEL: (JobFactory, {}, lambda job: job.status == "cancelled"),
        OperationKind.REPLAY: (lambda: JobFactory(status="failed"), {"from_start": True}, lambda job: job.status == "pending"),
    }  # fmt: skip
    for kind, (make, options, is_done) in made.items():
        job = make()
        assert finish(begin(kind, ids=[job.pk], options=options)) == ("finished", 1, 0), kind
        job.refresh_from_db()
        assert is_done(job), kind
    for kind, make in (
        (OperationKind.DISCARD, JobFactory),
        (OperationKind.DELETE, lambda: JobFactory(status="completed")),
    ):
        job = make()
        assert finish(begin(kind, ids=[job.pk])) == ("finished", 1, 0), kind
        assert not Job.objects.filter(pk=job.pk).exists()
    letters = DeadLetterFactory.create_batch(4, fingerprint="f")
    operation = begin(OperationKind.REPLAY_DEAD_LETTERS, ids=[letters[0].pk])
    assert finish(operation) == ("finished", 1, 0)
    operation = begin(OperationKind.ACKNOWLEDGE, filters={"fingerprint": "f"}, options={"note": "known"})
    assert finish(operation) == ("finished", 3, 1)
    assert DeadLetter.objects.acknowledged().filter(note="known").count() == 3


def test_a_rate_sets_the_size_of_a_step_and_when_the_next_one_is_due() -> None:
    JobFactory.create_batch(6, status="dead")
    operation = begin(OperationKind.REPLAY, filters={"status": "dead"}, per_second=2)
    rest = move_operations()
    assert state(operation) == ("running", 2, 0)
    assert rest is not None
    assert rest <= 1.0, "two rows, two a second"
    operation.stop()
    slow = begin(OperationKind.REPLAY, filters={"status": "dead"}, per_second=0.01)
    for _ in range(2):
        rest = move_operations()
        assert rest is not None
        assert 50 < rest <= 100
        assert state(slow)[1] == 1, "the next one is not due"
    ahead = look_ahead(WorkerProcessFactory().pk).operation
    assert ahead is not None
    assert 50 < ahead <= 100


def test_an_operation_is_paused_resumed_and_stopped() -> None:
    JobFactory.create_batch(9, status="dead")
    operation = begin(OperationKind.REPLAY, filters={"status": "dead"})
    move_operations()
    operation.pause()
    assert move_operations() is None
    assert state(operation) == ("paused", 3, 0)
    assert look_ahead(WorkerProcessFactory().pk).operation is None
    with pytest.raises(InvalidJob, match="paused"):
        operation.pause()
    operation.resume()
    move_operations()
    operation.stop()
    assert state(operation) == ("stopped", 6, 0)
    assert move_operations() is None
    assert operation.is_ended
    for move in (operation.stop, operation.pause, operation.resume):
        with pytest.raises(InvalidJob, match="stopped"):
            move()
    assert statuses() == {"pending": 6, "dead": 3}
    with pytest.raises(OperationNotFound, match="there is no operation 77"):
        operations.stop(77)


@pytest.mark.parametrize("error", [OperationalError("gone"), KeyboardInterrupt()])
def test_a_step_that_is_cut_off_has_not_been_made(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    JobFactory.create_batch(5, status="dead")
    operation = begin(OperationKind.REPLAY, filters={"status": "dead"})
    move_operations()
    whole = operations.MOVES[OperationKind.REPLAY]

    def cut_off(*args: Any) -> Any:
        whole(*args)
        raise error

    with monkeypatch.context() as patch:
        patch.setitem(operations.MOVES, OperationKind.REPLAY, cut_off)
        with pytest.raises(type(error)):
            move_operations()
    assert state(operation) == ("running", 3, 0)
    assert statuses() == {"pending": 3, "dead": 2}
    assert finish(operation) == ("finished", 5, 0)


def test_a_step_that_fails_for_a_reason_of_its_own_ends_the_operation_and_no_other_one() -> None:
    JobFactory.create_batch(2, status="dead")
    broken = begin(OperationKind.REPLAY, filters={"status": "dead"})
    Operation.objects.filter(pk=broken.pk).update(
        filters={"no_such_column": 1}, next_at=datetime(2020, 1, 1, tzinfo=UTC)
    )
    good = begin(OperationKind.REPLAY, filters={"status": "dead"})
    move_operations()
    assert state(broken) == ("failed", 0, 0)
    assert "FieldError" in broken.error
    assert state(good) == ("finished", 2, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"filters": {}, "per_second": 0},
        {"filters": {}, "per_second": float("nan")},
        {"filters": {}, "ids": ["a"]},
        {},
        {"ids": ["a"] * 10_001},
    ],
)
def test_an_operation_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        begin(OperationKind.CANCEL, **wrong)
    with pytest.raises(InvalidJob):
        begin(OperationKind.CHANGE, filters={}, options={"priority": 11})
    assert not Operation.objects.exists()


def test_operations_that_ended_long_ago_go_when_another_begins() -> None:
    old = begin(OperationKind.CANCEL, ids=["a"])
    finish(old)
    Operation.objects.filter(pk=old.pk).update(ended_at=database_now() - timedelta(days=91))
    begin(OperationKind.CANCEL, ids=["a"])
    assert not Operation.objects.filter(pk=old.pk).exists()


def test_finished_jobs_are_deleted_with_what_hangs_on_them_unless_something_needs_them() -> None:
    plain = JobFactory(status="failed")
    AttemptFactory(job=plain)
    closed = DeadLetterFactory(job__status="dead")
    closed.acknowledge()
    mourned = DeadLetterFactory(job__status="dead").job
    needed = JobFactory(status="completed")
    JobDependencyFactory(depends_on=needed)
    batch = Batch.objects.create(created_at=database_now())
    member = JobFactory(status="completed", batch=batch)
    BatchMember.objects.create(job=member, batch=batch, place=1)
    waiting = JobFactory()
    kept = {job.pk for job in (mourned, needed, member, waiting)}
    moved = delete_finished([plain.pk, closed.job_id, *kept, "nobody"])
    assert set(moved.done) == {plain.pk, closed.job_id}
    assert moved.left.keys() == kept | {"nobody"}
    assert isinstance(moved.left["nobody"], JobNotFound)
    assert "still needs it" in str(moved.left[mourned.pk])
    assert not Job.objects.filter(pk__in=moved.done).exists()


def test_waiting_jobs_are_discarded_and_nothing_is_left_of_them() -> None:
    waiting, scheduled, running = JobFactory(), JobFactory(status="scheduled"), JobFactory(status="running")
    edge = JobDependencyFactory(depends_on=waiting)
    moved = discard([waiting.pk, scheduled.pk, running.pk])
    assert set(moved.done) == {waiting.pk, scheduled.pk}
    edge.job.refresh_from_db()
    assert edge.job.status == "failed"
    assert set(Job.objects.values_list("pk", flat=True)) == {running.pk, edge.job_id}


def test_a_cause_is_muted_until_its_time_and_its_note_is_kept() -> None:
    now = database_now()
    assert not Cause.objects.is_muted("f1")
    note_cause("f1", note="the bank is closed", muted_until=now + timedelta(hours=1))
    note_cause("f2", note="known")
    assert Cause.objects.is_muted("f1")
    assert not Cause.objects.is_muted("f2")
    assert [cause.note for cause in Cause.objects.muted()] == ["the bank is closed"]
    note_cause("f1", note="it is open again")
    assert not Cause.objects.is_muted("f1")
    for until in (now - timedelta(seconds=1), datetime(2999, 1, 1)):
        with pytest.raises(InvalidJob, match="muted_until"):
            note_cause("f1", muted_until=until)
    with pytest.raises(InvalidJob, match="fingerprint"):
        note_cause("")
    Cause.objects.filter(pk="f1").update(muted_until=now - timedelta(days=1))
    assert not Cause.objects.is_muted("f1")
