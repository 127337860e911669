"""Many producers and many consumers: every job is run once, none is lost, none is run twice."""

import itertools
from collections import Counter

import pytest

import django_jobs
from django_jobs import NewJob
from django_jobs.models import Attempt, Job
from tests.support.effects.models import Effect
from tests.support.in_process import running_process
from tests.support.invariants import check_invariants
from tests.support.processes import spawn_workers
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def produce_and_consume(jobs_per_producer: int) -> None:
    def produce() -> None:
        for _ in range(jobs_per_producer):
            django_jobs.submit("effects.record", {})

    total = 10 * jobs_per_producer
    with running_process(threads=5) as process:
        run_in_threads(produce, 10, timeout=300)
        wait_until(lambda: process.state.completed >= total, timeout=300, what="the jobs to be run")
        wait_until(lambda: not Job.objects.live().exists(), timeout=60, what="the jobs to be settled")
    assert Job.objects.counts_by_status()["completed"] == Job.objects.count() == total
    starts = Counter(Effect.objects.values_list("job_id", flat=True))
    assert len(starts) == total
    assert set(starts.values()) == {1}
    assert (process.state.completed, process.state.failed, Attempt.objects.count()) == (total, 0, 0)
    check_invariants()


def _run_until_both_have_run_one() -> int:
    """Submit jobs, one after another, until two processes have run one; return how many those were."""
    submitted = itertools.count(1)

    def both() -> int:
        django_jobs.submit("effects.record", {})
        number = next(submitted)
        done = Job.objects.filter(status="completed").order_by().values("worker_id").distinct()
        return number if done.count() == 2 else 0

    return wait_until(both, 120, "both processes to run a job")


def share(number: int) -> None:
    with spawn_workers("--threads", "4") as one, spawn_workers("--threads", "4") as other:
        # Both first: one would have run all of it before the other has begun to claim.
        before = _run_until_both_have_run_one()
        for start in range(0, number, 1000):
            batch = [NewJob("effects.record", {"n": n}, job_id=f"shared-{n}") for n in range(start, start + 1000)]
            django_jobs.submit_many(batch)
        wait_until(lambda: not Job.objects.live().exists(), 300, "the jobs to be run")
        for process in (one, other):
            process.terminate()
        assert (one.wait(timeout=60), other.wait(timeout=60)) == (0, 0), one.output() + other.output()
    starts = Counter(Effect.objects.values_list("job_id", flat=True))
    assert (len(starts), set(starts.values())) == (before + number, {1})
    workers = Counter(Job.objects.filter(pk__startswith="shared-").values_list("worker_id", flat=True))
    assert sum(workers.values()) == number
    assert len(workers) == 2, "both processes had a share"
    check_invariants()


@pytest.mark.slow
def test_ten_producers_and_five_consumers_lose_and_repeat_nothing() -> None:
    produce_and_consume(40)


@pytest.mark.load
def test_ten_producers_of_a_thousand_jobs_and_five_consumers_lose_and_repeat_nothing() -> None:
    produce_and_consume(1000)


@pytest.mark.slow
def test_two_processes_share_jobs_without_a_double_run() -> None:
    share(2000)


@pytest.mark.load
@pytest.mark.databases("postgresql")
def test_two_processes_share_twenty_thousand_jobs_without_a_double_run() -> None:
    share(20_000)
