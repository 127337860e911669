"""Workflows that wait for events: woken by the emit, in its transaction; each event seen once; a timeout recorded."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

import django_jobs
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle.events import deliver, prune_events
from django_jobs.lifecycle.prune import prune
from django_jobs.models import Attempt, Event, Job, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.worker import steps as worker_steps
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


def waiting(number: int = 1) -> None:
    wait_until(lambda: Attempt.objects.filter(outcome="waiting").count() >= number, 60, "the job to wait")


def handle(bench: Bench, function: Callable[..., Any], **options: Any) -> Job:
    bench.handle("t.flow", function, takes_context=True, **options)
    return bench.submit("t.flow", job_id="flow")


def approved(context: Any, payload: Any) -> Any:
    return context.wait_for_event("order.approved", key="order:7")


# --- the wait


def test_a_job_waits_without_a_thread_until_its_event_comes(bench: Bench) -> None:
    job = handle(bench, approved, max_retries=0)
    bench.start()
    waiting()
    row = Job.objects.get()
    assert (row.status, row.retry_count, row.error) == ("scheduled", 0, None)
    assert JobStep.objects.get().state == "waiting"
    event = django_jobs.emit("order.approved", key="order:7", payload={"by": "ada"})
    assert job.wait(60).result == {"by": "ada"}
    step = JobStep.objects.get()
    assert (step.name, step.kind, step.result, step.event_id) == ("order.approved", "event", {"by": "ada"}, event.pk)
    assert step.state == "done"
    assert [*Attempt.objects.values_list("outcome", flat=True)] == ["waiting"]


def test_an_event_wakes_in_its_own_transaction_and_a_rollback_wakes_nobody(bench: Bench) -> None:
    handle(bench, approved)
    process = bench.start()
    waiting()
    process.stop(grace=10)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        django_jobs.emit("order.approved", key="order:7")
        assert Job.objects.get().status == "pending"
        raise ZeroDivisionError
    assert (Job.objects.get().status, Event.objects.count(), JobStep.objects.get().state) == ("scheduled", 0, "waiting")


@pytest.mark.parametrize("key", ["order:8", None, "Order:7", "order:7 "])
def test_another_key_or_none_wakes_nobody(bench: Bench, key: str | None) -> None:
    handle(bench, approved)
    bench.start()
    waiting()
    django_jobs.emit("order.approved", key=key)
    django_jobs.emit("order.Approved", key="order:7")
    assert deliver() in (0, 1, 2)
    assert Job.objects.get().status == "scheduled"


def test_a_wait_without_a_key_meets_events_without_one(bench: Bench) -> None:
    django_jobs.emit("nightly", key="x", payload={"no": 1})
    django_jobs.emit("nightly", payload={"yes": 1})
    job = handle(bench, lambda context, payload: context.wait_for_event("nightly"))
    assert bench.run(job) == ["completed"]
    assert Job.objects.get().result == {"yes": 1}
    assert not Attempt.objects.exists(), "it was there already"


def test_an_event_is_for_everybody(bench: Bench) -> None:
    bench.handle("t.flow", approved, takes_context=True)
    jobs = [bench.submit("t.flow") for _ in range(3)]
    bench.start()
    waiting(3)
    django_jobs.emit("order.approved", key="order:7", payload={"by": "ada"})
    assert [job.wait(60).result for job in jobs] == [{"by": "ada"}] * 3
    assert bench.submit("t.flow").wait(60).result == {"by": "ada"}


def test_a_job_sees_each_event_once_the_oldest_first(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> Any:
        return [context.wait_for_event("tick")["n"] for _ in range(3)]

    for number in range(2):
        django_jobs.emit("tick", payload={"n": number})
    job = handle(bench, flow)
    bench.start()
    waiting()
    assert [*JobStep.objects.values_list("name", "result__n")] == [("tick", 0), ("tick#2", 1), ("tick#3", None)]
    django_jobs.emit("tick", payload={"n": 2})
    assert job.wait(60).result == [0, 1, 2]


@pytest.mark.slow
def test_a_timeout_is_recorded_as_none_and_a_late_event_changes_nothing(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> Any:
        found = context.wait_for_event("late", timeout=timedelta(seconds=0.2))
        context.sleep("a little", 0.2)
        return found

    job = handle(bench, flow)
    bench.start()
    wait_until(lambda: JobStep.objects.filter(name="a little").exists(), 60)
    django_jobs.emit("late", payload={"n": 1})
    assert job.wait(60).result is None
    step = JobStep.objects.get(kind="event")
    assert (step.result, step.event_id, step.state) == (None, None, "timed out")


def test_run_now_ends_no_wait_and_cancel_ends_the_job(bench: Bench) -> None:
    job = handle(bench, approved)
    bench.start()
    waiting()
    job.run_now()
    waiting(2)
    assert Job.objects.get().status == "scheduled"
    assert job.cancel() == "cancelled"
    django_jobs.emit("order.approved", key="order:7")
    assert Job.objects.get().status == "cancelled"
    assert JobStep.objects.get().state == "waiting"
    job.replay()
    assert job.wait(60).status == "completed"


def test_an_event_that_comes_while_the_handler_leaves_makes_the_job_ready(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look for events and before the settle: the job still runs, so nobody can promote it."""
    leave = worker_steps.Steps.leave

    def emit_first(self: Any, *args: Any) -> None:
        if not Event.objects.exists():
            run_in_threads(lambda: django_jobs.emit("order.approved", key="order:7", payload={"n": 1}))
        leave(self, *args)

    monkeypatch.setattr(worker_steps.Steps, "leave", emit_first)
    job = handle(bench, approved)
    assert bench.run(job) == ["completed"]
    assert Job.objects.get().result == {"n": 1}
    assert Attempt.objects.count() == 1


