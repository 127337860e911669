"""Handlers: what `@job` takes and refuses."""

from typing import Any

import pytest

from django_jobs import job
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry


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


def test_a_job_type_has_one_handler() -> None:
    job("words.handled")(handle)
    job("words.handled")(handle)  # the same function, as autoreload imports it again
    with pytest.raises(InvalidJob, match="registered already, by"):
        job("words.handled")(len)
