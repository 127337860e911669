"""Moves on many rows at once: each row as its state allows, dependents along with it, unique keys respected."""

import pytest

import django_jobs
from django_jobs import NewJob, signals
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.lifecycle import bulk
from django_jobs.lifecycle.edit import change_many, replay_edited
from django_jobs.models import DeadLetter, Job, JobDependency
from tests.support.factories import DeadLetterFactory, JobDependencyFactory, JobFactory

pytestmark = pytest.mark.django_db


def statuses() -> dict[str, str]:
    """Return the status of each job by id."""
    return dict(Job.objects.values_list("pk", "status"))


def test_many_are_replayed_in_chunks_and_their_letters_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 3)
    letters = DeadLetterFactory.create_batch(7)
    fine = JobFactory(status="completed")
    tally = bulk.replay_many([letter.job_id for letter in letters] + [fine.pk, "nobody"])
    assert tally == (7, 2)
    assert set(statuses().values()) == {"pending", "completed"}
    assert DeadLetter.objects.open().count() == 0


def test_a_taken_unique_key_holds_back_its_own_job_only() -> None:
    JobFactory(unique_key="k", status="pending")
    held, free = JobFactory(unique_key="k", status="dead"), JobFactory(status="dead")
    assert bulk.replay_many([held.pk, free.pk]) == (1, 1)
    assert (statuses()[held.pk], statuses()[free.pk]) == ("dead", "pending")


def test_a_replay_lets_failed_dependents_wait_again() -> None:
    root = JobFactory(status="dead")
    dependent = JobFactory(status="failed")
    JobDependencyFactory(job=dependent, depends_on=root, state="broken")
    assert bulk.replay_many([root.pk]) == (1, 0)
    dependent.refresh_from_db()
    assert (dependent.status, dependent.pending_dependencies) == ("pending", 1)


def test_a_job_with_two_open_letters_is_replayed_once() -> None:
    first = DeadLetterFactory()
    second = DeadLetterFactory(job=first.job)
    fence = first.job.fence
    assert bulk.replay_letters([first.pk, second.pk]).done == 1
    assert Job.objects.get().fence == fence + 1
    assert DeadLetter.objects.open().count() == 0


def test_a_cancelled_job_fails_or_frees_its_dependents() -> None:
    root, failing, running_anyway = django_jobs.submit_many(
        [
            NewJob("effects.record", job_id="root"),
            NewJob("effects.record", depends_on=["root"]),
            NewJob("effects.record", depends_on=["root"], on_dependency_failure="run"),
        ]
    )
    assert bulk.cancel_many([root.pk]) == (1, 0)
    assert statuses() == {root.pk: "cancelled", failing.pk: "failed", running_anyway.pk: "pending"}
    assert set(JobDependency.objects.values_list("state", flat=True)) == {"broken", "satisfied"}


def test_each_row_of_a_bulk_move_is_announced(django_capture_on_commit_callbacks) -> None:
    heard: list[str] = []

    def hear(sender, job, **extra) -> None:
        heard.append(job.pk)

    letters = DeadLetterFactory.create_batch(3)
    signals.dead_letter_acknowledged.connect(hear, sender=Job)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            bulk.acknowledge_many([letter.pk for letter in letters], note="why")
    finally:
        signals.dead_letter_acknowledged.disconnect(hear, sender=Job)
    assert sorted(heard) == sorted(letter.job_id for letter in letters)


def test_delays_must_be_one_for_each_row() -> None:
    letter = DeadLetterFactory()
    with pytest.raises(ValueError, match="zip"):
        bulk.replay_many([letter.job_id], delays=[1.0, 2.0])
    assert letter.job.status == "dead"


@pytest.mark.parametrize(
    "wrong", [{"priority": 0}, {"priority": 11}, {"priority": True}, {"queue": ""}, {"queue": "a b"}]
)
def test_a_change_that_cannot_be_changes_nothing(wrong: dict) -> None:
    job = JobFactory()
    with pytest.raises(InvalidJob):
        change_many([job.pk], **wrong)
    job.refresh_from_db()
    assert (job.priority, job.queue) == (5, "default")


def test_a_refused_replay_keeps_the_payload_that_was() -> None:
    running = JobFactory(status="running", payload={"a": 1})
    with pytest.raises(InvalidJob, match="running"):
        replay_edited(running.pk, {"a": 2})
    JobFactory(unique_key="k")
    held = JobFactory(unique_key="k", status="dead", payload={"a": 1})
    with pytest.raises(InvalidJob, match="unique key"):
        replay_edited(held.pk, {"a": 2})
    assert set(Job.objects.filter(pk__in=[running.pk, held.pk]).values_list("payload__a", flat=True)) == {1}
    with pytest.raises(JobNotFound):
        replay_edited("nobody", {})
