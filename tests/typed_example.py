"""What an editor and a type checker know of handlers and submits; `mypy tests/typed_example.py` checks it in `.ci/run`."""

from datetime import timedelta
from typing import Any, assert_type

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Job


@django_jobs.job("typed.double", queue="numbers", max_retries=2)
def double(payload: dict[str, Any]) -> int:
    return 2 * int(payload["number"])


@django_jobs.job
def plain(payload: dict[str, Any]) -> None:
    """A handler that was decorated without options."""


def use() -> None:
    assert_type(double({"number": 4}), int)
    assert_type(double.submit({"number": 4}, delay=timedelta(minutes=5)), Job)
    assert_type(plain.submit(), Job)
    first = django_jobs.submit("typed.double", {"number": 1}, priority=9)
    assert_type(django_jobs.submit("typed.double", depends_on=[first, "other"], on_dependency_failure="run"), Job)
    assert_type(django_jobs.submit_many([NewJob("typed.double", job_id="x")]), list[Job])


def mistakes() -> None:
    double("four")  # type: ignore[arg-type]
    double.submit({}, prioriy=9)  # type: ignore[call-arg]
    django_jobs.submit("typed.double", {}, priority="high")  # type: ignore[arg-type]
    NewJob("typed.double", on_dependency_failure="ignore")  # type: ignore[arg-type]