@pytest.mark.databases("postgresql", "mariadb")  # SQLite's one writer is the emit
@pytest.mark.slow
def test_an_emit_that_saw_no_wait_is_delivered_after_its_commit(bench: Bench) -> None:
    go, emitted = threading.Event(), threading.Event()

    def emit_slowly() -> None:
        with transaction.atomic():
            django_jobs.emit("order.approved", key="order:7", payload={"n": 1})
            emitted.set()
            assert go.wait(60)

    def run() -> None:
        assert emitted.wait(60)
        bench.start()
        waiting()
        go.set()

    job = handle(bench, approved)
    run_in_threads([emit_slowly, run])
    assert job.wait(60).result == {"n": 1}


def test_the_wait_for_another_key_at_a_recorded_position_is_a_mismatch(bench: Bench) -> None:
    keys = iter(["a", "b"])
    job = handle(bench, lambda context, payload: context.wait_for_event("order.approved", key=next(keys)))
    bench.start()
    waiting()
    job.run_now()
    assert job.wait(60).status == "dead"
    assert "on record with the key 'a'" in str(Job.objects.get().error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": ""}, "key"),
        ({"key": 7}, "key"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": "soon"}, "timeout='soon'"),
    ],
)
def test_a_wait_that_cannot_be_makes_the_job_dead(bench: Bench, options: dict[str, Any], message: str) -> None:
    assert bench.run(handle(bench, lambda context, payload: context.wait_for_event("x", **options))) == ["dead"]
    assert message in str(Job.objects.get().error)
    assert not JobStep.objects.exists()


def test_a_coroutine_awaits_events(bench: Bench) -> None:
    async def flow(context: Any, payload: Any) -> Any:
        first = await context.await_event("one")
        return [first, await context.await_event("two", timeout=0.1)]

    job = handle(bench, flow)
    bench.start()
    waiting()
    django_jobs.emit("one", payload={"n": 1})
    assert job.wait(60).result == [{"n": 1}, None]


