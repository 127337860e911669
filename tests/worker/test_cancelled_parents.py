"""Parents that are cancelled while they run, or say so themselves: no child of theirs goes on."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import django_jobs
from django_jobs import Cancelled, NewJob
from django_jobs.handlers import make_handler, registry
from django_jobs.models import Batch, DeadLetter, Job, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.testing import drain, run_due
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
HERE = ["flow.parent", "flow.middle"]


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
    return dict(Counter(Job.objects.values_list("status", flat=True)))


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


def test_so_it_is_in_a_worker_process(bench: Bench) -> None:
    def parent(context: Any, payload: Any) -> Any:
        Job.objects.get(pk=context.job_id).cancel()
        return context.run_children(numbers(1, 2, 3))

    handle(parent)
    job = django_jobs.submit("flow.parent", queue="parents")
    bench.start(queues=["parents"])
    assert job.wait(60).status == "cancelled"
    wait_until(lambda: statuses() == {"cancelled": 4}, 60, "the children to be cancelled")


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
