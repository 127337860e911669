"""A handler that submits children and waits for them: one batch, results in order, replay of what failed, no thread held."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import django_jobs
from django_jobs import Cancelled, NewJob
from django_jobs.exceptions import ChildrenFailed
from django_jobs.handlers import make_handler, registry
from django_jobs.lifecycle import cancel
from django_jobs.models import Attempt, Batch, DeadLetter, Event, Job, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.testing import advance_time, crash_after, drain, run_due
from django_jobs.worker.process import Process
from tests.support.transfers import delete_all, exported, imported
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
HERE = ["flow.parent", "flow.child", "flow.middle"]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for job_type in HERE:
        registry.forget(job_type)


def handle(function: Callable[..., Any], job_type: str = "flow.parent", **options: Any) -> None:
    registry.replace(make_handler(function, job_type, {"takes_context": True, **options}))


def numbers(*values: int, **options: Any) -> list[NewJob]:
    return [NewJob("effects.record", {"result": value}, **options) for value in values]


def statuses() -> dict[str, int]:
    """Return how many jobs are in each status that any is in."""
    return {status: number for status, number in Job.objects.counts_by_status().items() if number}


class Fragile:
    """A child that fails until it is mended."""

    def __init__(self) -> None:
        self.is_mended = False
        self.runs: Counter[int] = Counter()

    def __call__(self, context: Any, payload: Any) -> int:
        number = int(payload["n"])
        self.runs[number] += 1
        if number == 2 and not self.is_mended:
            raise ValueError("not yet")
        return number


@pytest.fixture
def fragile() -> Fragile:
    child = Fragile()
    handle(child, "flow.child", max_retries=0)
    return child


def three(context: Any, payload: Any) -> Any:
    return context.run_children([NewJob("flow.child", {"n": number}) for number in (1, 2, 3)])


# --- results


def test_children_run_on_the_thread_that_their_parent_has_left(bench: Bench) -> None:
    handle(lambda context, payload: context.run_children(numbers(3, 1, 2)), max_retries=0)
    job = django_jobs.submit("flow.parent", priority=9)
    bench.start(threads=1)
    assert job.wait(60).result == [3, 1, 2]
    assert [*Attempt.objects.values_list("outcome", flat=True)] == ["waiting"]
    batch, step = Batch.objects.get(), JobStep.objects.get()
    assert (batch.status, batch.awaited_by, batch.metadata) == ("completed", job.pk, {"children": 3})
    assert (step.name, step.kind, step.result, step.state, step.event_key) == (
        "children", "children", [3, 1, 2], "done", batch.pk
    )  # fmt: skip
    assert {child.batch_id for child in Job.objects.exclude(pk=job.pk)} == {batch.pk}


def test_later_runs_get_the_results_that_are_on_record() -> None:
    def parent(context: Any, payload: Any) -> Any:
        results = context.run_children(numbers(1, 2))
        context.sleep("a day", timedelta(days=1))
        return [
            *results,
            *context.run_children(numbers(3), name="more"),
            *context.run_children(numbers(4), name="more"),
        ]

    handle(parent)
    job = django_jobs.submit("flow.parent")
    drain()
    job.refresh_from_db()
    assert job.status == "scheduled"
    Job.objects.exclude(pk=job.pk).delete()
    advance_time(timedelta(days=2))
    drain()
    job.refresh_from_db()
    assert job.result == [1, 2, 3, 4]
    assert [*JobStep.objects.values_list("name", flat=True)] == ["children", "a day", "more", "more#2"]


def test_without_children_there_is_nothing_to_wait_for() -> None:
    handle(lambda context, payload: context.run_children([]))
    django_jobs.submit("flow.parent")
    (job,) = run_due()
    assert (job.status, job.result) == ("completed", [])
    assert not Batch.objects.exists()
    assert JobStep.objects.get().state == "done"


def test_what_a_child_adds_is_waited_for_and_is_no_result() -> None:
    def child(context: Any, payload: Any) -> str:
        context.batch.submit("effects.record", {"result": "added"})
        return "child"

    handle(child, "flow.child")
    handle(lambda context, payload: context.run_children([NewJob("flow.child"), *numbers(1)]))
    job = django_jobs.submit("flow.parent")
    drain()
    job.refresh_from_db()
    assert job.result == ["child", 1]
    assert Batch.objects.get().progress["completed"] == 3


@pytest.mark.slow
def test_coroutines_may_gather_several(bench: Bench) -> None:
    async def parent(context: Any, payload: Any) -> Any:
        return await asyncio.gather(
            context.arun_children(numbers(1, 2), name="left"), context.arun_children(numbers(3), name="right")
        )

    handle(parent)
    job = django_jobs.submit("flow.parent")
    bench.start(threads=2)
    assert job.wait(60).result == [[1, 2], [3]]
    assert Batch.objects.count() == 2


def test_children_have_children() -> None:
    handle(lambda context, payload: context.run_children(numbers(*payload["n"])), "flow.middle")
    handle(lambda context, payload: context.run_children([NewJob("flow.middle", {"n": [n, n + 1]}) for n in (1, 5)]))
    job = django_jobs.submit("flow.parent")
    drain()
    job.refresh_from_db()
    assert job.result == [[1, 2], [5, 6]]


# --- once


def test_a_parent_that_dies_behind_the_record_submits_its_children_once() -> None:
    handle(lambda context, payload: context.run_children(numbers(1, 2)))
    job = django_jobs.submit("flow.parent")
    with crash_after("children"):
        run_due()
    drain()
    job.refresh_from_db()
    assert (job.result, Batch.objects.count(), Job.objects.count()) == ([1, 2], 1, 3)


def test_who_is_woken_too_early_waits_again() -> None:
    handle(lambda context, payload: context.run_children(numbers(1), name="one"))
    job = django_jobs.submit("flow.parent", queue="parents")
    run_due(queue="parents")
    step = JobStep.objects.get()
    for wake in (lambda: django_jobs.emit(str(step.event_name), key=step.event_key), job.run_now):
        wake()
        run_due(queue="parents")
        job.refresh_from_db()
        step.refresh_from_db()
        assert (job.status, step.state) == ("scheduled", "waiting")
        if wake is not job.run_now:
            assert Event.objects.count() == 1
    drain()
    job.refresh_from_db()
    assert job.result == [1]


# --- failure


def test_a_child_that_ends_badly_makes_its_parent_dead_once_all_have_ended(fragile: Fragile) -> None:
    handle(three, max_retries=5)
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    job.refresh_from_db()
    bad = Job.objects.get(status="dead", job_type="flow.child")
    assert (job.status, job.retry_count) == ("dead", 0)
    assert f"children 'children': child {bad.pk} (flow.child) is dead: ValueError: not yet" in str(job.error)
    assert JobStep.objects.get().state == "failed"
    assert fragile.runs == {1: 1, 2: 1, 3: 1}
    assert DeadLetter.objects.get(job=job).reason == "failed by handler"


def test_replay_of_the_parent_replays_the_children_that_failed(fragile: Fragile) -> None:
    handle(three)
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    job.refresh_from_db()
    job.replay()
    assert Batch.objects.get().status == "running"
    drain(reraise=False)
    job.refresh_from_db()
    assert (job.status, fragile.runs[2]) == ("dead", 2), "not mended yet"
    fragile.is_mended = True
    job.replay()
    drain()
    job.refresh_from_db()
    assert (job.status, job.result, fragile.runs) == ("completed", [1, 2, 3], {1: 1, 2: 3, 3: 1})
    assert Batch.objects.count() == 1


def test_children_that_were_replayed_by_themselves_are_looked_at_again(fragile: Fragile) -> None:
    handle(three)
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    fragile.is_mended = True
    Batch.objects.get().replay()
    job.refresh_from_db()
    job.replay()
    drain()
    job.refresh_from_db()
    assert (job.result, fragile.runs[2]) == ([1, 2, 3], 2)


@pytest.mark.slow
def test_a_replay_reaches_the_children_of_children(fragile: Fragile) -> None:
    handle(three, "flow.middle")
    handle(lambda context, payload: context.run_children([NewJob("flow.middle")]))
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    fragile.is_mended = True
    job.refresh_from_db()
    job.replay()
    drain()
    job.refresh_from_db()
    assert (job.result, fragile.runs) == ([[1, 2, 3]], {1: 1, 2: 2, 3: 1})


def test_a_replay_from_the_start_submits_new_children(fragile: Fragile) -> None:
    handle(three)
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    fragile.is_mended = True
    job.refresh_from_db()
    job.replay(from_start=True)
    drain()
    job.refresh_from_db()
    assert (job.result, fragile.runs) == ([1, 2, 3], {1: 2, 2: 2, 3: 2})
    assert [*Batch.objects.order_by("created_at").values_list("status", flat=True)] == ["failed", "completed"]


def test_a_handler_may_catch_what_failed_and_go_on(fragile: Fragile) -> None:
    def parent(context: Any, payload: Any) -> Any:
        try:
            return three(context, payload)
        except ChildrenFailed as error:
            context.sleep("a minute", 60)
            return list(error.failed)

    handle(parent)
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    advance_time(timedelta(minutes=2))
    drain()
    job.refresh_from_db()
    assert (job.status, job.result) == ("completed", [Job.objects.get(status="dead").pk])


def test_children_that_were_deleted_are_missed() -> None:
    handle(lambda context, payload: context.run_children(numbers(1, 2)))
    job = django_jobs.submit("flow.parent", queue="parents")
    run_due(queue="parents")
    run_due(queue="default")
    Job.objects.filter(job_type="effects.record")[:1].get().delete()
    drain(reraise=False)
    job.refresh_from_db()
    assert job.status == "dead"
    assert "1 of 2 children were deleted before their results were read" in str(job.error)


def test_cancelling_a_parent_cancels_the_children_that_it_waits_for() -> None:
    handle(lambda context, payload: context.run_children(numbers(*payload["n"])), "flow.middle")
    handle(lambda context, payload: context.run_children([NewJob("flow.middle", {"n": [1, 2]}), *numbers(3)]))
    job = django_jobs.submit("flow.parent")
    run_due()
    run_due()
    job.refresh_from_db()
    job.cancel()
    assert Counter(Job.objects.values_list("status", flat=True)) == {"cancelled": 4, "completed": 1}
    assert set(Batch.objects.values_list("status", flat=True)) == {"cancelled"}
    assert not Attempt.objects.exclude(outcome="waiting").exists()


REFUSED: list[tuple[Any, str]] = [
    ("effects.record", "give a list of NewJob"),
    (NewJob("effects.record"), "give a list of NewJob"),
    ([{"job_type": "effects.record"}], "give a list of NewJob"),
    ([NewJob("effects.recrod")], "effects.record"),
    ([NewJob("effects.record", unique_key="k")], "unique_key: a child cannot have it"),
]


@pytest.mark.parametrize(("given", "problem"), REFUSED)
def test_what_cannot_be_a_child_makes_the_parent_dead(given: Any, problem: str) -> None:
    handle(lambda context, payload: context.run_children(given))
    job = django_jobs.submit("flow.parent", max_retries=3)
    run_due(reraise=False)
    job.refresh_from_db()
    assert (job.status, Batch.objects.count(), JobStep.objects.count()) == ("dead", 0, 0)
    assert problem in str(job.error)


def test_results_that_are_too_long_together_are_a_bad_result(settings: Any) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "RESULT_MAX_BYTES": 200}
    handle(lambda context, payload: context.run_children(numbers(*[10**17] * 12)))
    job = django_jobs.submit("flow.parent")
    drain(reraise=False)
    job.refresh_from_db()
    assert (job.status, DeadLetter.objects.get(job=job).reason) == ("dead", "bad result")
    assert "the children's results together" in str(job.error)


# --- elsewhere


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_parent_and_its_children_move_together(has_ended: bool) -> None:
    handle(lambda context, payload: context.run_children(numbers(1, 2)))
    django_jobs.submit("flow.parent", queue="parents", job_id="parent")
    run_due(queue="parents")
    if has_ended:
        drain(queue="default")
    data = exported()
    delete_all()
    Event.objects.all().delete()
    imported(data)
    drain()
    assert Job.objects.get(pk="parent").result == [1, 2]


@pytest.mark.slow
def test_a_parent_in_a_process_of_its_own_waits_as_well(bench: Bench) -> None:
    job = django_jobs.submit("workflows.family", {"n": [1, 2, 3]})
    bench.start(threads=1)
    wait_until(lambda: Job.objects.get(pk=job.pk).is_finished, 60, "the family")
    assert Job.objects.get(pk=job.pk).result == [1, 2, 3]


# --- parents that are cancelled while they run, or say so themselves: no child goes on


def test_a_parent_that_is_cancelled_while_it_runs_begins_no_children_that_go_on() -> None:
    def parent(context: Any, payload: Any) -> Any:
        Job.objects.get(pk=context.job_id).cancel()
        return context.run_children(numbers(1, 2, 3))

    handle(parent)
    job = django_jobs.submit("flow.parent", queue="parents")
    run_due(queue="parents")
    job.refresh_from_db()
    assert job.status == "cancelled"
    assert statuses() == {"cancelled": 4}
    assert Batch.objects.get().status == "cancelled"
    assert drain() == [], "nothing is left to run"


def test_children_that_outlive_their_cancelled_parent_are_cancelled_by_the_next_sweep() -> None:
    handle(lambda context, payload: context.run_children(numbers(1, 2)))
    job = django_jobs.submit("flow.parent")
    run_due()
    with pytest.MonkeyPatch.context() as patch:  # a process that dies behind the commit
        patch.setattr(cancel, "cancel_children", lambda ids: None)
        Job.objects.get(pk=job.pk).cancel()
    assert statuses() == {"cancelled": 1, "pending": 2}
    Process(threads=1).maintenance.cascade()
    assert statuses() == {"cancelled": 3}
    assert Batch.objects.get().status == "cancelled"


def test_so_it_is_in_a_worker_process(bench: Bench) -> None:
    def parent(context: Any, payload: Any) -> Any:
        Job.objects.get(pk=context.job_id).cancel()
        return context.run_children(numbers(1, 2, 3))

    handle(parent)
    job = django_jobs.submit("flow.parent", queue="parents")
    bench.start(queues=["parents"])
    assert job.wait(60).status == "cancelled"
    # The request may be seen before the children are begun.
    wait_until(lambda: statuses() in ({"cancelled": 4}, {"cancelled": 1}), 60, "the children to be cancelled")


@pytest.mark.parametrize("in_the_first_run", [True, False])
def test_a_parent_that_raises_cancelled_cancels_the_children_that_it_has_begun(in_the_first_run: bool) -> None:
    runs: list[str] = []

    def parent(context: Any, payload: Any) -> Any:
        runs.append(context.job_id)
        if len(runs) > 1:
            raise Cancelled
        try:
            return context.run_children([NewJob("flow.middle"), *numbers(3)])
        finally:
            if in_the_first_run:
                raise Cancelled

    handle(parent)
    handle(lambda context, payload: context.run_children(numbers(1, 2, queue="nobodys")), "flow.middle")
    job = django_jobs.submit("flow.parent", queue="parents")
    run_due(queue="parents")
    if not in_the_first_run:
        run_due(queue="default")
        job.refresh_from_db()
        job.run_now()
        run_due(queue="parents")
    job.refresh_from_db()
    assert job.status == "cancelled"
    assert statuses() == ({"cancelled": 3} if in_the_first_run else {"cancelled": 4, "completed": 1})
    assert set(Batch.objects.values_list("status", flat=True)) == {"cancelled"}
    assert not DeadLetter.objects.exists()


def test_the_end_of_the_children_wakes_a_parent_whose_clock_was_set_back_since() -> None:
    handle(lambda context, payload: context.run_children(numbers(1, 2)))
    job = django_jobs.submit("flow.parent", queue="parents")
    run_due(queue="parents")
    assert JobStep.objects.update(started_at=DbNow() + timedelta(hours=1)) == 1
    run_due(queue="default")
    job.refresh_from_db()
    assert job.status == "pending", "it was woken"
    run_due(queue="parents")
    job.refresh_from_db()
    assert (job.status, job.result) == ("completed", [1, 2])
