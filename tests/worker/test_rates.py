"""Rates in a process that runs, for each kind of handler: no more start than the rate says, the others in their turn."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from django_jobs import Limit, job, submit
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits
from django_jobs.models import Attempt, Job, LimitStart
from django_jobs.queue import JobQueue
from django_jobs.testing import advance_time
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "rated.run"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    registry.forget(NAME)
    active_limits.forget_queues()


async def as_coroutine(payload: dict[str, Any]) -> int:
    return int(payload["n"])


def in_a_child(payload: dict[str, Any]) -> int:
    return int(payload["n"])


def run_until(completed: int, bench: Bench) -> None:
    """Run a process until so many jobs are completed and the others are held back."""
    process = bench.start(threads=4)

    def is_done() -> bool:
        live = Job.objects.live()
        return Job.objects.filter(status="completed").count() >= completed and live.held_back().count() == live.count()

    wait_until(is_done, 60, f"{completed} jobs completed and the others held back")
    process.stop(grace=10)
    assert Job.objects.filter(status="completed").count() == completed
    assert LimitStart.objects.count() == completed
    assert not Attempt.objects.exists(), "who waits for a rate spends no retry"


@pytest.mark.parametrize(
    ("handler", "options"), [(as_coroutine, {}), (in_a_child, {"isolation": "process"})], ids=["coroutine", "process"]
)
@pytest.mark.slow
def test_a_rate_counts_the_starts_of_every_kind_of_handler(
    handler: Callable[..., Any], options: dict[str, Any], bench: Bench
) -> None:
    job(NAME, limit=Limit(rate="2/h"), **options)(handler)
    jobs = [submit(NAME, {"n": number}) for number in range(5)]
    for completed in (2, 4, 5):
        run_until(completed, bench)
        advance_time(HOUR)
    assert [Job.objects.get(pk=one.pk).result for one in jobs] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_child_counts_the_starts_of_a_rate_that_only_a_queue_object_declares(bench: Bench) -> None:
    queue = JobQueue("mail", limit=Limit(rate="2/h"))
    for number in range(5):
        queue.enqueue("effects.greet", {"name": str(number)})
    run_until(2, bench)
    advance_time(HOUR)
    run_until(4, bench)


def test_a_rate_counts_each_job_of_a_list(bench: Bench) -> None:
    lists: list[list[int]] = []

    @job(NAME, limit=Limit(rate="3/h"), bulk=10)
    def handler(payloads: list[dict[str, Any]]) -> None:
        lists.append([payload["n"] for payload in payloads])

    for number in range(5):
        submit(NAME, {"n": number})
    run_until(3, bench)
    advance_time(HOUR)
    run_until(5, bench)
    assert sorted(n for numbers in lists for n in numbers) == [0, 1, 2, 3, 4]


def test_a_list_of_coroutines_waits_for_its_rate_by_each_key(bench: Bench) -> None:
    lists: list[list[str]] = []

    @job(NAME, limit=Limit(rate="1/h", key="account"), bulk=10)
    async def handler(payloads: list[dict[str, Any]]) -> None:
        lists.append([payload["account"] for payload in payloads])

    for account in "aabbc":
        submit(NAME, {"account": account})
    run_until(3, bench)
    assert sorted(key for keys in lists for key in keys) == ["a", "b", "c"]
    advance_time(HOUR)
    run_until(5, bench)
