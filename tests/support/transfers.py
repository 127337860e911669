"""Jobs of every kind, and ways to export and import them."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_jobs.exceptions import InvalidJob
from django_jobs.models import Attempt, Batch, DeadLetter, Job, JobDependency, JobLog
from django_jobs.payloads import decode, encode_payload
from django_jobs.transfer.exporting import all_jobs, export_file
from django_jobs.transfer.importing import import_file

from .factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory

# As the validator stores it: it knows no -0.0, and 1e16 is an integer.
NESTED = decode(
    encode_payload(
        {
            "a": [1, 2.5, -0.0, 1e22, None, True, {"ß": "日本", "line\u2028end": ["\\", '"', "\t"]}],
            "z": {},
            "big": 2**63 - 1,
        }
    )
)


def make_mixed_jobs(number: int = 40) -> None:
    """Write jobs of every status with all that may hang on a job."""
    now = timezone.now()
    jobs = []
    for index in range(number):
        status = ("pending", "scheduled", "completed", "failed", "dead", "cancelled")[index % 6]
        jobs.append(
            JobFactory.build(
                id=f"job-{index:06d}",
                job_type=f"type.{index % 5}",
                queue=("default", "mail")[index % 2],
                status=status,
                rank=(0, -80, 33, 7)[index % 4],
                payload={**NESTED, "n": index},
                metadata={"tenant": "a"} if index % 3 else {},
                result={"r": [index / 7]} if status == "completed" else None,
                error="ValueError: ünïcode\nline" if status in ("failed", "dead") else None,
                created_at=now - timedelta(seconds=index, microseconds=index),
                timeout_seconds=(None, 30.0, 0.1)[index % 3],
                retry_count=index % 3,
                unique_key=f"key-{index}" if index % 4 == 0 else None,
                crash_count=index % 2,
                progress=0.25 if index % 7 == 0 else None,
                progress_message="a quarter" if index % 7 == 0 else "",
                fence=index,
            )
        )
    Job.objects.bulk_create(jobs, batch_size=500)
    dead = [job for job in jobs if job.status == "dead"]
    DeadLetter.objects.bulk_create([DeadLetterFactory.build(job=job, error=job.error) for job in dead], batch_size=500)
    Attempt.objects.bulk_create(
        [AttemptFactory.build(job=job, number=n) for job in dead for n in (1, 2)], batch_size=500
    )
    JobLog.objects.bulk_create(
        [JobLog(job=job, number=n, text=f"INFO grüße: {n}\n") for job in jobs[3::7] for n in (1, 2)], batch_size=500
    )
    edges = []
    for dependent, dependency in zip(
        jobs[0::6], jobs[6::6], strict=False
    ):  # forward references: the later id comes first
        edges.append(JobDependencyFactory.build(job=dependent, depends_on=dependency))
        dependent.pending_dependencies = 1
    JobDependency.objects.bulk_create(edges, batch_size=500)
    Job.objects.bulk_update([edge.job for edge in edges], ["pending_dependencies"], batch_size=500)


def exported() -> bytes:
    """Return an export of all jobs."""
    file = io.BytesIO()
    export_file(all_jobs(), file)
    return file.getvalue()


def imported(data: bytes, **options: Any) -> Any:
    """Import what `exported` returned, under the name `jobs.jsonl`."""
    return import_file(io.BytesIO(data), "jobs.jsonl", **options)


def delete_all() -> None:
    """Delete every job and batch."""
    JobDependency.objects.all().delete()
    Batch.objects.all().delete()
    Job.objects.all().delete()


def refusal(move: Callable[[], Any]) -> list[str]:
    """Return the problems for which something is refused, and see that nothing was written by it."""
    before = exported()
    with pytest.raises(InvalidJob) as refused:
        move()
    assert exported() == before
    return list(refused.value.problems)
