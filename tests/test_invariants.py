"""The invariants that fault tests end with, tested: each breach is seen, and rows that are right pass."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_jobs.models import Job, JobStatus
from tests.support.effects.models import leave_effect
from tests.support.factories import (
    AttemptFactory,
    DeadLetterFactory,
    JobDependencyFactory,
    JobFactory,
    QueueFactory,
    WorkerProcessFactory,
)
from tests.support.invariants import check_drained, check_invariants


@pytest.mark.django_db
def test_factories_make_rows_that_the_constraints_accept() -> None:
    for status in JobStatus.values:
        assert JobFactory(status=status, priority=10, unique_key=status).priority == 10
    assert WorkerProcessFactory().lease_expires_at > timezone.now()
    assert QueueFactory().paused_at is None
    assert DeadLetterFactory().job.status == "dead"


def completed(**columns: Any) -> Job:
    job = JobFactory(status="completed", fence=2, **columns)
    leave_effect(job.pk, 1, "start")
    return job


def a_lost_job() -> None:
    check_invariants(submitted=["gone"])


def a_job_that_was_rolled_back() -> None:
    check_invariants(rolled_back=[JobFactory().pk])


def a_running_job() -> None:
    JobFactory(status="running")


def a_ready_job() -> None:
    JobFactory()


def a_due_job() -> None:
    JobFactory(status="scheduled", scheduled_at=timezone.now() - timedelta(minutes=1))


def a_completed_job_without_an_effect() -> None:
    JobFactory(status="completed")


def a_second_start_without_an_attempt() -> None:
    leave_effect(completed().pk, 2, "start")


def two_starts_at_one_fence() -> None:
    job = completed()
    AttemptFactory(job=job)
    leave_effect(job.pk, 1, "start")


def a_start_at_a_fence_to_come() -> None:
    leave_effect(JobFactory(status="cancelled").pk, 1, "start")


def an_atomic_job_with_two_effects() -> None:
    job = completed(job_type="effects.record_atomic")
    AttemptFactory(job=job)
    leave_effect(job.pk, 2, "start")


def an_atomic_effect_of_a_job_that_failed() -> None:
    job = DeadLetterFactory(job__job_type="effects.record_atomic", job__fence=1).job
    leave_effect(job.pk, 1, "start")


def an_effect_of_no_job() -> None:
    leave_effect("gone", 1, "start")


def a_dead_job_without_a_dead_letter() -> None:
    JobFactory(status="dead")


def a_dead_job_with_two_dead_letters() -> None:
    DeadLetterFactory(job=DeadLetterFactory().job)


def a_dead_letter_of_a_completed_job() -> None:
    DeadLetterFactory(job=completed())


def a_wrong_number_of_pending_dependencies() -> None:
    JobDependencyFactory(job__pending_dependencies=2, depends_on__status="scheduled")


def a_dependent_that_was_not_woken() -> None:
    JobDependencyFactory(depends_on=completed())


def a_dependent_that_started_early() -> None:
    before = timezone.now() - timedelta(minutes=1)
    JobDependencyFactory(job=completed(started_at=before), depends_on=completed(), state="satisfied")


BREACHES = [
    (a_lost_job, "acknowledged and is lost"),
    (a_job_that_was_rolled_back, "rolled back and is there"),
    (a_running_job, "still running"),
    (a_ready_job, "ready and was not run"),
    (a_due_job, "due and was not run"),
    (a_completed_job_without_an_effect, "has no effect"),
    (a_second_start_without_an_attempt, "started 2 times and has 0 attempts"),
    (two_starts_at_one_fence, "each start has a fence of its own"),
    (a_start_at_a_fence_to_come, "each start has a fence of its own"),
    (an_atomic_job_with_two_effects, "is completed and has 2 effects"),
    (an_atomic_effect_of_a_job_that_failed, "is dead and has 1 effects"),
    (an_effect_of_no_job, "does not exist"),
    (a_dead_job_without_a_dead_letter, "is dead and has these dead letters, not replayed: \\[\\]"),
    (a_dead_job_with_two_dead_letters, "is dead and has these dead letters"),
    (a_dead_letter_of_a_completed_job, "is completed and has these dead letters"),
    (a_wrong_number_of_pending_dependencies, "pending_dependencies=2 and 1 open edges"),
    (a_dependent_that_was_not_woken, "did not wake"),
    (a_dependent_that_started_early, "started before"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("breach", "message"), BREACHES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_invariants_see(breach: Callable[[], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        breach()
        check_drained()


@pytest.mark.django_db
def test_the_invariants_accept_rows_that_are_right() -> None:
    first, dead = completed(), DeadLetterFactory(reason="crash loop").job
    JobDependencyFactory(job=completed(job_type="effects.record_atomic"), depends_on=first, state="satisfied")
    DeadLetterFactory(job__status="failed", reason="no handler")
    DeadLetterFactory(job=first, replayed_at=timezone.now())
    JobDependencyFactory(depends_on__status="scheduled")
    check_drained([first.pk, dead.pk], ["never"], output="all is well")
    with pytest.raises(AssertionError, match="wrote a traceback"):
        check_drained(output="…\nTraceback (most recent call last):\n  File")
