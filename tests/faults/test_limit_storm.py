"""SIGKILLs of random worker processes under limits: never more run than may, by the handlers' own records, and all complete."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import pytest

from django_jobs import NewJob, submit_many
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits
from django_jobs.models import Attempt, Job
from tests.support.databases import Database
from tests.support.effects import limited
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

from .storm import SETTINGS, keep_killing

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    limited.declare()
    yield
    for name in limited.TYPES:
        registry.forget(name)
    active_limits.forget_queues()


def storm(*, jobs: int, keys: int, processes: int, every: float, lasts: float, seconds: float, patience: float) -> str:
    """Submit, kill, wait for the end; return the figures. Raises AssertionError when a limit was exceeded or a job is stuck."""
    new = [
        NewJob(limited.TYPES[number % keys % limited.MOST], {"key": number % keys, "seconds": seconds})
        for number in range(jobs)
    ]
    random.shuffle(new)
    for start in range(0, jobs, 1_000):
        submit_many(new[start : start + 1_000])
    began = time.monotonic()
    env = {"JOBS_TEST_LIMITS": "1"}
    with spawn_workers("--processes", str(processes), "--threads", "4", settings=SETTINGS, env=env) as workers:
        workers.wait_ready(timeout=60)
        kills = keep_killing(workers, every=every, lasts=lasts)
        last_kill = time.monotonic()
        left = Job.objects.live().count()
        wait_until(lambda: not Job.objects.live().exists(), patience, "the end of all jobs")
        ended = time.monotonic()
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(output=workers.output())
    assert Job.objects.exclude(status="completed").count() == 0
    worst = exceeded()
    after = f"{left} jobs left at the last kill and done {ended - last_kill:.1f} s after it"
    return f"{jobs} jobs, {keys} keys, {kills} kills, {after}, {ended - began:.0f} s in all; at most at once: {worst}"


def exceeded() -> dict[str, int]:
    """Return how many of a key ran at once at most, by type; raise AssertionError where that is more than may.

    A run that was killed wrote no end. Its slot is taken until it is rescued, so until then it counts.
    """
    keys = {
        pk: (job_type, payload["key"]) for pk, job_type, payload in Job.objects.values_list("pk", "job_type", "payload")
    }
    crashed: dict[str, list[datetime]] = {}
    for job_id, moment in Attempt.objects.order_by("id").values_list("job_id", "ended_at"):
        crashed.setdefault(job_id, []).append(moment)
    ends = {
        (job_id, fence): at
        for job_id, fence, at in Effect.objects.filter(kind="end").values_list("job_id", "fence", "at")
    }
    events: dict[tuple[str, int], list[tuple[datetime, int]]] = {}
    for job_id, fence, start in Effect.objects.filter(kind="start").values_list("job_id", "fence", "at"):
        end = ends.get((job_id, fence)) or min(moment for moment in crashed[job_id] if moment >= start)
        events.setdefault(keys[job_id], []).extend([(start, 1), (end, -1)])
    worst: Counter[str] = Counter()
    for (job_type, key), moves in events.items():
        running = 0
        for moment, change in sorted(moves):
            running += change
            worst[job_type] = max(worst[job_type], running)
            most = int(job_type.rpartition("_")[2])
            assert running <= most, f"{running} of {job_type} with key {key} ran at {moment}, {most} may"
    return dict(worst)


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_a_short_kill_storm_exceeds_no_limit_and_leaves_no_job_behind(database: Database) -> None:
    figures = storm(jobs=400, keys=10, processes=2, every=0.8, lasts=4, seconds=0.02, patience=90)
    print(f"\n{database.vendor}: {figures}")


@pytest.mark.fault
def test_a_full_kill_storm_exceeds_no_limit_and_leaves_no_job_behind(database: Database) -> None:
    figures = storm(jobs=20_000, keys=50, processes=4, every=0.5, lasts=60, seconds=0.005, patience=600)
    print(f"\n{database.vendor}: {figures}")
