"""Rows are read where they are written, whatever Django's documented primary/replica router says of reads."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

import django_jobs
from django_jobs import NewJob
from django_jobs.db.connections import jobs_alias, use_database
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.cancel import cancel
from django_jobs.models import Attempt, DeadLetter, Job
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory
from tests.support.replica import unreadable_replica

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def replica() -> Iterator[None]:
    with unreadable_replica():
        yield


def from_replica(row: Any) -> Any:
    """Return a row as if it had been read from the replica."""
    row._state.db = "replica"
    return row


def test_the_replica_is_read_when_it_is_named() -> None:
    with pytest.raises(ImproperlyConfigured):
        Job.objects.using("replica").count()
    assert Job.objects.count() == 0


def test_submits_and_moves_and_their_reads_back_use_the_primary() -> None:
    first, second, third = django_jobs.submit_many([NewJob("effects.record", delay=60) for _ in range(3)])
    job = Job.objects.get(pk=first.pk)
    job.run_now()
    assert (job.status, job._state.db) == ("pending", "default")
    job.add_dependency(second)
    assert job.depends_on == [second.pk]
    assert job.cancel() == "cancelled"
    job.replay()
    assert job.status == "pending"
    cancel([third.pk])
    assert Job.objects.get(pk=third.pk).wait(timeout=1).status == "cancelled"
    assert Job.objects.filter(pk=third.pk).replay() == 1


@pytest.mark.parametrize("move", ["cancel", "run_now", "replay", "wait"])
def test_a_row_that_was_read_from_a_replica_moves_on_the_primary(move: str) -> None:
    before, after = {
        "cancel": ("pending", "cancelled"),
        "run_now": ("scheduled", "pending"),
        "replay": ("dead", "pending"),
        "wait": ("completed", "completed"),
    }[move]
    job = from_replica(JobFactory(status=before))
    getattr(job, move)()
    assert (job.status, job._state.db, Job.objects.get().status) == (after, "default", after)


def test_a_dependency_is_added_on_the_primary() -> None:
    job, other = from_replica(JobFactory()), from_replica(JobFactory())
    job.add_dependency(other)
    assert job.depends_on == [other.pk]


def test_dead_letters_are_acknowledged_and_replayed_on_the_primary() -> None:
    first, second = from_replica(DeadLetterFactory()), from_replica(DeadLetterFactory())
    first.acknowledge(note="known")
    second.replay()
    assert (first.note, second.replayed_at is not None) == ("known", True)
    assert DeadLetter.objects.open().count() == 0


def test_rows_around_a_row_are_read_from_its_own_database() -> None:
    job = Job.objects.get(pk=AttemptFactory().job_id)
    JobDependencyFactory(job=JobFactory(), depends_on=job)
    dead_letter = DeadLetter.objects.get(pk=DeadLetterFactory(job=job).pk)
    assert dead_letter.job == job
    assert [attempt.job for attempt in job.attempts.all()] == [job]
    assert job.dependents.count() == job.dead_letters.count() == 1
    assert Attempt.objects.select_related("job").get().job == job


def test_worker_processes_and_their_leases_are_read_from_the_primary() -> None:
    leases.register("p", queues=[], threads=1)
    assert leases.beat("p")
    assert leases.leave("p")


def test_a_chosen_database_wins_over_the_routers() -> None:
    with use_database("replica"):
        assert jobs_alias() == "replica"
        with pytest.raises(ImproperlyConfigured):
            Job.objects.count()
    assert jobs_alias() == "default"
