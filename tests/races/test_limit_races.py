"""Limits under moves at the same moment on real connections: never one too many, and nobody waits beside a free slot."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from django_jobs import Limit, job, submit
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, limits, slots, starts
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote, run_now
from django_jobs.lifecycle.release import release
from django_jobs.lifecycle.replay import replay
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import AttemptOutcome, DeadLetterReason, Job, JobStatus, WorkerProcess
from django_jobs.models.fields import DbNow
from tests.support.invariants import check_invariants
from tests.support.threads import run_in_threads
from tests.support.waiting import dump_rows

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "limited.raced"
ROUNDS = 10


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    @job(NAME, limit=Limit(concurrency=1, key="account"), queue="default", base_delay=0)
    def handler(payload: dict[str, Any]) -> None: ...

    yield
    registry.forget(NAME)
    active_limits.forget_queues()


def register(*names: str) -> None:
    for name in names:
        leases.register(name, queues=[], threads=1)
    WorkerProcess.objects.update(lease_expires_at=DbNow() + timedelta(days=1))  # nobody beats here


def claimed(process_id: str, most: int = 1) -> list[ClaimedJob]:
    return claim("default", most, process_id)


def check_limit(most: int = 1) -> None:
    """Raise an AssertionError when one too many runs, or when a job is held back beside a free slot and nobody asks for it."""
    live = Job.objects.live().exclude(limit_key=None)
    for key in live.order_by().values_list("limit_key", flat=True).distinct():
        jobs = live.filter(limit_key=key)
        running = jobs.filter(status="running").count()
        held = jobs.held_back().count()
        asking = jobs.ready().count()
        assert running <= most, f"{running} run of key {key}\n{dump_rows()}"
        assert not held or asking or running == most, f"{held} of key {key} wait and nobody asks\n{dump_rows()}"


@pytest.mark.slow
def test_claims_of_many_processes_share_one_slot() -> None:
    names = [f"p{number}" for number in range(4)]
    for number in range(ROUNDS):
        register(*names)
        for job_number in range(8):
            submit(NAME, {"account": number}, job_id=f"{number}-{job_number}")
        taken = [one for found in run_in_threads([lambda n=n: claimed(n, 3) for n in names]) for one in found]
        assert [one.id for one in taken] == [f"{number}-0"], "one, and the first"
        check_limit()
        Job.objects.all().delete()


def test_settles_that_go_on_with_who_is_next_and_claims_share_the_slots() -> None:
    names = [f"p{number}" for number in range(4)]
    register(*names)
    for job_number in range(40):
        submit(NAME, {"account": job_number % 3}, job_id=f"{job_number:02}")

    def work(process_id: str) -> list[str]:
        """Claim, and settle as long as that claims more; look again in vain a few times."""
        found: list[str] = []
        for _ in range(ROUNDS):
            jobs = claimed(process_id, 3)
            while jobs:
                found += [one.id for one in jobs]
                running = Counter(Job.objects.filter(status="running").values_list("limit_key", flat=True))
                assert max(running.values()) == 1, dump_rows()
                handover = Handover(lambda queue: True, 3)
                assert settle_unlocked([Outcome.completed(one) for one in jobs], process_id, handover) == []
                jobs = handover.jobs
        return found

    done = [job_id for found in run_in_threads([lambda n=n: work(n) for n in names]) for job_id in found]
    done += work("p0")
    assert sorted(done) == [f"{number:02}" for number in range(40)], dump_rows()
    check_invariants()


@pytest.mark.slow
def test_claims_and_settles_of_many_processes_share_the_last_start_of_a_window() -> None:
    job("limited.rated", limit=Limit(rate="2/h", key="account"))(lambda payload: None)
    names = [f"p{number}" for number in range(4)]
    register(*names)
    try:
        for number in range(ROUNDS):
            for job_number in range(6):
                submit("limited.rated", {"account": number}, job_id=f"{number}-{job_number}")
            (first,) = claimed("p0")

            def start_and_settle(first: ClaimedJob = first) -> list[ClaimedJob]:
                assert starts.record_start(first.id, first.fence, first.rated)
                settle([Outcome.completed(first)], "p0")
                return []

            moves = [start_and_settle, *(lambda n=n: claimed(n, 3) for n in names[1:])]
            taken = [one for found in run_in_threads(moves) for one in found]
            assert [one.id for one in taken] == [f"{number}-1"], dump_rows()
            Job.objects.all().delete()
    finally:
        registry.forget("limited.rated")


def test_a_job_that_is_submitted_while_the_last_place_is_freed_is_not_left_behind() -> None:
    register("one", "two")
    for number in range(ROUNDS):
        submit(NAME, {"account": number}, job_id=f"{number}-first")
        (first,) = claimed("one")

        def arrive(number: int = number) -> list[ClaimedJob]:
            submit(NAME, {"account": number}, job_id=f"{number}-second")
            return claimed("two")

        _, second = run_in_threads([lambda first=first: settle([Outcome.completed(first)], "one"), arrive])
        check_limit()
        second += claimed("two")
        assert [one.id for one in second] == [f"{number}-second"]
        settle([Outcome.completed(one) for one in second], "two")


@pytest.mark.parametrize("ends", ["cancel", "delete", "rescue", "release", "dead", "snooze"])
@pytest.mark.slow
def test_whatever_ends_a_run_and_a_claim_at_the_same_moment(ends: str) -> None:
    for number in range(ROUNDS):
        process_id = f"holder-{number}"
        register(process_id, "two")
        for name in ("a", "b", "c"):
            submit(NAME, {"account": number}, job_id=f"{number}-{name}")
        (first,) = claimed(process_id)
        moves: dict[str, Callable[[], object]] = {
            "cancel": lambda: cancel([f"{number}-b"]),  # noqa: B023
            "delete": lambda: Job.objects.filter(pk=first.id).delete(),  # noqa: B023
            "rescue": lambda: rescue_process(process_id),  # noqa: B023
            "release": lambda: release([first]),  # noqa: B023
            "dead": lambda: settle([dead(first)], process_id),  # noqa: B023
            "snooze": lambda: settle([Outcome.snoozed(first, 60, "later")], process_id),  # noqa: B023
        }
        _, second = run_in_threads([moves[ends], lambda: claimed("two", 5)])
        if ends == "delete":
            slots.sweep()
        check_limit()
        settle([Outcome.completed(one) for one in second], "two")
        check_limit()
        Job.objects.all().delete()
    check_invariants()


def dead(one: ClaimedJob) -> Outcome:
    reason = DeadLetterReason.RETRIES_EXHAUSTED
    return Outcome(one, JobStatus.DEAD, AttemptOutcome.FAILED, reason=reason, error="as told")


@pytest.mark.slow
def test_a_limit_that_changes_while_jobs_are_claimed_leaves_nobody_behind() -> None:
    register("one", "two")
    limits.write_declared()
    for number in range(ROUNDS):
        for job_number in range(6):
            submit(NAME, {"account": number}, job_id=f"{number}-{job_number}")
        first = claimed("one", 6)
        run_in_threads(
            [
                lambda: limits.set_limit(f"type:{NAME}", concurrency=3),
                lambda first=first: settle([Outcome.completed(one) for one in first], "one"),
                lambda: claimed("two", 6),
            ]
        )
        slots.sweep()  # as workers do every few seconds: a claim may have gone by the old number
        check_limit(3)
        claimed("two", 6)
        assert Job.objects.filter(status="running").count() == 3
        limits.reset_limit(f"type:{NAME}")
        Job.objects.all().delete()


@pytest.mark.slow
def test_any_moves_in_any_order_keep_the_limit_and_leave_nobody_behind() -> None:
    """Six threads do what they like for a while; the end of it drains."""
    names = [f"p{number}" for number in range(6)]
    register(*names)
    worst: list[int] = []

    def mix(process_id: str, seed: int) -> None:
        chance = random.Random(seed)
        held: list[ClaimedJob] = []
        for turn in range(60):
            move = chance.choice(["submit", "submit", "claim", "claim", "settle", "settle", "cancel", "replay", "now"])
            key = chance.randrange(3)
            if move == "submit":
                delay = 0.001 if chance.random() < 0.2 else None
                depends_on = [held[0].id] if held and chance.random() < 0.2 else None
                submit(NAME, {"account": key}, delay=delay, depends_on=depends_on, priority=chance.randint(4, 6))
            elif move == "claim":
                promote()
                held += claimed(process_id, chance.randint(1, 4))
            elif move == "settle" and held:
                one = held.pop(chance.randrange(len(held)))
                if chance.random() < 0.2:
                    release([one])
                else:
                    kinds = [Outcome.completed(one), dead(one), Outcome.snoozed(one, 0.001, "later")]
                    settle([chance.choice(kinds)], process_id)
            elif move == "cancel":
                cancel(list(Job.objects.filter(status="pending").values_list("pk", flat=True)[:1]))
            elif move == "replay":
                replay(list(Job.objects.filter(status="dead").values_list("pk", flat=True)[:1]))
            elif move == "now":
                run_now(list(Job.objects.filter(status="scheduled").values_list("pk", flat=True)[:1]))
            if turn % 10 == 9:
                worst.extend(len(found) for found in running_by_key().values())
        settle([Outcome.completed(one) for one in held], process_id)

    def running_by_key() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pk, key in Job.objects.filter(status="running").values_list("pk", "limit_key"):
            found.setdefault(key, []).append(pk)
        return found

    run_in_threads([lambda name=name, seed=seed: mix(name, seed) for seed, name in enumerate(names)], timeout=300)
    assert max(worst, default=0) <= 1
    check_limit()
    for _ in range(1_000):
        promote()
        if not (jobs := claimed("p0", 10)):
            if not Job.objects.filter(status="scheduled").exists():
                break
            continue
        settle([Outcome.completed(one) for one in jobs], "p0")
        check_limit()
    assert not Job.objects.filter(pending_dependencies=0).live().exists(), dump_rows()
    check_invariants()
