"""What an editor and a type checker know of handlers and submits; `mypy tests/typed_example.py` checks it in `.ci/run`."""

from datetime import timedelta
from typing import Any, assert_type

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Job


@django_jobs.job("typed.double", queue="numbers", max_retries=2)
def double(number: int, times: int = 1) -> int:
    return 2 * number * times


@django_jobs.job
def whole(payload: dict[str, Any]) -> None:
    """A handler that was decorated without options and takes the whole payload."""


@django_jobs.job(takes_context=True)
def watched(context: Any, order: str) -> str:
    return f"{order} {context.job_id}"


@django_jobs.job("typed.later")
async def later(order: str) -> None:
    """A coroutine."""


def use() -> None:
    assert_type(double(4), int)
    assert_type(double.submit({"number": 4}, delay=timedelta(minutes=5)), Job)
    assert_type(double.submit(double.payload(4, times=2), priority=9), Job)
    assert_type(watched.submit(watched.payload(order="a-7")), Job)
    assert_type(later.submit(later.payload("a-7")), Job)
    assert_type(whole.submit(), Job)
    first = django_jobs.submit("typed.double", double.payload(1), priority=9)
    assert_type(django_jobs.submit("typed.double", depends_on=[first, "other"], on_dependency_failure="run"), Job)
    assert_type(django_jobs.submit_many([NewJob("typed.double", double.payload(2), job_id="x")]), list[Job])


async def use_in_async_code() -> None:
    job = await double.asubmit(double.payload(4))
    assert_type(await job.await_(timeout=60), Job)
    assert_type(await job.acancel(), str)
    assert_type(await Job.objects.filter(queue="numbers").areplay(), int)


def mistakes() -> None:
    double("four")  # type: ignore[arg-type]
    double.payload("four")  # type: ignore[arg-type]
    double.payload(nummer=4)  # type: ignore[call-arg]
    watched.payload()  # type: ignore[call-arg]
    double.submit({}, prioriy=9)  # type: ignore[call-arg]
    django_jobs.submit("typed.double", {}, priority="high")  # type: ignore[arg-type]
    NewJob("typed.double", on_dependency_failure="ignore")  # type: ignore[arg-type]
    django_jobs.job("typed.double", isolation="fork")  # type: ignore[call-overload]
