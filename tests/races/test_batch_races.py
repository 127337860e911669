"""Batches under contention: the callbacks come once and never early, whoever ends the last member, and nobody waits for long."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

import django_jobs
from django_jobs import NewJob
from django_jobs.db.dialects import dialect
from django_jobs.exceptions import InvalidJob
from django_jobs.lifecycle import batches, leases
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.settle import settle, settle_unlocked
from django_jobs.models import AttemptOutcome, Batch, BatchMember, Job, JobStatus, OpenMember
from tests.support.invariants import check_invariants
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
CALLBACK = NewJob("catalogue.changes", queue="callbacks")


def begin(members: int, **options: Any) -> tuple[Batch, list[ClaimedJob]]:
    """Return a batch and its members, claimed."""
    with django_jobs.batch(on_finish=CALLBACK, **options) as batch:
        batch.submit_many([NewJob("catalogue.changes")] * members)
    return batch, claim_all()


def claim_all() -> list[ClaimedJob]:
    leases.register("p", queues=[], threads=1)
    claimed: list[ClaimedJob] = []
    while some := claim("default", 500, "p"):
        claimed += some
    return claimed


def done(*jobs: ClaimedJob) -> None:
    assert settle([Outcome.completed(job) for job in jobs], "p") == set()


def callbacks() -> int:
    return Job.objects.filter(queue="callbacks").count()


def settle_beside_an_open_settle(first: list[ClaimedJob], then: list[ClaimedJob]) -> None:
    """Settle some members in a transaction that commits only when the settle of the others is under way, or waits."""
    settled, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            done(*first)
            settled.set()
            go_on.wait(1)

    def follow() -> None:
        assert settled.wait(60)
        threading.Timer(0.3, go_on.set).start()
        done(*then)
        go_on.set()

    run_in_threads([hold, follow])


def test_of_two_settles_that_do_not_see_each_other_the_later_one_finishes() -> None:
    batch, (one, other) = begin(2)
    settle_beside_an_open_settle([one], [other])
    batch.refresh_from_db()
    assert (batch.status, callbacks()) == ("completed", 1)
    check_invariants()


@pytest.mark.databases("postgresql", "mariadb")
def test_settles_do_not_wait_for_each_other_as_long_as_members_are_left() -> None:
    _, jobs = begin(20)
    with transaction.atomic():
        done(*jobs[:5])
        # In other threads, beside the open transaction: neither the batch's row nor a member of theirs is locked.
        for start in (5, 8, 11):
            run_in_threads([lambda start=start: done(*jobs[start : start + 3])], timeout=60)
    assert callbacks() == 0
    done(*jobs[14:])
    assert callbacks() == 1


def settle_in_threads(members: int, threads: int, chunk: int, nested: int = 0) -> None:
    """Let threads settle the members of a batch, and of those nested in it, in random order."""
    with django_jobs.batch(on_finish=CALLBACK, on_success=CALLBACK) as outer:
        outer.submit_many([NewJob("catalogue.changes")] * members)
        for _ in range(nested):
            with outer.batch(on_finish=CALLBACK) as inner:
                inner.submit_many([NewJob("catalogue.changes")] * 3)
    jobs = claim_all()
    random.Random(members).shuffle(jobs)
    early: list[int] = []

    def work(number: int) -> None:
        mine = jobs[number::threads]
        for start in range(0, len(mine), chunk):
            done(*mine[start : start + chunk])
            if Job.objects.filter(queue="callbacks", batch=outer.pk).exists():
                early.append(Job.objects.filter(queue="default", status="running").count())

    run_in_threads([lambda number=number: work(number) for number in range(threads)], timeout=300)
    assert not any(early), "no callback while a member runs"
    assert Job.objects.filter(queue="callbacks", batch=outer.pk).count() == 2
    assert callbacks() == 2 + nested
    outer.refresh_from_db()
    assert outer.status == "completed"
    check_invariants()


@pytest.mark.parametrize("chunk", [1, 7])
def test_threads_that_settle_one_batch_finish_it_once(chunk: int) -> None:
    settle_in_threads(members=150, threads=4, chunk=chunk)


@pytest.mark.slow
def test_threads_that_settle_nested_batches_finish_each_once() -> None:
    settle_in_threads(members=5, threads=4, chunk=2, nested=30)


@pytest.mark.load
def test_eight_threads_settle_ten_thousand_members() -> None:
    settle_in_threads(members=10_000, threads=8, chunk=20, nested=300)


def last_members_in_a_race(rounds: int) -> None:
    """Settle the last three members of a batch in three threads at the same moment."""
    for _ in range(rounds):
        batch, jobs = begin(3)
        before = callbacks()
        run_in_threads([lambda job=job: done(job) for job in jobs])
        batch.refresh_from_db()
        assert (batch.status, callbacks() - before) == ("completed", 1)
    check_invariants()


@pytest.mark.slow
def test_of_members_that_end_at_the_same_moment_one_is_the_last() -> None:
    last_members_in_a_race(25)


def submit_races_the_last_settle(rounds: int) -> None:
    """Add a member while the last one is settled: it is refused, or the batch waits for it."""
    refused = 0
    for _ in range(rounds):
        batch, (job,) = begin(1)
        before = callbacks()

        def add(batch: Batch = batch) -> Job | None:
            try:
                return batch.submit("catalogue.changes")
            except InvalidJob:
                return None

        added, _none = run_in_threads([add, lambda job=job: done(job)])
        batch.refresh_from_db()
        if added is None:
            refused += 1
            assert (batch.status, callbacks() - before, BatchMember.objects.filter(batch=batch).count()) == (
                "completed",
                1,
                1,
            )
        else:
            assert (batch.status, callbacks() - before) == ("running", 0), "it waits for the member that was added"
            done(*claim_all())
            batch.refresh_from_db()
            assert (batch.status, callbacks() - before) == ("completed", 1)
    check_invariants()
    assert rounds < 100 or 0 < refused < rounds, "both came first now and then"


@pytest.mark.slow
def test_a_member_added_beside_the_last_settle_is_refused_or_waited_for() -> None:
    submit_races_the_last_settle(25)


@pytest.mark.load
def test_five_thousand_members_added_beside_the_last_settle() -> None:
    submit_races_the_last_settle(5000)


def test_an_uncommitted_member_is_waited_for_by_the_last_settle() -> None:
    batch, (job,) = begin(1)
    added, go_on = threading.Event(), threading.Event()

    def add() -> None:
        with transaction.atomic():
            batch.submit("catalogue.changes")
            added.set()
            go_on.wait(1)

    def end() -> None:
        assert added.wait(60)
        threading.Timer(0.3, go_on.set).start()
        done(job)

    run_in_threads([add, end])
    assert (Batch.objects.get(pk=batch.pk).status, callbacks()) == ("running", 0)


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_a_long_transaction_that_adds_members_holds_up_no_other_job() -> None:
    batch, (member,) = begin(1)
    _, others = begin(3)
    django_jobs.submit("catalogue.changes")
    (plain,) = claim_all()
    outcomes = [Outcome.completed(job) for job in (member, *others, plain)]
    with transaction.atomic():
        batch.submit("catalogue.changes")
        locked: list[list[Outcome]] = []
        run_in_threads([lambda: locked.append(settle_unlocked(outcomes, "p"))], timeout=60)
        assert [outcome.job.id for outcome in locked[0]] == [member.id]
    assert settle_unlocked(locked[0], "p") == []
    assert Job.objects.filter(queue="default", status="completed").count() == 5
    check_invariants()


@pytest.mark.databases("postgresql", "mariadb")
def test_a_member_held_by_a_long_transaction_holds_up_itself_alone() -> None:
    with django_jobs.batch(on_finish=CALLBACK) as batch:
        batch.submit_many([NewJob("catalogue.changes")] * 4)
    *jobs, last = claim_all()
    waiting = batch.submit("catalogue.changes", delay=3600)
    with transaction.atomic():
        done(jobs[0])  # and holds the last one submitted until it commits
        outcomes = [Outcome.completed(job) for job in (*jobs[1:], last)]
        locked: list[list[Outcome]] = []
        run_in_threads([lambda: locked.append(settle_unlocked(outcomes, "p"))], timeout=60)
        assert locked == [[]], "the member that is held is the one that waits for an hour"
    waiting.cancel()
    assert callbacks() == 1
    check_invariants()


def moves_beside_the_last_settle(move: Callable[[Batch, list[ClaimedJob]], object], rounds: int = 12) -> None:
    for _ in range(rounds):
        batch, jobs = begin(2)
        cancel([jobs[0].id])  # asked to, while it runs
        failed = Outcome(jobs[0], JobStatus.CANCELLED, AttemptOutcome.CANCELLED)
        assert settle([failed], "p") == set()
        before = callbacks()
        run_in_threads([lambda batch=batch, jobs=jobs: move(batch, jobs), lambda jobs=jobs: done(jobs[1])])
        batch.refresh_from_db()
        left = OpenMember.objects.filter(batch=batch).count()
        finished = callbacks() - before
        if left:
            assert (batch.status, finished) in {("running", 0), ("running", 1)}
            cancel(OpenMember.objects.filter(batch=batch).values_list("job_id", flat=True))
            assert callbacks() - before == finished + 1
        else:
            assert (batch.is_finished, finished) == (True, 1)
    check_invariants()


@pytest.mark.slow
def test_a_replay_beside_the_last_settle_opens_the_batch_before_or_after_its_end() -> None:
    moves_beside_the_last_settle(lambda batch, jobs: replay([jobs[0].id]))


@pytest.mark.slow
def test_a_cancel_beside_the_last_settle_finishes_once() -> None:
    def cancelled(batch: Batch, jobs: list[ClaimedJob]) -> None:
        try:
            batch.cancel()
        except InvalidJob:
            pass

    moves_beside_the_last_settle(cancelled)


@pytest.mark.slow
def test_cancels_of_the_last_members_finish_once() -> None:
    for _ in range(12):
        with django_jobs.batch(on_finish=CALLBACK) as batch:
            jobs = batch.submit_many([NewJob("catalogue.changes")] * 3)
        before = callbacks()
        run_in_threads([lambda job=job: cancel([job.pk]) for job in jobs])
        batch.refresh_from_db()
        assert (batch.status, callbacks() - before) == ("cancelled", 1)
    check_invariants()


@pytest.mark.databases("postgresql", "mariadb")
def test_settles_that_have_all_marked_their_members_before_one_looks_finish_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None finds a member that is free, and none sees the others: the lock on the batch's row decides."""
    batch, jobs = begin(4)
    marked = threading.Barrier(4, timeout=30)
    look = batches._held_open

    def look_together(batch_ids: list[str]) -> set[str]:
        marked.wait()
        return look(batch_ids)

    monkeypatch.setattr(batches, "_held_open", look_together)
    run_in_threads([lambda job=job: done(job) for job in jobs])
    assert (Batch.objects.get(pk=batch.pk).status, callbacks()) == ("completed", 1)
    check_invariants()


@pytest.mark.databases("postgresql", "mariadb")
def test_a_member_that_somebody_settles_is_not_taken_for_open() -> None:
    batch, (one, other) = begin(2)
    with transaction.atomic():
        done(one)
        seen: list[set[str]] = []

        def look() -> None:
            with transaction.atomic():
                seen.append(dialect().hold_open([batch.pk]))

        run_in_threads([look])
        assert seen == [set()], "one is being settled, and the other is held by that settle"
    done(other)
    assert callbacks() == 1
