"""A row that somebody else has locked holds up its own job alone, not those that ended at the same time."""

import asyncio
import threading
from typing import Any

import pytest

from django_jobs.models import Attempt, Job
from tests.support.locked import Locked
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql", "mariadb")]
JOBS = 40


@pytest.mark.parametrize(
    ("locked", "is_async", "fails"),
    [("j5", False, True), ("dependent of j5", False, False), ("j5", True, False), ("dependent of j5", True, True)],
)
@pytest.mark.slow
def test_a_locked_row_holds_up_its_job_alone(bench: Bench, locked: str, is_async: bool, fails: bool) -> None:
    gate = threading.Event()

    def end(payload: dict[str, Any]) -> None:
        if fails and payload["number"] == 5:
            raise ValueError("no")

    def wait(payload: dict[str, Any]) -> None:
        gate.wait(60)
        end(payload)

    async def await_it(payload: dict[str, Any]) -> None:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        end(payload)

    bench.handle("t.wait", await_it if is_async else wait, max_retries=0)
    jobs = [bench.submit("t.wait", {"number": number}, job_id=f"j{number}") for number in range(JOBS)]
    dependent = bench.submit("t.wait", {"number": -1}, job_id="dependent of j5", depends_on=[jobs[5]])
    process = bench.start(threads=8)
    wait_until(lambda: Job.objects.get(pk="j5").status == "running", 60, "the job to run")
    with Locked(locked):
        gate.set()
        wait_until(lambda: Job.objects.filter(status="completed").count() == JOBS - 1, 60, "the other jobs to end")
        assert Job.objects.get(pk="j5").status == "running"
        wait_until(lambda: process.held().keys() == {"j5"}, 60, "the others to be let go")
        more = bench.submit("t.wait", {"number": 7})
        assert more.wait(60).status == "completed"
    assert jobs[5].wait(60).status == ("dead" if fails else "completed")
    assert dependent.wait(60).status == ("failed" if fails else "completed")
    wait_until(process.has_nothing_to_do, 60, "the process to be at rest")
    assert Attempt.objects.count() == fails
