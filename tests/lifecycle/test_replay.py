"""Replays of several jobs: none starts before what it waits for, and what a unique key holds back holds nobody else back."""

from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

import django_jobs
from django_jobs import NewJob
from django_jobs.lifecycle import dependents, leases, replay
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.settle import settle
from django_jobs.models import (
    AttemptOutcome,
    DeadLetter,
    DeadLetterReason,
    DependencyState,
    Job,
    JobDependency,
    JobStatus,
)
from tests.support.factories import JobDependencyFactory, JobFactory
from tests.support.invariants import check_invariants

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def process() -> None:
    leases.register("p", queues=[], threads=1)


def chain(*names: str) -> None:
    """Submit jobs, each of which waits for the one before."""
    before = [[], *([name] for name in names)]
    django_jobs.submit_many(
        [NewJob("effects.record", job_id=name, depends_on=needed) for name, needed in zip(names, before, strict=False)]
    )


def kill(count: int = 1) -> None:
    for job in claim("default", count, "p"):
        letter = DeadLetterReason.RETRIES_EXHAUSTED
        settle([Outcome(job=job, status=JobStatus.DEAD, attempt=AttemptOutcome.FAILED, reason=letter, error="no")], "p")
    cascade_all()


def statuses(*names: str) -> list[str]:
    found = dict(Job.objects.values_list("pk", "status"))
    return [found[name] for name in names]


def order() -> list[str]:
    """Complete all that is ready, again and again; return the ids in the order in which they were claimed."""
    done: list[str] = []
    while claimed := claim("default", 100, "p"):
        done += [job.id for job in claimed]
        assert settle([Outcome.completed(job) for job in claimed], "p") == set()
    return done


@pytest.mark.parametrize("names", ["abcd", "dcba"], ids="".join)
@pytest.mark.parametrize("together", [500, 2, 1])
@pytest.mark.parametrize("with_dependents", [True, False])
def test_jobs_that_are_replayed_together_run_in_their_order(
    monkeypatch: pytest.MonkeyPatch, names: str, together: int, with_dependents: bool
) -> None:
    monkeypatch.setattr(replay, "CHUNK", together)
    chain(*names)
    kill()
    assert statuses(*names) == ["dead", "failed", "failed", "failed"]
    assert Job.objects.filter(status__in=("dead", "failed")).replay(dependents=with_dependents) == 4
    assert order() == list(names)
    assert not JobDependency.objects.exclude(state=DependencyState.SATISFIED).exists()


def test_a_job_that_is_replayed_by_itself_waits_for_none_that_ended_badly() -> None:
    chain("a", "b", "c")
    kill()
    Job.objects.get(pk="b").replay()
    assert statuses("a", "b", "c") == ["dead", "pending", "pending"]
    assert order() == ["b", "c"]


def test_a_job_that_failed_by_itself_is_not_replayed_with_what_it_once_waited_for() -> None:
    chain("a", "b")
    kill()
    Job.objects.get(pk="b").replay()
    Job.objects.get(pk="a").replay()
    claimed = {job.id: job for job in claim("default", 2, "p")}
    settle([Outcome.completed(claimed["a"]), Outcome.no_handler(claimed["b"], "no handler for it")], "p")
    replay.revive_all()
    assert statuses("a", "b") == ["completed", "failed"]
    assert DeadLetter.objects.open().get().job_id == "b"


def test_a_dependent_whose_unique_key_is_held_waits_for_it_and_holds_nobody_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "STEP", 2)
    monkeypatch.setattr(dependents, "STEP", 2)
    behind = [NewJob("effects.record", job_id=f"b{n}", depends_on=["a"], unique_key=f"k{n}") for n in range(5)]
    django_jobs.submit_many([NewJob("effects.record", job_id="a"), *behind])
    kill()
    holder = django_jobs.submit("effects.record", job_id="holder", unique_key="k0", delay=3600)
    other = JobFactory(status="dead")
    Job.objects.get(pk="a").replay()
    assert statuses("a", "b0", "b1", "b2", "b3", "b4") == ["pending", "failed", *["pending"] * 4]
    other.replay()
    assert other.status == "pending"
    cancel([holder.pk])
    replay.revive_all()
    assert statuses("b0") == ["pending"]
    check_invariants()


def test_of_two_dependents_with_one_unique_key_the_second_waits_for_the_first() -> None:
    root = JobFactory(status="dead")
    for name in ("b", "c"):
        JobDependencyFactory(
            job=JobFactory(id=name, status="failed", unique_key="k"), depends_on=root, state=DependencyState.BROKEN
        )
    root.replay()
    assert statuses("b", "c") == ["pending", "failed"]
    assert order() == [root.pk, "b"]
    replay.revive_all()
    assert order() == ["c"]


def test_a_refused_replay_leaves_the_children_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(replay, "_replay_children", lambda ids, by: asked.extend(ids))
    JobFactory(unique_key="k", status="pending")
    held, free = JobFactory(unique_key="k", status="dead"), JobFactory(status="dead")
    assert replay.replay([held.pk, free.pk]).done == [free.pk]
    assert asked == [free.pk]


def _cancel_one() -> None:
    JobFactory(id="alone", status="pending")
    cancel(["alone"])


def _replay_one() -> None:
    JobFactory(id="alone", status="dead").replay()


@pytest.mark.parametrize("move", [_cancel_one, _replay_one])
def test_a_cancel_and_the_replay_of_one_job_ask_for_its_own_edges_alone(move: Callable[[], None]) -> None:
    with CaptureQueriesContext(connection) as queries:
        move()
    asked = [query["sql"] for query in queries if "django_jobs_jobdependency" in query["sql"]]
    assert asked
    unbound = [sql for sql in asked if "alone" not in sql]
    assert len(unbound) <= (move is _replay_one), unbound  # the last look for what a replay left undone
