"""Loops with a cursor: a later run goes on behind what is done, over a QuerySet page by page or over any iterable."""

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.exceptions import JobsError, StepMismatch
from django_jobs.models import Job, JobStep
from django_jobs.models.fields import DbNow
from django_jobs.worker import iterations
from tests.support.effects.models import Effect
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
FAST = {"max_retries": 3, "base_delay": 0.01, "max_delay": 0.02}


def handle(bench: Bench, function: Callable[..., Any], **options: Any) -> Job:
    bench.handle("t.flow", function, takes_context=True, **{**FAST, **options})
    return bench.submit("t.flow", job_id="flow")


def effects(number: int) -> list[int]:
    """Write rows and return their keys."""
    Effect.objects.bulk_create(Effect(job_id=f"row-{n}", fence=n, kind="row", at=DbNow()) for n in range(number))
    return [*Effect.objects.order_by("pk").values_list("pk", flat=True)]


SOURCES: dict[str, Callable[[], Any]] = {
    "a QuerySet, whatever its order": lambda: Effect.objects.order_by("-job_id"),
    "a QuerySet in reverse": lambda: Effect.objects.order_by("pk").reverse(),
    "a manager": lambda: Effect.objects,
    "a list": lambda: list(Effect.objects.order_by("pk")),
    "a generator": lambda: (row for row in Effect.objects.order_by("pk")),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("fails_at", [0, 3, 6])
def test_a_later_run_begins_with_the_item_that_failed(bench: Bench, source: str, fails_at: int) -> None:
    keys = effects(7)
    done: list[int] = []
    failed: list[int] = []

    def flow(context: Any, payload: Any) -> None:
        for row in context.iterate("rows", SOURCES[source]()):
            if row.pk == keys[fails_at] and not failed:
                failed.append(row.pk)
                raise ValueError
            done.append(row.pk)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert done == keys
    assert JobStep.objects.get().state == "done"


def test_a_loop_that_is_over_yields_nothing_in_later_runs(bench: Bench) -> None:
    runs: Counter[str] = Counter()

    def flow(context: Any, payload: Any) -> None:
        runs.update(context.iterate("letters", "abc"))
        runs["run"] += 1
        if runs["run"] == 1:
            raise ValueError

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert runs == {"a": 1, "b": 1, "c": 1, "run": 2}


def test_an_empty_loop_and_steps_around_it_are_on_record(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> Any:
        context.step("before", int)
        assert [*context.iterate("none", Effect.objects.none())] == []
        return context.step("behind", lambda: 7)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert [*JobStep.objects.values_list("kind", flat=True)] == ["step", "iterate", "step"]


def test_the_cursor_is_written_now_and_then_and_not_for_each_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    effects(40)
    seen: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(iterations, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def flow(context: Any, payload: Any) -> None:
        with CaptureQueriesContext(connection) as queries:
            for _ in context.iterate("rows", Effect.objects.all(), every=0.1):
                clock[0] += 0.01
        seen.extend(query["sql"] for query in queries)

    assert bench.run(handle(bench, flow)) == ["completed"]
    inserts = [sql for sql in seen if sql.lstrip().startswith("INSERT")]
    updates = [sql for sql in seen if sql.lstrip().startswith("UPDATE")]
    assert len(inserts) == 1
    assert 1 <= len(updates) <= 8, updates


def test_a_killed_run_goes_on_behind_the_last_cursor_that_was_written(bench: Bench) -> None:
    keys = effects(5)
    job = bench.submit("effects.record", job_id="flow")
    Job.objects.update(job_type="t.flow", fence=3)
    JobStep.objects.create(job=job, position=1, name="rows", kind="iterate", result=keys[2], started_at=DbNow())
    done: list[int] = []
    bench.handle(
        "t.flow",
        lambda context, payload: (
            [done.append(row.pk) for row in context.iterate("rows", Effect.objects.all())] and None
        ),
        takes_context=True,
    )
    assert bench.run(job) == ["completed"]
    assert done == keys[3:]


@pytest.mark.parametrize(("quick", "sizes"), [(0, [3, 3, 3, 3]), (60, [3, 6, 6])], ids=["slow rows", "quick rows"])
def test_rows_are_read_page_by_page(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, quick: float, sizes: list[int]
) -> None:
    monkeypatch.setattr(iterations, "PAGE", 3)
    monkeypatch.setattr(iterations, "LARGEST_PAGE", 6)
    monkeypatch.setattr(iterations, "QUICK_SECONDS", quick)
    keys = effects(8)
    seen: list[int] = []

    def flow(context: Any, payload: Any) -> None:
        with CaptureQueriesContext(connection) as queries:
            for row in context.iterate("rows", Effect.objects.all()):
                seen.append(row.pk)
                row.delete()  # its key is None then
        assert [int(size) for query in queries for size in re.findall(r"LIMIT ([36])\b", query["sql"])] == sizes

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == keys


def test_another_unique_field_is_the_key(bench: Bench) -> None:
    for name in ("c", "a", "b"):
        bench.submit("effects.record", job_id=f"x-{name}", queue="elsewhere")
    seen: list[str] = []

    def flow(context: Any, payload: Any) -> None:
        for row in context.iterate("jobs", Job.objects.filter(queue="elsewhere"), key="id"):
            if len(seen) == 2 and seen.count("x-c") == 0 and not JobStep.objects.exists():
                raise ValueError
            seen.append(row.pk)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == ["x-a", "x-b", "x-c"]


def test_a_function_of_an_item_is_the_key_of_an_iterable(bench: Bench) -> None:
    seen: list[str] = []
    orders = iter([["a", "b", "c"], ["new", "a", "b", "c", "d"]])

    def flow(context: Any, payload: Any) -> None:
        for item in context.iterate("files", next(orders), key=lambda name: {"name": name}):
            if item == "c" and "c" not in seen and not JobStep.objects.exists():
                raise ValueError
            seen.append(item)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == ["a", "b", "c", "d"]


def test_an_iterable_without_the_item_of_the_cursor_is_a_mismatch(bench: Bench) -> None:
    orders = iter([["a", "b"], ["x", "y"]])

    def flow(context: Any, payload: Any) -> None:
        try:
            for item in context.iterate("files", next(orders), key=str):
                if item == "b":
                    raise ValueError
        except StepMismatch:
            pass

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "'a'" in str(Job.objects.get().error)
    assert "not among its items any more" in str(Job.objects.get().error)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a slice": (lambda: Effect.objects.all()[:3], {}),
    "values": (lambda: Effect.objects.values("pk"), {}),
    "a union": (lambda: Effect.objects.all().union(Effect.objects.all()), {}),
    "a field that is not unique": (Effect.objects.all, {"key": "kind"}),
    "a field that is none": (Effect.objects.all, {"key": "nothing"}),
    "a number": (lambda: 7, {}),
    "a key of a list that is no function": (lambda: [1], {"key": "id"}),
    "a pause that is none": (lambda: [1], {"every": "soon"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_cannot_be_makes_the_job_dead(bench: Bench, case: str) -> None:
    source, options = REFUSED[case]
    assert bench.run(handle(bench, lambda context, payload: [*context.iterate("rows", source(), **options)])) == [
        "dead"
    ]
    assert "loop 'rows'" in str(Job.objects.get().error)


def test_a_cursor_that_is_no_json_makes_the_job_dead(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        for _ in context.iterate("rows", [1, 2], key=lambda item: {item}):
            pass

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "cursor" in str(Job.objects.get().error)


def test_there_are_no_steps_in_the_body_and_some_after_a_break(bench: Bench) -> None:
    def inside(context: Any, payload: Any) -> None:
        for _ in context.iterate("rows", [1, 2]):
            try:
                context.step("one", int)
            except JobsError:
                pass

    assert bench.run(handle(bench, inside)) == ["dead"]
    assert "the loop 'rows' goes on" in str(Job.objects.get().error)
    Job.objects.all().delete()

    def after(context: Any, payload: Any) -> None:
        for item in context.iterate("rows", [1, 2, 3]):
            if item == 2:
                break
        context.step("one", int)

    assert bench.run(handle(bench, after)) == ["completed"]
    found = [(step.name, step.result, step.state) for step in JobStep.objects.all()]
    assert found == [("rows", 1, "open"), ("one", 0, "done")]


def test_a_cancel_stops_a_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_jobs.worker.context.SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(iterations, "LOOK_SECONDS", 0.05)
    seen: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1
            time.sleep(0.01)

    def flow(context: Any, payload: Any) -> None:
        for item in context.iterate("numbers", endless()):
            seen.append(item)

    job = handle(bench, flow)
    bench.start()
    wait_until(lambda: len(seen) > 3, 60)
    job.cancel()
    assert job.wait(60).status == "cancelled"
    wait_until(lambda: JobStep.objects.exists(), 60, "the cursor")


def test_coroutines_loop_over_rows_items_and_async_items(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterations, "PAGE", 2)
    keys = effects(5)
    seen: list[Any] = []
    failed: list[int] = []

    async def letters() -> AsyncIterator[str]:
        for letter in "abc":
            yield letter

    async def flow(context: Any, payload: Any) -> None:
        async for row in context.aiterate("rows", Effect.objects.all()):
            if row.pk == keys[3] and not failed:
                failed.append(1)
                raise ValueError
            seen.append(row.pk)
        async for item in context.aiterate("items", [1, 2]):
            seen.append(item)
        async for letter in context.aiterate("letters", letters()):
            if letter == "b":
                break
            seen.append(letter)
        await context.astep("behind", int)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == [*keys, 1, 2, "a"]
    assert [*JobStep.objects.values_list("name", flat=True)] == ["rows", "items", "letters", "behind"]
