"""Assert what was submitted; a failure shows what was submitted instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import connections

from django_jobs.db.connections import databases_to_read, on_database
from django_jobs.exceptions import HandlerNotFound
from django_jobs.handlers import registry, unknown_job_type
from django_jobs.models import Job
from django_jobs.names import did_you_mean
from django_jobs.text import shown

MOST_SHOWN = 10
EXPECTED = (
    "depends_on", "job_id", "max_retries", "metadata", "priority", "queue", "scheduled_at", "status", "timeout_seconds",
    "unique_key", "using",
)  # fmt: skip
_ANY: Any = object()


def databases_of_test() -> list[str | None]:
    """Return the aliases of the databases with jobs that the test may use (None: that of the routers)."""
    return [alias for alias in databases_to_read() if alias is None or not _is_forbidden(alias)]


def _is_forbidden(alias: str) -> bool:
    return hasattr(connections[alias].connect, "wrapped")  # as Django's TestCase does to those that it does not name


def name_of(job_type: Any) -> str:
    """Return the job type that a name, a decorated function or a task of `django.tasks` stands for.

    Raises TypeError for anything else: no job could have that type.
    """
    name = (
        job_type if isinstance(job_type, str) else getattr(job_type, "job_type", getattr(job_type, "module_path", None))
    )
    if not isinstance(name, str):
        raise TypeError(f"give a job type, a function with @job or a task, not {shown(job_type)}")
    return name


def assert_submitted(
    job_type: Any, payload: Mapping[str, Any] | None = _ANY, *, count: int | None = None, **expected: Any
) -> Job:
    """Fail unless a job of this type was submitted, whatever became of it since; return the newest that fits.

    Args:
        job_type: its name, the decorated function, or a task of `django.tasks`.
        payload: equal to the job's; any when not given. `unittest.mock.ANY` may stand for a part of it. A task's payload is
            {"args": […], "kwargs": {…}}.
        count: exactly so many fit; by default any number from one.
        expected: depends_on, job_id, max_retries, metadata (at least these keys), priority, queue, scheduled_at, status,
            timeout_seconds, unique_key; and `using`, the alias of the database (default: all that hold jobs).
    """
    name = name_of(job_type)
    fitting = _fitting(name, payload, expected)
    if fitting and count in (None, len(fitting)):
        return fitting[-1]
    wanted = "a job" if count is None else f"{count} jobs"
    raise AssertionError(f"{wanted} of {_shown(name, payload, expected)}: {len(fitting)} submitted.{_others(name)}")


def refute_submitted(job_type: Any, payload: Mapping[str, Any] | None = _ANY, **expected: Any) -> None:
    """Fail when a job of this type was submitted that fits; the arguments are those of `assert_submitted`.

    Raises HandlerNotFound for a type that nobody registered, which could not have been submitted under any name.
    """
    name = name_of(job_type)
    fitting = _fitting(name, payload, expected)
    if fitting:
        raise AssertionError(f"no job of {_shown(name, payload, expected)}: {len(fitting)} submitted.{_others(name)}")
    if registry.find(name) is None:
        raise HandlerNotFound(unknown_job_type(name, registry.job_types()))


def _fitting(name: str, payload: Any, expected: Mapping[str, Any]) -> list[Job]:
    for option in expected:
        if option not in EXPECTED:
            raise TypeError(f"unknown keyword {option!r}.{did_you_mean(option, EXPECTED)}")
    return [job for job in _of_type(name, expected.get("using")) if _fits(job, payload, expected)]


def _of_type(name: str, database: str | None = None) -> list[Job]:
    found: list[Job] = []
    for one in databases_of_test() if database is None else (database,):
        with on_database(one):
            found += Job.objects.filter(job_type=name)
    return sorted(found, key=lambda job: (job.created_at, job.pk))


def _fits(job: Job, payload: Any, expected: Mapping[str, Any]) -> bool:
    if payload is not _ANY and job.payload != (payload or {}):
        return False
    for option, value in expected.items():
        actual: Any = job._state.db if option == "using" else getattr(job, option)
        if option == "metadata":
            actual = {key: actual[key] for key in value if key in actual}
        elif option == "depends_on":
            value = sorted(other if isinstance(other, str) else other.id for other in value)
        if actual != value:
            return False
    return True


def _shown(name: str, payload: Any, expected: Mapping[str, Any]) -> str:
    parts = [] if payload is _ANY else [f"payload={payload!r}"]
    parts += [f"{option}={value!r}" for option, value in expected.items()]
    return f"type {name!r} with {', '.join(parts)}" if parts else f"type {name!r}"


def _others(name: str) -> str:
    """Return what was submitted instead: the jobs of this type, or else the types."""
    lines = [
        f"{job.id}: payload={shown(job.payload)} queue={job.queue!r} priority={job.priority} status={job.status}"
        for job in _of_type(name)[:MOST_SHOWN]
    ]
    if lines:
        return "\nOf this type there are:\n  " + "\n  ".join(lines)
    types = sorted(_types())[:MOST_SHOWN]
    unknown = "" if registry.find(name) else f"\n{unknown_job_type(name, registry.job_types())}"
    return (f"\nSubmitted were: {', '.join(types)}" if types else " There are no jobs at all.") + unknown


def _types() -> set[str]:
    types: set[str] = set()
    for database in databases_of_test():
        with on_database(database):
            types |= set(Job.objects.order_by().values_list("job_type", flat=True).distinct())
    return types
