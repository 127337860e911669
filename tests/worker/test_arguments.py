"""Handlers with arguments: called with the payload's keys, wherever they run; a payload of old that does not fit ends dead."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

import django_jobs
from django_jobs import NewJob, job
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle.replay import replay_edited
from django_jobs.lifecycle.submit import submit
from django_jobs.models import Attempt, DeadLetter, Job
from django_jobs.queue import JobQueue
from django_jobs.testing import run_due
from tests.support.factories import JobFactory

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
started: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_started() -> None:
    started.clear()


def welcome(user_id: int, template: str = "plain") -> list[Any]:
    started.append(user_id)
    return [user_id, template, transaction.get_connection().in_atomic_block]


async def welcome_async(context: Any, user_id: int, **rest: Any) -> list[Any]:
    started.append(user_id)
    return [context.job_id, user_id, rest]


@pytest.fixture
def declared() -> Iterator[Any]:
    yield job("t.welcome", max_retries=3, base_delay=0.01)(welcome)
    registry.forget("t.welcome")


@pytest.mark.parametrize("options", [{}, {"atomic": True}], ids=["plain", "atomic"])
def test_a_handler_is_called_with_the_payloads_keys(bench: Bench, options: dict[str, Any]) -> None:
    bench.handle_with_arguments("t.welcome", welcome, **options)
    plain, rich = (
        bench.submit("t.welcome", payload) for payload in ({"user_id": 7}, {"user_id": 8, "template": "rich"})
    )
    assert bench.run(plain, rich) == ["completed", "completed"]
    is_atomic = "atomic" in options
    assert [plain.result, rich.result] == [[7, "plain", is_atomic], [8, "rich", is_atomic]]


@pytest.mark.slow
def test_so_is_one_that_runs_in_a_child(bench: Bench) -> None:
    good = bench.submit("effects.greet", {"name": "Ann"})
    old = JobFactory(job_type="effects.greet", payload={"nam": "Ann"})
    assert bench.run(good, old) == ["completed", "dead"]
    assert good.result == "Good day, Ann"
    assert "'nam' is too much, for greet(context, name, greeting=…). Did you mean 'name'?" in (old.error or "")


def test_a_coroutine_gets_its_context_before_them(bench: Bench) -> None:
    bench.handle_with_arguments("t.welcome", welcome_async, takes_context=True)
    one = bench.submit("t.welcome", {"user_id": 7, "self": 1, "job": 2, "run": 3})
    assert bench.run(one) == ["completed"]
    assert one.result == [one.pk, 7, {"self": 1, "job": 2, "run": 3}]


@pytest.mark.parametrize("threads", [1, 2])
def test_no_payload_reaches_another_call(bench: Bench, threads: int) -> None:
    def grow(items: list[int], **rest: Any) -> list[Any]:
        items.append(1)
        rest["more"] = 1
        return [items, rest]

    bench.handle_with_arguments("t.grow", grow)
    jobs = [bench.submit("t.grow", {"items": [], "a": number}) for number in range(20)]
    assert set(bench.run(*jobs, threads=threads)) == {"completed"}
    assert [one.result for one in jobs] == [[[1], {"a": number, "more": 1}] for number in range(20)]


# --- a row that was written for another version of the handler


@pytest.mark.parametrize(
    ("handler", "options"),
    [
        (welcome, {}),
        (welcome, {"atomic": True}),
        (welcome_async, {"takes_context": True}),
    ],
    ids=["plain", "atomic", "coroutine"],
)
def test_an_old_payload_is_dead_at_once_and_says_what_does_not_fit(
    bench: Bench, handler: Any, options: dict[str, Any]
) -> None:
    bench.handle_with_arguments("t.welcome", handler, max_retries=3, **options)
    old = JobFactory(job_type="t.welcome", payload={"user": 7}, max_retries=3)
    assert bench.run(old) == ["dead"]
    assert started == []
    dead_letter = DeadLetter.objects.get()
    assert dead_letter.reason == "bad payload"
    assert dead_letter.error.startswith(f"BadPayload: payload: 'user_id' is missing, for {handler.__name__}(")
    assert [attempt.outcome for attempt in Attempt.objects.all()] == ["failed"]


def test_where_nobody_wants_dead_letters_it_fails(bench: Bench) -> None:
    bench.handle_with_arguments("t.welcome", welcome, dead_letter=False)
    old = JobFactory(job_type="t.welcome", payload={})
    assert bench.run(old) == ["failed"]
    assert "'user_id' is missing" in (old.error or "")


def test_a_type_error_of_the_handler_is_a_failure_like_any_other(bench: Bench) -> None:
    def adds(number: int) -> Any:
        return number + "1"  # type: ignore[operator]

    bench.handle_with_arguments("t.adds", adds, max_retries=1, base_delay=0.01)
    one = bench.submit("t.adds", {"number": 1})
    assert bench.run(one) == ["dead"]
    assert DeadLetter.objects.get().reason == "retries exhausted"
    assert one.retry_count == 1


def test_a_replay_with_an_edited_payload_mends_it(declared: Any) -> None:
    old = JobFactory(job_type="t.welcome", payload={"user": 7})
    with pytest.raises(TypeError, match="user"):
        run_due()
    with pytest.raises(
        InvalidJob, match=r"'user' is too much, for welcome\(user_id, template=…\)\. Did you mean 'user_id'"
    ):
        replay_edited(old.pk, {"user": 7})
    old.refresh_from_db()
    assert old.status == "dead"
    replay_edited(old.pk, {"user_id": 7})
    assert run_due()[0].result == [7, "plain", False]


# --- refused at submit, wherever the handler is known


def test_each_way_to_submit_names_what_does_not_fit_and_writes_nothing(declared: Any) -> None:
    for submitting in (
        lambda payload: declared.submit(payload),
        lambda payload: django_jobs.submit("t.welcome", payload),
        lambda payload: JobQueue("mail").enqueue("t.welcome", payload),
        lambda payload: JobQueue("mail").enqueue(Job.create("t.welcome", payload)),
    ):
        with pytest.raises(InvalidJob, match=r"'user_id' is missing.*'id' is too much"):
            submitting({"id": 7})
    assert Job.objects.count() == 0


def test_of_many_each_that_does_not_fit_is_named(declared: Any) -> None:
    good, bad = NewJob("t.welcome", {"user_id": 7}), NewJob("t.welcome", {"user": 7})
    with pytest.raises(InvalidJob) as refused:
        django_jobs.submit_many([good, bad, good, bad, NewJob("t.welcome", priority=9)])
    named = [problem.split(":")[0] for problem in refused.value.problems]
    assert named == ["item 1", "item 1", "item 3", "item 3", "item 4"]
    assert Job.objects.count() == 0


def test_a_type_that_nobody_knows_here_takes_any_payload() -> None:
    assert submit("t.elsewhere", {"anything": 1}, any_type=True, options={}).pk
