"""Moves on many rows at once: each row as its state allows, dependents along with it, unique keys respected."""

import pytest

import django_jobs
from django_jobs import NewJob, signals
from django_jobs.exceptions import DeadLetterNotFound, InvalidJob, JobNotFound
from django_jobs.lifecycle.acknowledge import acknowledge
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.moved import Moved
from django_jobs.lifecycle.replay import replay, replay_dead_letters, replay_edited
from django_jobs.models import DeadLetter, Job, JobDependency
from tests.support.factories import DeadLetterFactory, JobDependencyFactory, JobFactory

pytestmark = pytest.mark.django_db


def tally(moved: Moved) -> tuple[int, int]:
    """Return how many rows a move changed, and how many it left."""
    return len(moved.done), len(moved.left)


def statuses() -> dict[str, str]:
    """Return the status of each job by id."""
    return dict(Job.objects.values_list("pk", "status"))


def test_many_are_replayed_in_chunks_and_their_dead_letters_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_jobs.lifecycle.moved.CHUNK", 3)
    dead_letters = DeadLetterFactory.create_batch(7)
    fine = JobFactory(status="completed")
    moved = replay([dead_letter.job_id for dead_letter in dead_letters] + [fine.pk, "nobody"])
    assert tally(moved) == (7, 2)
    assert isinstance(moved.left["nobody"], JobNotFound)
    assert "is completed" in str(moved.left[fine.pk])
    assert set(statuses().values()) == {"pending", "completed"}
    assert DeadLetter.objects.open().count() == 0


def test_a_taken_unique_key_holds_back_its_own_job_only() -> None:
    JobFactory(unique_key="k", status="pending")
    held, free = JobFactory(unique_key="k", status="dead"), JobFactory(status="dead")
    assert tally(replay([held.pk, free.pk])) == (1, 1)
    assert (statuses()[held.pk], statuses()[free.pk]) == ("dead", "pending")


def test_a_replay_lets_failed_dependents_wait_again() -> None:
    root = JobFactory(status="dead")
    dependent = JobFactory(status="failed")
    JobDependencyFactory(job=dependent, depends_on=root, state="broken")
    assert tally(replay([root.pk])) == (1, 0)
    dependent.refresh_from_db()
    assert (dependent.status, dependent.pending_dependencies) == ("pending", 1)


def test_a_job_with_two_open_dead_letters_is_replayed_once() -> None:
    first = DeadLetterFactory()
    second = DeadLetterFactory(job=first.job)
    fence = first.job.fence
    assert tally(replay_dead_letters([first.pk, second.pk])) == (2, 0)
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
    assert tally(cancel([root.pk])) == (1, 0)
    assert statuses() == {root.pk: "cancelled", failing.pk: "failed", running_anyway.pk: "pending"}
    assert set(JobDependency.objects.values_list("state", flat=True)) == {"broken", "satisfied"}


def test_each_row_of_a_bulk_move_is_announced(django_capture_on_commit_callbacks) -> None:
    heard: list[str] = []

    def hear(sender, job, **extra) -> None:
        heard.append(job.pk)

    dead_letters = DeadLetterFactory.create_batch(3)
    signals.dead_letter_acknowledged.connect(hear, sender=Job)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            acknowledge([dead_letter.pk for dead_letter in dead_letters], note="why")
    finally:
        signals.dead_letter_acknowledged.disconnect(hear, sender=Job)
    assert sorted(heard) == sorted(dead_letter.job_id for dead_letter in dead_letters)


def test_a_dead_letter_that_is_not_there_is_named_as_one() -> None:
    for move in (acknowledge, replay_dead_letters):
        error = move([7]).left[7]
        assert (type(error), str(error)) == (DeadLetterNotFound, "there is no dead letter 7")


@pytest.mark.parametrize(
    "wrong", [{"priority": 0}, {"priority": 11}, {"priority": True}, {"queue": ""}, {"queue": "a b"}]
)
def test_a_change_that_cannot_be_changes_nothing(wrong: dict) -> None:
    job = JobFactory()
    with pytest.raises(InvalidJob):
        change([job.pk], **wrong)
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


def test_the_moves_of_a_queryset_say_how_many_jobs_they_moved() -> None:
    scheduled, pending, running = (
        JobFactory(status=status, queue="a") for status in ("scheduled", "pending", "running")
    )
    dead, elsewhere = JobFactory(status="dead", queue="a"), JobFactory(status="dead", queue="b")
    ours = Job.objects.filter(queue="a")
    assert ours.run_now() == 2
    assert statuses() == {
        scheduled.pk: "pending", pending.pk: "pending", running.pk: "running", dead.pk: "dead", elsewhere.pk: "dead",
    }  # fmt: skip
    assert ours.cancel() == 3
    assert [job.cancel_requested_at is None for job in ours.order_by("pk")] == [True, True, False, True]
    assert ours.replay() == 3, "the running job is left, and so is the other queue's"
    assert statuses() == {
        scheduled.pk: "pending", pending.pk: "pending", running.pk: "running", dead.pk: "pending", elsewhere.pk: "dead",
    }  # fmt: skip
    assert ours.none().cancel() == 0
    assert ours.order_by("pk")[:1].cancel() == 1
