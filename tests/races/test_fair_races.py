"""Turns and rates under moves at the same moment on real connections: each key gets its rounds, and nobody is left behind."""

from collections import Counter
from collections.abc import Iterator

import pytest

from django_jobs import Limit, NewJob, job, submit, submit_many
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, limits, slots, starts
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.lifecycle.settle import settle
from django_jobs.models import Job, LimitStart
from tests.support.invariants import check_invariants
from tests.support.threads import run_in_threads
from tests.support.waiting import dump_rows

pytestmark = pytest.mark.django_db(transaction=True)
NAME, LIMITED, RATED = "fair.raced", "fair.limited", "fair.rated"
ROUNDS = 6
PROCESSES = [f"p{number}" for number in range(4)]
KEYS = "abcde"


@pytest.fixture(autouse=True)
def keyed() -> Iterator[None]:
    job(NAME, fair_key="tenant")(lambda payload: None)
    job(LIMITED, fair_key="tenant", limit=Limit(concurrency=1))(lambda payload: None)
    job(RATED, fair_key="tenant", limit=Limit(rate="2/h"))(lambda payload: None)
    for name in PROCESSES:
        leases.register(name, queues=[], threads=1)
    yield
    for job_type in (NAME, LIMITED, RATED):
        registry.forget(job_type)
    active_limits.forget_queues()


