"""What a handler may raise or return, of whatever make: the job ends in order, and the thread goes on with the next one."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from django_jobs import BulkFailure, Fail, Retry, Snooze
from django_jobs.models import Attempt, DeadLetter, Job

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unequal(Exception):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __reduce__(self) -> Any:
        raise RuntimeError("no copy")


class Ungettable(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class OfNoModule(Exception):
    __module__ = None  # type: ignore[assignment]


def named(name: str) -> type[Exception]:
    return type(name, (Exception,), {"__module__": name})


def in_a_circle() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def of_many_causes() -> Exception:
    error = inner = ValueError("0")
    for number in range(5_000):
        inner.__context__ = inner = ValueError(str(number))
    return error


def in_many_groups() -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(2_000):
        error = ExceptionGroup("x" * 10_000, [error])
    return error


def with_notes(notes: object) -> Exception:
    error = ValueError("with notes")
    error.__notes__ = notes  # type: ignore[assignment]
    return error


RAISED: dict[str, Callable[[], Any]] = {
    "silent": Silent,
    "unequal": Unequal,
    "ungettable": Ungettable,
    "no module": OfNoModule,
    "NUL in its name": lambda: named("A\0\x01")("x"),
    "a surrogate in its name": lambda: named("A\udc80")("\udc80"),
    "a long name": lambda: named("A" * 5_000)("x" * 1_000_000),
    "a circle of causes": in_a_circle,
    "thousands of causes": of_many_causes,
    "thousands of groups": in_many_groups,
    "notes that are none": lambda: with_notes(7),
    "notes of anything": lambda: with_notes([Silent(), b"\0", None, "\0" * 100_000]),
    "many arguments": lambda: ValueError(*range(100_000)),
    "the end of a generator": lambda: StopIteration(object()),
    "the end of a task": asyncio.CancelledError,
    "the end of the process": lambda: SystemExit({"a": "\0"}),
    "a failure that is no text": lambda: Fail(object()),  # type: ignore[arg-type]
    "a failure with NUL": lambda: Fail("\0\ud800"),
    "a failure of nothing": lambda: Fail(""),
}
STEERED: dict[str, Callable[[], Any]] = {
    "a retry after no number": lambda: Retry(after=float("nan")),
    "a retry before": lambda: Retry(after=-1),
    "a retry at the end of time": lambda: Retry(after=1e300),
    "a retry after a text": lambda: Retry(after="soon"),  # type: ignore[arg-type]
    "a snooze of no number": lambda: Snooze(float("nan")),
    "a snooze for ever": lambda: Snooze(float("inf")),
    "a snooze of a text": lambda: Snooze("soon"),  # type: ignore[arg-type]
    "a bulk failure alone": lambda: BulkFailure({0: ValueError("x")}),
}


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Liar(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


async def _coroutine() -> None:
    """Never awaited."""


RETURNED: dict[str, Callable[[], Any]] = {
    "a generator": lambda: (number for number in range(3)),
    "no number": lambda: float("nan"),
    "a number too large": lambda: 2**70,
    "a surrogate": lambda: "\ud800",
    "NUL": lambda: {"a\0": 1},
    "ten megabytes": lambda: "x" * 10_000_000,
    "a circle": _cycle,
    "what lies": lambda: Liar(a=1),
    "an object": lambda: SimpleNamespace(a=Silent()),
    "an exception": lambda: Silent(),
    "a class": lambda: Silent,
}
WAIT = 60
WAYS = ("a thread", "a coroutine", "a transaction", "a list")


def _handle(bench: Bench, way: str, act: Callable[[], Any]) -> None:
    """Register a handler `bad` that acts in one way, and `good`."""

    def bad(payload: Any) -> Any:
        return act()

    async def bad_coroutine(payload: Any) -> Any:
        return act()

    options: dict[str, Any] = {"max_retries": 0, "base_delay": 0}
    if way == "a transaction":
        options["atomic"] = True
    if way == "a list":
        options |= {"bulk": 5, "bulk_wait": 0}
    bench.handle("bad", bad_coroutine if way == "a coroutine" else bad, **options)
    bench.handle("good", lambda payload: 7)


def _raising(make: Callable[[], Any]) -> Callable[[], Any]:
    def act() -> None:
        raise make()

    return act


def _run(bench: Bench) -> Job:
    bad, good = bench.submit("bad"), bench.submit("good")
    process = bench.start()
    assert good.wait(WAIT).status == "completed"
    bad.wait(WAIT)
    assert bench.submit("good").wait(WAIT).status == "completed"
    assert not process.is_stopping
    return Job.objects.get(pk=bad.pk)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RAISED)
def test_whatever_is_raised_is_a_dead_letter(bench: Bench, way: str, name: str) -> None:
    _handle(bench, way, _raising(RAISED[name]))
    job = _run(bench)
    assert job.status == "dead"
    assert job.error
    letter, attempt = DeadLetter.objects.get(), Attempt.objects.get()
    assert len(letter.traceback) <= 20_000
    assert attempt.error == letter.error


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("name", STEERED)
def test_a_job_that_is_steered_nowhere_ends_all_the_same(bench: Bench, way: str, name: str) -> None:
    _handle(bench, way, _raising(STEERED[name]))
    assert _run(bench).status == "dead"


@pytest.mark.parametrize("way", WAYS[:3])
@pytest.mark.parametrize("name", RETURNED)
def test_whatever_is_returned_is_a_bad_result(bench: Bench, way: str, name: str) -> None:
    _handle(bench, way, RETURNED[name])
    assert _run(bench).status == "dead"
    assert DeadLetter.objects.get().reason == "bad result"
