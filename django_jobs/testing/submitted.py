"""Ask what was submitted, and say what was submitted instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_jobs.exceptions import HandlerNotFound
from django_jobs.handlers import registry, unknown_job_type
from django_jobs.lifecycle.transactions import jobs_alias
from django_jobs.models import Job
from django_jobs.names import did_you_mean
from django_jobs.text import shown

MOST_TOLD = 10
EXPECTED = (
    "depends_on", "job_id", "max_retries", "metadata", "priority", "queue", "scheduled_at", "status", "timeout_seconds",
    "unique_key",
)  # fmt: skip
_ANY: Any = object()


def name_of(job_type: Any) -> str:
    """Return the job type that a name or a decorated function stands for."""
    return str(getattr(job_type, "job_type", job_type))


def assert_submitted(
    job_type: Any, payload: Mapping[str, Any] | None = _ANY, *, count: int | None = None, **expected: Any
) -> Job:
    """Fail unless a job of this type was submitted, whatever became of it since; return the newest that fits.

    Args:
        job_type: its name, or the decorated function.
        payload: equal to the job's; any when not given. `unittest.mock.ANY` may stand for a part of it.
        count: exactly so many fit; by default any number from one.
        expected: depends_on, job_id, max_retries, metadata (at least these keys), priority, queue, scheduled_at, status,
            timeout_seconds, unique_key.
    """
    name = name_of(job_type)
    fitting = _fitting(name, payload, expected)
    if count is None and fitting:
        return fitting[-1]
    if count is not None and len(fitting) == count and count > 0:
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
    jobs = Job.objects.using(jobs_alias()).filter(job_type=name).order_by("created_at", "pk")
    return [job for job in jobs if _fits(job, payload, expected)]


def _fits(job: Job, payload: Any, expected: Mapping[str, Any]) -> bool:
    if payload is not _ANY and job.payload != (payload or {}):
        return False
    for option, value in expected.items():
        held = getattr(job, option)
        if option == "metadata":
            held = {key: held[key] for key in value if key in held}
        elif option == "depends_on":
            value = sorted(one if isinstance(one, str) else one.id for one in value)
        if held != value:
            return False
    return True


def _shown(name: str, payload: Any, expected: Mapping[str, Any]) -> str:
    said = [] if payload is _ANY else [f"payload={payload!r}"]
    said += [f"{option}={value!r}" for option, value in expected.items()]
    return f"type {name!r} with {', '.join(said)}" if said else f"type {name!r}"


def _others(name: str) -> str:
    """Tell what was submitted instead: the jobs of this type, or else the types."""
    jobs = Job.objects.using(jobs_alias())
    told = [
        f"{job.id}: payload={shown(job.payload)} queue={job.queue!r} priority={job.priority} status={job.status}"
        for job in jobs.filter(job_type=name).order_by("created_at", "pk")[:MOST_TOLD]
    ]
    if told:
        return "\nOf this type there are:\n  " + "\n  ".join(told)
    types = sorted(set(jobs.order_by().values_list("job_type", flat=True).distinct()))[:MOST_TOLD]
    unknown = "" if registry.find(name) else f"\n{unknown_job_type(name, registry.job_types())}"
    return (f"\nSubmitted were: {', '.join(types)}" if types else " There are no jobs at all.") + unknown
