"""SIGKILL at named points of a job's way: nothing is lost, and after the settle has committed nothing is done twice."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from django_jobs import NewJob, submit_many
from django_jobs.models import Attempt, Job, Schedule, ScheduleTick
from django_jobs.scheduling.store import create_schedule, disable
from tests.support.databases import Database
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.points import POINTS, SETTLED, at_point
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"LEASE_SECONDS": 6, "BASE_DELAY": 0.05, "MAX_DELAY": 0.2, "POLL_INTERVAL": 0.05}
# The handler has not started yet: each job of one thread runs once.
STARTS_ONCE = {"after the claim commits", "before the handler"}


@pytest.mark.fault
@pytest.mark.parametrize("point", POINTS)
def test_ten_kills_at_a_point_lose_nothing(point: str, tmp_path: Path, database: Database) -> None:
    # Each kill makes suspects of a batch, and these run where no point is: so many that ten kills leave some others.
    starts, jobs = _kill_at(point, tmp_path / "count", times=10, jobs=300)
    print(f"\n{database.vendor}: 10 kills {point}: {jobs} jobs, {starts - jobs} started twice")


@pytest.mark.quick("sqlite")
@pytest.mark.slow
def test_a_kill_inside_the_wake_loses_no_wake(tmp_path: Path) -> None:
    _kill_at("inside the wake", tmp_path / "count", times=1, jobs=20)


def _kill_at(point: str, count_file: Path, *, times: int, jobs: int) -> tuple[int, int]:
    """Run jobs, a fifth of them atomic, half of them dependents, while processes die; return the starts and the jobs."""
    Schedule.objects.all().delete()
    batch = [
        NewJob(
            "effects.record_atomic" if number % 5 == 0 else "effects.record",
            {},
            job_id=f"job-{number}",
            depends_on=[f"job-{number - 1}"] if number % 2 else [],
        )
        for number in range(jobs)
    ]
    submitted = [job.pk for job in submit_many(batch)]
    if point == "inside a tick":
        create_schedule("every second", "effects.record", every=1, catch_up="all")
    environment = at_point(point, count_file, times=times)
    with spawn_workers("--processes", "2", "--threads", "1", settings=SETTINGS, env=environment) as workers:
        wait_until(lambda: count_file.exists() and count_file.stat().st_size > times, 240, f"{times} kills {point}")
        if point == "inside a tick":
            disable("every second")
        wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
        workers.terminate()
        assert workers.wait(60) == 0
        assert workers.output().count(f"ended with {-signal.SIGKILL}") == times
        check_drained(submitted, output=workers.output())
    assert [*Job.objects.exclude(status="completed").values_list("pk", "status", "error")] == []
    starts = Counter(Effect.objects.values_list("job_id", flat=True))
    if point in STARTS_ONCE:
        assert set(starts.values()) == {1}
    if point == SETTLED:
        # What was settled never runs again. A job that ran besides may: it is often the watchdog that settles, up to a tick
        # (50 ms) late, while the worker thread runs the next ones. Of ten kills one to three were in the watchdog, and 3 to 14
        # jobs of 300 started twice; each has its attempt that says crashed (`check_drained` looks at that job by job).
        settled = count_file.with_name(f"{count_file.name}.settled").read_text().split()
        assert len(settled) >= times
        assert {starts[job_id] for job_id in settled} == {1}
    assert sum(starts.values()) - len(starts) <= Attempt.objects.filter(outcome="crashed").count()
    moments = [*ScheduleTick.objects.order_by("due_at").values_list("due_at", flat=True)]
    assert len({moment.replace(microsecond=0) for moment in moments}) == len(moments)
    return sum(starts.values()), len(starts)