def test_claims_of_many_processes_share_the_rounds_of_one_queue() -> None:
    submit_many([NewJob(NAME, {"tenant": key}) for key in KEYS for _ in range(20)])

    def claimed(process_id: str) -> list[str]:
        return [one.id for _ in range(5) for one in claim("default", 3, process_id)]

    taken = [job_id for some in run_in_threads([lambda n=n: claimed(n) for n in PROCESSES]) for job_id in some]
    assert len({*taken}) == len(taken)
    by_key = Counter(Job.objects.filter(status="running").values_list("fair_key", flat=True))
    assert by_key == dict.fromkeys(KEYS, len(PROCESSES) * 5 * 3 // len(KEYS))


def test_claims_of_many_processes_leave_no_job_of_any_key() -> None:
    submit_many(
        [
            NewJob(NAME, {"tenant": key})
            for key, number in zip(KEYS, (60, 1, 7, 2, 30), strict=True)
            for _ in range(number)
        ]
    )

    def drained(process_id: str) -> list[str]:
        found = []
        while jobs := claim("default", 7, process_id):
            found += [one.id for one in jobs]
        return found

    taken = [job_id for some in run_in_threads([lambda n=n: drained(n) for n in PROCESSES]) for job_id in some]
    assert len(taken) == 100
    assert len({*taken}) == 100
    assert not Job.objects.ready().exists()


# --- with a limit over all keys


def many(job_type: str, keys: str) -> None:
    submit_many([NewJob(job_type, {"tenant": key}) for key in keys])


def check_limit(most: int = 1) -> None:
    """Raise an AssertionError when one too many runs, or when a job is held back beside a free slot and nobody asks for it."""
    live = Job.objects.live()
    running, held = live.filter(status="running").count(), live.held_back().count()
    assert running <= most, dump_rows()
    assert not held or live.ready().exists() or running == most, dump_rows()


def end(jobs: list[ClaimedJob], process_id: str) -> None:
    settle([Outcome.completed(one) for one in jobs], process_id)


def drain(number: int) -> list[str]:
    """Claim one job and complete it, over and over; return the keys."""
    found = []
    for _ in range(number):
        jobs = claim("default", 1, "p0")
        found += [str(Job.objects.get(pk=one.id).fair_key) for one in jobs]
        end(jobs, "p0")
        check_limit()
    return found


@pytest.mark.slow
def test_a_key_that_is_submitted_while_the_only_slot_is_freed_gets_its_turn() -> None:
    for _ in range(ROUNDS):
        many(LIMITED, "aaaaa")
        first = claim("default", 1, "p0")

        def arrive() -> list[ClaimedJob]:
            submit(LIMITED, {"tenant": "b"})
            return claim("default", 1, "p1")

        _, second = run_in_threads([lambda first=first: end(first, "p0"), arrive])
        check_limit()
        taken = [str(Job.objects.get(pk=one.id).fair_key) for one in second]
        end(second, "p1")
        rest = drain(7)
        assert sorted(taken + rest) == [*"aaaab"], dump_rows()
        assert "b" in (taken + rest)[:4], "after the one that was let in before it came, and those of claims in between"


@pytest.mark.slow
def test_a_rescue_and_a_claim_of_jobs_with_keys() -> None:
    for number in range(ROUNDS):
        holder = f"holder-{number}"
        leases.register(holder, queues=[], threads=1)
        many(LIMITED, "aabb")
        assert len(claim("default", 1, holder)) == 1
        _, second = run_in_threads([lambda h=holder: rescue_process(h), lambda: claim("default", 3, "p1")])
        check_limit()
        end(second, "p1")
        Job.objects.filter(status="scheduled").delete()  # the rescued one, which tries again later
        drain(5)
        assert not Job.objects.live().exists(), dump_rows()
    check_invariants()


@pytest.mark.slow
def test_a_limit_that_changes_while_jobs_with_keys_are_claimed() -> None:
    limits.write_declared()
    for _ in range(ROUNDS):
        many(LIMITED, "aaabbb")
        first = claim("default", 6, "p0")
        run_in_threads(
            [
                lambda: limits.set_limit(f"type:{LIMITED}", concurrency=3),
                lambda first=first: end(first, "p0"),
                lambda: claim("default", 6, "p1"),
            ]
        )
        slots.sweep()  # as workers do every few seconds: a claim may have gone by the old number
        check_limit(3)
        claim("default", 6, "p1")
        keys = Job.objects.filter(status="running").values_list("fair_key", flat=True)
        assert len(keys) == 3, dump_rows()
        assert {*keys} == {"a", "b"}
        limits.reset_limit(f"type:{LIMITED}")
        Job.objects.all().delete()


# --- with a rate over all keys


def start(jobs: list[ClaimedJob]) -> int:
    return sum(starts.record_start(one.id, one.fence, one.rated) for one in jobs)


@pytest.mark.slow
def test_a_rescue_of_who_has_not_started_and_claims_share_the_starts() -> None:
    for number in range(ROUNDS):
        holder = f"holder-{number}"
        leases.register(holder, queues=[], threads=1)
        many(RATED, "aabbb")
        stale = claim("default", 5, holder)
        assert len(stale) == 2
        moves = [lambda h=holder: rescue_process(h), *(lambda n=n: claim("default", 5, n) for n in ("p0", "p1"))]
        _, one, two = run_in_threads(moves)
        assert len(one) + len(two) <= 2, dump_rows()
        assert start(stale) == 0
        assert start(one) + start(two) == len(one) + len(two)
        assert LimitStart.objects.count() <= 2
        Job.objects.all().delete()
        LimitStart.objects.all().delete()


@pytest.mark.slow
def test_a_rate_that_changes_while_jobs_are_claimed_and_submitted() -> None:
    limits.write_declared()
    for _ in range(ROUNDS):
        many(RATED, "aaabbb")
        _, one, two, _ = run_in_threads(
            [
                lambda: limits.set_limit(f"type:{RATED}", rate="4/h"),
                lambda: claim("default", 6, "p0"),
                lambda: claim("default", 6, "p1"),
                lambda: submit(RATED, {"tenant": "c"}),
            ]
        )
        slots.sweep()  # as workers do every few seconds: a claim may have gone by the old number
        taken = len(one) + len(two) + len(claim("default", 9, "p2"))
        assert taken == 4, dump_rows()
        assert claim("default", 9, "p2") == []
        limits.reset_limit(f"type:{RATED}")
        Job.objects.all().delete()
