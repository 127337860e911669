"""Handlers: what `@job` takes and refuses."""

import functools
from typing import Any

import pytest

from django_jobs import job, submit
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import make_handler, registry


def handle(payload: dict[str, Any]) -> int:
    return len(payload)


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    for name in ("words.handled", f"{__name__}.handle"):
        registry.forget(name)


@pytest.mark.parametrize(
    ("decorate", "name"),
    [
        (job, f"{__name__}.handle"),
        (job(), f"{__name__}.handle"),
        (job("words.handled", priority=7), "words.handled"),
        (job(job_type="words.handled", priority=7), "words.handled"),
    ],
)
def test_a_handler_stays_the_function_it_was(decorate: Any, name: str) -> None:
    decorated = decorate(handle)
    assert decorated is handle
    assert decorated({"a": 1}) == 1
    assert decorated.job_type == name
    assert registry.get(name).function is handle


def test_all_that_is_wrong_with_a_handler_is_named_at_once() -> None:
    with pytest.raises(InvalidJob, match=r"Did you mean 'priority'\?") as refused:
        job("", prioriy=3, max_retries=-1, timeout_seconds=0, queue="a;b", isolation="fork", retry_on="ValueError")(
            handle
        )
    assert len(refused.value.problems) == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bulk": 0}, "bulk=0: give an integer from 1 to 10000"),
        ({"bulk": 10_001}, "bulk=10001"),
        ({"bulk": True}, "bulk=True"),
        ({"bulk": "5"}, "bulk='5'"),
        ({"bulk": 5, "bulk_wait": -1}, "bulk_wait=-1: give a number of seconds"),
        ({"bulk_wait": 1}, "it is for a bulk handler"),
        ({"bulk": 5, "isolation": "process"}, "cannot have isolation='process'"),
    ],
    ids=str,
)
def test_options_of_a_bulk_handler_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJob, match=says.replace("(", r"\(")):
        job("words.handled", **options)(handle)


def test_a_bulk_handler_takes_one_list_whatever_it_is_called_and_any_payload() -> None:
    job("words.handled", bulk=5, bulk_wait=0.5)(lambda contexts: None)
    handler = registry.get("words.handled")
    assert (handler.bulk, handler.bulk_wait, handler.arguments) == (5, 0.5, None)
    for function in (lambda: None, lambda one, two: None, lambda *, payloads: None):
        with pytest.raises(InvalidJob, match="calls a bulk handler with one list"):
            job("words.other", bulk=5)(function)


def test_an_async_bulk_handler_cannot_be_atomic() -> None:
    async def handler(payloads: list[Any]) -> None: ...

    with pytest.raises(InvalidJob, match="cannot be atomic"):
        job("words.other", bulk=5, atomic=True)(handler)


def test_a_job_type_has_one_handler() -> None:
    job("words.handled")(handle)
    job("words.handled")(handle)  # the same function, as autoreload imports it again
    with pytest.raises(InvalidJob, match="registered already, by"):
        job("words.handled")(fresh)


# --- caught early, in the words people know


class Callable:
    async def __call__(self, payload: dict[str, Any]) -> None: ...


def two(context: Any, payload: dict[str, Any]) -> None: ...
def spread(*args: Any) -> None: ...
def yields(payload: dict[str, Any]) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (lambda: None, {}, r"cannot be called by a worker, which calls <lambda>\(payload\)"),
        (two, {}, "or give takes_context=True"),
        (handle, {"takes_context": True}, "or leave out takes_context=True"),
        (yields, {}, "is a generator function"),
    ],
)
def test_a_function_that_cannot_take_the_whole_payload_is_refused(function: Any, options: Any, said: str) -> None:
    with pytest.raises(InvalidJob, match=said):
        make_handler(function, "words.handled", options)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (two, {"takes_context": True}),
        (spread, {}),
        (spread, {"takes_context": True}),
        (lambda order: None, {}),
        (Callable(), {}),
        (functools.partial(two, None), {}),
        (dict, {}),
    ],
)
def test_whatever_else_can_take_it_is_taken(function: Any, options: Any) -> None:
    handler = make_handler(function, "words.handled", options)
    assert handler.function is function
    assert handler.arguments is None


def fresh(payload: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("call", "arguments", "options", "right"),
    [
        ("delay", (1,), {}, r"fresh\.submit\(payload\)"),
        ("apply_async", ((1,),), {"countdown": 5}, r"fresh\.submit\(payload, delay=…\)"),
        ("apply_async", (), {"eta": "soon"}, r"fresh\.submit\(payload, scheduled_at=…\)"),
        ("enqueue", (), {"user_id": 7}, r"fresh\.submit\(payload\)"),
        ("aenqueue", (), {}, r"fresh\.asubmit\(payload\)"),
        ("send", (7,), {}, "Dramatiq's way"),
    ],
)
def test_other_queues_calls_answer_with_ours(call: str, arguments: Any, options: Any, right: str) -> None:
    job("words.handled")(fresh)
    with pytest.raises(InvalidJob, match=right):
        getattr(fresh, call)(*arguments, **options)


def test_a_task_of_another_queue_keeps_its_own_calls() -> None:
    def both(payload: dict[str, Any]) -> None: ...

    both.delay = "theirs"  # type: ignore[attr-defined]
    job("words.handled")(both)
    assert both.delay == "theirs"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"countdown": 5}, "unknown option 'countdown'. It is delay here (in seconds, or a timedelta)."),
        ({"eta": 5}, "unknown option 'eta'. It is scheduled_at here (an aware datetime)."),
        ({"time_limit": 5}, "unknown option 'time_limit'. It is timeout_seconds here."),
        ({"n": 1}, "unknown option 'n'. What the handler is to get belongs into the payload: {'n': …}."),
        ({"prioriy": 1}, "unknown option 'prioriy'. Did you mean 'priority'?"),
        ({"kwargs": {}}, "Leave it out: the payload is the arguments, by name"),
    ],
)
def test_other_queues_options_are_answered_in_our_words(options: Any, said: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        submit("words.handled", **options)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bind": True}, "It is takes_context here."),
        ({"autoretry_for": (ValueError,)}, "It is retry_on here."),
        ({"acks_late": True}, "Leave it out: a job is settled when its handler has returned"),
        ({"max_attempts": 3}, "It is max_retries here (one less: the first start is no retry)."),
    ],
)
def test_other_queues_options_of_a_handler_too(options: Any, said: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        job("words.handled", **options)(handle)
    assert said in str(refused.value)