def test_of_two_waits_at_once_either_event_wakes_the_job(bench: Bench) -> None:
    runs: Counter[str] = Counter()

    async def flow(context: Any, payload: Any) -> Any:
        runs["runs"] += 1
        return await asyncio.gather(context.await_event("one"), context.await_event("two"))

    job = handle(bench, flow)
    bench.start()
    waiting()
    wait_until(lambda: JobStep.objects.count() == 2, 60, "both waits on record")
    django_jobs.emit("two", payload={"n": 2})
    waiting(2)
    django_jobs.emit("one", payload={"n": 1})
    assert job.wait(60).result == [{"n": 1}, {"n": 2}]


# --- the event


def test_an_event_says_what_was_given() -> None:
    event = django_jobs.emit("a", key="k", payload={"x": (1, 2)}, retention=timedelta(hours=1))
    stored = Event.objects.get()
    for one in (event, stored):
        assert (one.name, one.key, one.payload) == ("a", "k", {"x": [1, 2]})
        assert one.expires_at - one.created_at == timedelta(hours=1)
    plain = django_jobs.emit("a")
    assert (plain.key, plain.payload, plain.expires_at - plain.created_at) == (None, {}, timedelta(days=7))


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""}, {"name": None}, {"name": "x" * 201}, {"name": "a\0"}, {"key": ""}, {"key": 7}, {"key": "x" * 201},
        {"payload": [1]}, {"payload": {"when": DbNow}}, {"payload": {"n": float("nan")}}, {"retention": -1}, {"retention": "x"},
    ],
)  # fmt: skip
def test_an_event_that_cannot_be_is_refused_and_nothing_is_written(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        django_jobs.emit(**{"name": "a", **options})
    assert not Event.objects.exists()


def test_an_event_for_those_that_wait_now_is_not_for_later_ones(bench: Bench) -> None:
    bench.handle("t.flow", lambda context, payload: context.wait_for_event("now"), takes_context=True)
    first = bench.submit("t.flow")
    bench.start()
    waiting()
    django_jobs.emit("now", retention=0)
    assert first.wait(60).status == "completed"
    second = bench.submit("t.flow")
    waiting(2)
    deliver()
    second.refresh_from_db()
    assert second.status == "scheduled"


def test_events_are_pruned_once_they_have_expired_and_were_delivered(settings: Any) -> None:
    settings.DJANGO_JOBS = {"RETENTION": {"events": 1}}
    for name in ("old", "undelivered", "new"):
        django_jobs.emit(name)
    Event.objects.exclude(name="undelivered").update(delivered_at=DbNow())
    Event.objects.exclude(name="new").update(expires_at=DbNow() - timedelta(minutes=2))
    assert prune_events() == 1
    assert {*Event.objects.values_list("name", flat=True)} == {"undelivered", "new"}
    deliver()
    prune()
    assert [*Event.objects.values_list("name", flat=True)] == ["new"]


def test_a_retention_of_none_keeps_events_for_ever(settings: Any) -> None:
    settings.DJANGO_JOBS = {"RETENTION": {"events": None}}
    assert django_jobs.emit("a").expires_at is None
    deliver()
    assert prune_events() == 0


@pytest.mark.slow
def test_thousands_of_waits_are_woken_by_one_event(bench: Bench) -> None:
    job = Job.create("effects.record")
    rows = [Job(**{**_values(job), "id": f"w-{n:04}", "status": "scheduled"}) for n in range(1_200)]
    Job.objects.bulk_create(rows)
    JobStep.objects.bulk_create(
        JobStep(job_id=row.pk, position=1, name="go", kind="event", event_name="go", started_at=DbNow()) for row in rows
    )
    django_jobs.emit("go")
    assert Job.objects.filter(status="pending").count() == 1_200
    assert deliver() == 1


def _values(job: Job) -> dict[str, Any]:
    return {field.attname: getattr(job, field.attname) for field in Job._meta.concrete_fields}
