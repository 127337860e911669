"""Batches: members end, and what was asked for at the end is submitted once, in the transaction of the last one."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import override_settings

import django_jobs
from django_jobs import Fail, NewJob, Snooze
from django_jobs.exceptions import BatchNotFound, InvalidJob
from django_jobs.handlers import make_handler, registry
from django_jobs.lifecycle import cancel, replay
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.rescue import rescue_nameless, rescue_process
from django_jobs.models import Batch, BatchMember, Job
from django_jobs.testing import advance_time, drain, make_job, run_due
from tests.support.factories import WorkerProcessFactory
from tests.support.invariants import check_invariants

pytestmark = pytest.mark.django_db
told: list[tuple[str, Any]] = []


def well(payload: dict[str, Any]) -> Any:
    return payload.get("result")


def badly(payload: dict[str, Any]) -> None:
    if not payload.get("mended"):
        raise Fail("as it was told")


def report(context: Any, payload: dict[str, Any]) -> None:
    """Write down which callback it is and what it sees."""
    batch = context.batch
    told.append((payload["name"], (batch.status, {status: n for status, n in batch.progress.items() if n})))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    told.clear()
    registry.register(make_handler(well, "well", {}))
    registry.register(make_handler(badly, "badly", {"max_retries": 0}))
    registry.register(make_handler(report, "report", {"takes_context": True, "priority": 9}))
    yield
    for name in ("well", "badly", "report"):
        registry.forget(name)


def callbacks() -> dict[str, NewJob]:
    return {name: NewJob("report", {"name": name}) for name in ("on_success", "on_failure", "on_finish")}


def names() -> list[str]:
    """Run all that is due; return the callbacks that were called, and forget them."""
    drain(reraise=False)
    check_invariants()
    called = [name for name, _ in told]
    told.clear()
    return called


def test_when_all_members_have_completed_the_callbacks_come_once() -> None:
    with django_jobs.batch("import 7", metadata={"file": "a.csv"}, **callbacks()) as batch:
        first = batch.submit("well", {"result": 1})
        others = batch.submit_many([NewJob("well", {"result": n}) for n in (2, 3)])
    assert (batch.status, batch.description, batch.metadata) == ("running", "import 7", {"file": "a.csv"})
    assert Job.objects.count() == 3
    assert {job.batch_id for job in (first, *others)} == {batch.pk}
    drain()
    assert told == [
        ("on_success", ("completed", {"completed": 3})),
        ("on_finish", ("completed", {"completed": 3})),
    ]
    batch.refresh_from_db()
    assert batch.is_finished
    assert list(batch.jobs.values_list("result", flat=True)) == [1, 2, 3]
    check_invariants()


def test_a_failure_is_told_at_the_end_and_not_before() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("badly", priority=10)
        batch.submit("well", priority=1, delay=60)
    drain(reraise=False)
    assert not told
    advance_time(timedelta(minutes=2))
    assert names() == ["on_failure", "on_finish"]
    assert Batch.objects.get().status == "failed"


def test_an_error_in_the_block_or_a_rollback_around_it_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="no"), django_jobs.batch(**callbacks()) as batch:
        batch.submit("well")
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), transaction.atomic():
        with django_jobs.batch(**callbacks()) as batch:
            batch.submit("well")
        raise ValueError("no")
    assert not (Job.objects.exists())
    assert not Batch.objects.exists()
    assert not BatchMember.objects.exists()
    with pytest.raises(BatchNotFound):
        batch.submit("well")


def test_an_empty_batch_finishes_at_the_end_of_its_block() -> None:
    with django_jobs.batch("nothing to do", **callbacks()) as batch:
        assert batch.status == "running"
    assert batch.status == "completed"
    assert sum(batch.progress.values()) == 0
    assert names() == ["on_success", "on_finish"]


def test_a_batch_is_open_until_its_last_member_has_ended() -> None:
    def grow(context: Any, payload: dict[str, Any]) -> None:
        if payload["left"]:
            context.batch.submit("grow", {"left": payload["left"] - 1})

    registry.register(make_handler(grow, "grow", {"takes_context": True}))
    try:
        with django_jobs.batch(**callbacks()) as batch:
            batch.submit("grow", {"left": 3})
        assert names() == ["on_success", "on_finish"]
    finally:
        registry.forget("grow")
    assert batch.progress["completed"] == 4
    jobs = Job.objects.count()
    for add in (lambda: batch.submit("well"), lambda: batch.submit_many([NewJob("well")])):
        with pytest.raises(InvalidJob, match="has finished"):
            add()
    with pytest.raises(InvalidJob, match="has finished"), batch.batch("too late"):
        pass
    assert Job.objects.count() == jobs


def test_a_coroutine_adds_members_without_a_look_at_the_database() -> None:
    async def grow(context: Any, payload: dict[str, Any]) -> str:
        members = await context.batch.asubmit_many([NewJob("well")] * 2)
        return str((await context.batch.asubmit("well", depends_on=members)).batch_id)

    registry.register(make_handler(grow, "grow_async", {"takes_context": True}))
    try:
        with django_jobs.batch(**callbacks()) as batch:
            first = batch.submit("grow_async")
        assert names() == ["on_success", "on_finish"]
    finally:
        registry.forget("grow_async")
    assert (Job.objects.get(pk=first.pk).result, batch.progress["completed"]) == (batch.pk, 4)


def test_others_may_add_to_an_open_batch_and_a_plain_submit_adds_nothing() -> None:
    with django_jobs.batch() as batch:
        batch.submit("well")
        django_jobs.submit("well")
    Batch.objects.get(pk=batch.pk).submit("well")
    assert async_to_sync(batch.asubmit)("well").batch_id == batch.pk
    async_to_sync(batch.asubmit_many)([NewJob("well")])
    assert (batch.jobs.count(), Job.objects.count()) == (4, 5)


def test_callbacks_are_checked_when_the_batch_begins() -> None:
    wrong: list[tuple[Any, str]] = [
        ("report", "on_finish: give NewJob"),
        (NewJob("repor"), "Did you mean 'report'"),
        (NewJob("report", job_id="x"), "on_finish: job_id: a callback cannot"),
        (NewJob("report", unique_key="x"), "on_finish: unique_key"),
        (NewJob("report", depends_on=["x"]), "on_finish: depends_on"),
        (NewJob("report", {"when": object()}), "on_finish: payload.when"),
        (NewJob("report", priority=77), "on_finish: priority"),
    ]
    for callback, message in wrong:
        with pytest.raises(InvalidJob, match=message):
            django_jobs.batch(on_finish=callback)
    with pytest.raises(InvalidJob, match="description"):
        django_jobs.batch("x" * 201)
    with pytest.raises(InvalidJob, match="metadata"):
        django_jobs.batch(metadata={"when": object()})


def test_a_callback_has_the_options_it_was_given_and_those_of_its_handler() -> None:
    given = NewJob("report", {"name": "x"}, queue="later", delay=60, metadata={"tenant": "a"})
    with django_jobs.batch(on_finish=given, on_success=NewJob("report", {"name": "x"})) as batch:
        pass
    on_success, on_finish = Job.objects.order_by("pk")
    assert (on_success.priority, on_success.queue, on_success.status) == (9, "default", "pending")
    assert (on_finish.priority, on_finish.queue, on_finish.status) == (9, "later", "scheduled")
    assert (on_finish.metadata, on_finish.batch_id) == ({"tenant": "a"}, batch.pk)
    assert not BatchMember.objects.exists(), "a callback is no member"


def test_the_holder_of_a_unique_key_does_not_become_a_member() -> None:
    outside = django_jobs.submit("well", unique_key="k")
    with django_jobs.batch(**callbacks()) as batch:
        assert batch.submit("well", unique_key="k") == outside
        own = batch.submit("well", unique_key="own")
        assert batch.submit("well", unique_key="own") == own
        assert batch.submit_many([NewJob("well", unique_key="k"), NewJob("well", unique_key="own")]) == [outside, own]
    assert list(batch.jobs) == [own]
    assert names() == ["on_success", "on_finish"]


def test_a_member_that_waits_for_another_try_has_not_ended() -> None:
    def hesitate(context: Any, payload: dict[str, Any]) -> None:
        if context.attempt == 1 and context.fence < 4:
            raise Snooze(60)
        if context.attempt == 1:
            raise ValueError("once more")

    registry.register(make_handler(hesitate, "hesitate", {"takes_context": True}))
    try:
        with django_jobs.batch(**callbacks()) as batch:
            batch.submit("hesitate")
        for _ in range(3):
            assert (names(), batch.progress["scheduled"]) == ([], 1)
            advance_time(timedelta(minutes=2))
        assert names() == ["on_success", "on_finish"]
    finally:
        registry.forget("hesitate")


def test_members_that_their_dependency_failed_have_ended_with_it() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("badly", job_id="root")
        batch.submit_many([NewJob("well", depends_on=["root"]) for _ in range(3)])
    assert names() == ["on_failure", "on_finish"]
    assert (batch.progress["dead"], batch.progress["failed"]) == (1, 3)


@pytest.mark.slow
def test_a_cascade_that_goes_on_in_steps_ends_the_batch_with_its_last_step() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("badly", job_id="root")
        batch.submit_many([NewJob("well", depends_on=["root"]) for _ in range(1200)])
    run_due(reraise=False)
    cascade_all()
    assert names() == ["on_failure", "on_finish"]
    assert batch.progress["failed"] == 1200


def test_members_that_fail_as_they_are_submitted_count_at_once() -> None:
    make_job("badly", status="dead", job_id="gone")
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("well", depends_on=["gone"])
        batch.submit_many([NewJob("well", depends_on=["gone"], job_id="a"), NewJob("well", depends_on=["a"])])
    assert batch.status == "failed"
    assert batch.progress["failed"] == 3
    assert names() == ["on_failure", "on_finish"]


def test_a_dependency_added_late_may_end_the_last_member() -> None:
    dead = make_job("badly", status="dead")
    with django_jobs.batch(**callbacks()) as batch:
        member = batch.submit("well")
    member.add_dependency(dead)
    assert Batch.objects.get(pk=batch.pk).status == "failed"
    assert names() == ["on_failure", "on_finish"]


def test_members_are_in_the_order_of_their_submits_whatever_their_ids() -> None:
    with django_jobs.batch() as batch:
        batch.submit("well", job_id="z")
        batch.submit_many([NewJob("well", job_id="y"), NewJob("well", job_id="a")])
        batch.submit("well", job_id="b")
    assert list(batch.jobs.values_list("pk", flat=True)) == ["z", "y", "a", "b"]
    assert batch.progress == {
        **dict.fromkeys(("scheduled", "running", "completed", "failed", "dead", "cancelled"), 0),
        "pending": 4,
    }


# --- nested


def test_a_nested_batch_is_one_member_of_the_one_around_it() -> None:
    inner_finish = NewJob("report", {"name": "inner"})
    with django_jobs.batch(**callbacks()) as outer:
        outer.submit("well")
        with outer.batch("inner", on_finish=inner_finish) as inner:
            inner.submit_many([NewJob("well"), NewJob("badly")])
            with inner.batch("innermost") as innermost:
                innermost.submit("well")
    assert [batch.depth for batch in (outer, inner, innermost)] == [0, 1, 2]
    assert (list(outer.children.all()), outer.progress["running"], outer.progress["pending"]) == ([inner], 1, 1)
    assert names() == ["inner", "on_failure", "on_finish"]
    assert (outer.progress["completed"], outer.progress["failed"]) == (1, 1)
    assert inner.progress["completed"] == 2


def test_a_member_may_begin_a_batch_within_its_own() -> None:
    def fan_out(context: Any, payload: dict[str, Any]) -> None:
        with context.batch.batch("pages") as pages:
            pages.submit_many([NewJob("well")] * 3)
        with context.batch.batch("nothing"):
            pass

    registry.register(make_handler(fan_out, "fan_out", {"takes_context": True}))
    try:
        with django_jobs.batch(**callbacks()) as batch:
            batch.submit("fan_out")
        assert names() == ["on_success", "on_finish"]
    finally:
        registry.forget("fan_out")
    assert batch.progress["completed"] == 3


def test_blocks_that_are_merely_inside_each_other_are_independent() -> None:
    with django_jobs.batch("a") as a, django_jobs.batch("b") as b:
        b.submit("well")
    assert (a.status, a.parent, b.parent) == ("completed", None, None)


# --- cancel


def test_cancel_ends_what_waits_and_takes_no_more() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        first = batch.submit("well")
        batch.submit("well", depends_on=[first])
        running = batch.submit("well", priority=10)
        with batch.batch("inner") as inner:
            inner.submit("well")
    Job.objects.filter(pk=running.pk).update(status="running", worker_id="gone", started_at=running.created_at)
    assert batch.cancel() == 4
    assert (batch.status, batch.progress["cancelled"], batch.progress["running"]) == ("running", 3, 1)
    with pytest.raises(InvalidJob, match="is being cancelled"):
        batch.submit("well")
    assert names() == []
    with pytest.raises(InvalidJob, match="being cancelled"), batch.batch():
        pass
    rescue_nameless()
    assert names() == ["on_failure", "on_finish"]
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    with pytest.raises(InvalidJob, match="cancelled already"):
        batch.cancel()
    assert Batch.objects.get(pk=inner.pk).status == "cancelled"


def test_no_member_fails_by_another_that_is_cancelled_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "CHUNK", 2)
    with django_jobs.batch(**callbacks()) as batch:
        for n in range(9, 0, -1):
            batch.submit("well", job_id=f"m{n}", depends_on=[f"m{n + 1}"] if n < 9 else [])
    assert batch.cancel() == 9
    assert (batch.status, batch.progress["cancelled"]) == ("cancelled", 9)


def test_a_member_that_is_cancelled_by_itself_ends_like_any_other() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        member = batch.submit("well")
        batch.submit("well", priority=1)
    member.cancel()
    assert names() == ["on_failure", "on_finish"]
    assert Batch.objects.get(pk=batch.pk).status == "cancelled"


def test_a_batch_does_not_end_within_its_block() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("well").cancel()
        with batch.batch():
            pass
        batch.submit("well")
    assert batch.status == "running"
    assert names() == ["on_failure", "on_finish"]


def test_a_rescue_may_end_the_last_member() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        member = batch.submit("badly")
    Job.objects.filter(pk=member.pk).update(
        status="running", worker_id="gone", started_at=member.created_at, cancel_requested_at=member.created_at
    )
    WorkerProcessFactory(id="gone")
    assert rescue_process("gone") == 1
    assert Job.objects.get(pk=member.pk).status == "cancelled"
    assert names() == ["on_failure", "on_finish"]


# --- replay


def test_replay_runs_what_failed_and_calls_back_once_more() -> None:
    with django_jobs.batch(**callbacks()) as batch:
        root = batch.submit("badly")
        batch.submit_many([NewJob("well", depends_on=[root]), NewJob("well")])
        with batch.batch("inner") as inner:
            inner.submit("badly")
    assert names() == ["on_failure", "on_finish"]
    Job.objects.filter(job_type="badly").update(payload={"mended": True})
    batch.refresh_from_db()
    assert batch.replay() == 3
    assert (batch.status, batch.progress["pending"], batch.progress["completed"]) == ("running", 2, 1)
    assert Job.objects.get(job_type="well", pending_dependencies=1).status == "pending", "it waits for its root again"
    assert names() == ["on_success", "on_finish"]
    batch.refresh_from_db()
    assert batch.status == "completed"
    with pytest.raises(InvalidJob, match="nothing to replay"):
        batch.replay()


def test_the_replay_of_one_member_opens_its_batch_and_those_around_it() -> None:
    with django_jobs.batch(**callbacks()) as outer, outer.batch(on_finish=NewJob("report", {"name": "inner"})) as inner:
        member = inner.submit("badly")
    assert names() == ["inner", "on_failure", "on_finish"]
    Job.objects.filter(pk=member.pk).update(payload={"mended": True})
    Job.objects.get(pk=member.pk).replay()
    assert {batch.status for batch in Batch.objects.all()} == {"running"}
    outer.submit("well")
    assert names() == ["inner", "on_success", "on_finish"]


def test_dependents_in_a_batch_wait_again_with_their_dependency_outside_of_it() -> None:
    root = django_jobs.submit("badly")
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit_many([NewJob("well", depends_on=[root])] * 3)
    assert names() == ["on_failure", "on_finish"]
    Job.objects.filter(pk=root.pk).update(payload={"mended": True})
    Job.objects.get(pk=root.pk).replay()
    assert batch.progress["pending"] == 3
    assert names() == ["on_success", "on_finish"]


def test_the_replay_of_a_callback_does_not_open_its_batch() -> None:
    with django_jobs.batch(on_finish=NewJob("badly")) as batch:
        pass
    drain(reraise=False)
    callback = Job.objects.get()
    assert (callback.status, batch.status) == ("dead", "completed")
    callback.replay()
    drain(reraise=False)
    assert Batch.objects.get().status == "completed"
    assert Job.objects.count() == 1
    check_invariants()


def test_a_batch_does_not_finish_before_its_failed_members_wait_again() -> None:
    """A replay revives dependents in steps; between two of them the first ones may all have ended."""
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("badly", job_id="root")
        batch.submit_many([NewJob("well", depends_on=["root"]) for _ in range(3)])
    assert names() == ["on_failure", "on_finish"]
    Job.objects.filter(pk="root").update(payload={"mended": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "revive_step", lambda *_: replay.Revived(0, []))
        replay.replay(["root"])
        drain()
        assert not told, "three members are failed, and will not stay so"
    replay.revive_all()
    assert names() == ["on_success", "on_finish"]
    assert batch.progress["completed"] == 4


def test_a_batch_finishes_when_its_failed_member_is_not_revived_after_all() -> None:
    django_jobs.submit("badly", job_id="other")
    drain(reraise=False)
    with django_jobs.batch(**callbacks()) as batch:
        batch.submit("badly", job_id="root")
        batch.submit("well", job_id="both", depends_on=["root", "other"])
    drain(reraise=False)
    told.clear()
    Job.objects.filter(pk="root").update(payload={"mended": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "revive_step", lambda *_: replay.Revived(0, []))
        replay.replay(["root"])
        drain()
    assert batch.status == "running"
    replay.revive_all()
    assert Batch.objects.get(pk=batch.pk).status == "failed"
    assert names() == ["on_failure", "on_finish"]


# --- wait, prune


def test_wait_returns_the_finished_batch() -> None:
    with django_jobs.batch() as batch:
        batch.submit("well")
    with pytest.raises(TimeoutError, match=r"batch .* is still running"):
        batch.wait(timeout=0.05)
    drain()
    assert batch.wait(timeout=1).status == "completed"
    assert async_to_sync(batch.await_)(timeout=1) is batch
    Batch.objects.all().delete()
    with pytest.raises(BatchNotFound):
        batch.wait(timeout=1)


def test_members_are_kept_until_their_batch_has_finished_and_it_goes_with_the_last_one() -> None:
    with django_jobs.batch() as outer, outer.batch() as batch:
        batch.submit("well")
        last = batch.submit("well", delay=timedelta(days=30))
    drain()
    advance_time(timedelta(days=20))
    assert (prune(), Job.objects.count()) == (0, 2)
    advance_time(timedelta(days=11))
    drain()
    assert Batch.objects.get(pk=batch.pk).is_finished
    assert (prune(), list(Job.objects.all()), BatchMember.objects.count()) == (1, [last], 1)
    assert Batch.objects.count() == 2
    advance_time(timedelta(days=8))
    assert prune() == 1
    assert not Batch.objects.exists()
    assert not BatchMember.objects.exists()


@override_settings(DJANGO_JOBS={"RETENTION": {"completed": 1}})
def test_an_empty_batch_is_kept_as_a_completed_job_is() -> None:
    with django_jobs.batch():
        pass
    prune()
    assert Batch.objects.exists()
    advance_time(timedelta(days=2))
    prune()
    assert not Batch.objects.exists()
