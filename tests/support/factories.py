"""Rows in any state, written directly: for tests that need a state without the road to it."""

from datetime import datetime, timedelta

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from django_jobs.models import Attempt, DeadLetter, Job, JobDependency, Queue, WorkerProcess
from django_jobs.models.job import LIVE, TERMINAL
from django_jobs.numbers import rank_of


def a_moment_ago() -> datetime:
    """Return a time that has passed by the database's clock as well: SQLite's tells milliseconds only."""
    return timezone.now() - timedelta(milliseconds=2)


class JobFactory(DjangoModelFactory):
    """A job in the `status` asked for, with the columns that its CHECKs want; also takes `priority`."""

    class Meta:
        model = Job

    class Params:
        priority = 5

    job_type = "effects.record"
    payload = factory.Dict({})
    metadata = factory.Dict({})
    rank = factory.LazyAttribute(lambda job: rank_of(job.priority))
    status = "pending"
    created_at = factory.LazyFunction(a_moment_ago)
    updated_at = factory.SelfAttribute("created_at")
    available_at = factory.LazyAttribute(lambda job: job.scheduled_at or job.created_at)
    started_at = factory.LazyAttribute(lambda job: job.created_at if job.status in {"running", "completed"} else None)
    finished_at = factory.LazyAttribute(lambda job: job.created_at if job.status in TERMINAL else None)
    worker_id = factory.LazyAttribute(lambda job: "test:1:a" if job.status in {"running", "completed"} else None)
    scheduled_at = factory.LazyAttribute(
        lambda job: job.created_at + timedelta(hours=1) if job.status == "scheduled" else None
    )
    unique_lock = factory.LazyAttribute(lambda job: job.unique_key if job.status in LIVE else None)
    unique_key = None


class JobDependencyFactory(DjangoModelFactory):
    """An edge between two jobs; the dependent's `pending_dependencies` is the test's to set."""

    class Meta:
        model = JobDependency

    job = factory.SubFactory(JobFactory, pending_dependencies=1)
    depends_on = factory.SubFactory(JobFactory)


class DeadLetterFactory(DjangoModelFactory):
    """An open dead letter of a dead job."""

    class Meta:
        model = DeadLetter

    job = factory.SubFactory(JobFactory, status="dead", error=factory.SelfAttribute("..error"))
    reason = "retries exhausted"
    job_type = factory.SelfAttribute("job.job_type")
    error = "ValueError: as it was told"
    traceback = "Traceback (most recent call last):\n  …\nValueError: as it was told\n"
    fingerprint = "0123456789abcdef"
    died_at = factory.LazyFunction(a_moment_ago)


class AttemptFactory(DjangoModelFactory):
    """A failed attempt."""

    class Meta:
        model = Attempt

    job = factory.SubFactory(JobFactory)
    number = 1
    worker_id = "test:1:a"
    started_at = factory.LazyFunction(a_moment_ago)
    ended_at = factory.SelfAttribute("started_at")
    outcome = "failed"
    error = "ValueError: as it was told"


class WorkerProcessFactory(DjangoModelFactory):
    """A worker process whose lease runs for another hour, longer than the slowest test."""

    class Meta:
        model = WorkerProcess

    id = factory.Sequence(lambda n: f"test:{n + 1}:{n:06x}")
    host = "test"
    pid = factory.Sequence(lambda n: n + 1)
    queues = factory.List(["default"])
    started_at = factory.LazyFunction(a_moment_ago)
    heartbeat_at = factory.SelfAttribute("started_at")
    lease_expires_at = factory.LazyAttribute(lambda process: process.heartbeat_at + timedelta(hours=1))


class QueueFactory(DjangoModelFactory):
    """A queue that is not paused."""

    class Meta:
        model = Queue

    name = factory.Sequence(lambda n: f"queue-{n}")
