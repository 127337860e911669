"""A server that ends every connection again and again: no process exits, nothing is lost, all goes on at once afterwards."""

import time

import pytest

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Job
from tests.support.databases import Database
from tests.support.invariants import check_drained
from tests.support.outages import keep_ending_connections
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql", "mariadb")]
SETTINGS = {"LEASE_SECONDS": 6, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3}


@pytest.mark.quick("mariadb")
def test_workers_live_through_connections_that_end() -> None:
    _cut(jobs=150, seconds=1.5, processes=1)


@pytest.mark.fault
def test_workers_live_through_twenty_seconds_of_connections_that_end(database: Database) -> None:
    recovery, ended = _cut(jobs=1_500, seconds=20, processes=2)
    print(f"\n{database.vendor}: {ended} connections ended, a job submitted afterwards done after {recovery:.2f} s")
    assert recovery <= 20  # seconds, on a busy machine


def _cut(jobs: int, seconds: float, processes: int) -> tuple[float, int]:
    """Return how long after the last cut a new job was completed, and how many connections were ended."""
    # What the server does to a handler's own statements is a failure of the handler, hence the retries.
    batch = [
        NewJob(
            "effects.record_atomic" if number % 4 == 0 else "effects.sleep",
            {"seconds": 0.01},
            job_id=f"cut-{number}",
            depends_on=[f"cut-{number - 1}"] if number % 10 == 9 else [],
            max_retries=100,
        )
        for number in range(jobs)
    ]
    submitted = [job.pk for job in submit_many(batch)]
    with spawn_workers("--processes", str(processes), "--threads", "4", settings=SETTINGS) as workers:
        workers.wait_ready(processes)
        before = workers.pids()
        ended = keep_ending_connections(seconds)
        last = time.monotonic()
        submitted.append(submit("effects.record", {}, priority=10).pk)
        wait_until(
            lambda: Job.objects.filter(pk=submitted[-1], status="completed").exists(), 60, "a job after the cuts"
        )
        recovery = time.monotonic() - last
        wait_until(lambda: open_jobs() == 0, 240, "the end of all jobs")
        assert workers.pids() == before, "no process was ended and replaced"
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(submitted, output=workers.output())
        assert ended > seconds, "connections were there to be ended"
    assert [*Job.objects.exclude(status="completed").values_list("pk", "status", "error")] == []
    return recovery, ended
