"""SIGKILLs of random worker processes under a rate: no second holds more starts than may be, by the handlers' own records."""

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
    limited.declare_rated()
    yield
    registry.forget(limited.RATED)
    active_limits.forget_queues()


def storm(*, jobs: int, processes: int, every: float | None, seconds: float = 0.005) -> tuple[float, str]:
    """Submit, kill every so many seconds, wait for the end; return how long it took beside the ideal time, and the figures.

    Raises AssertionError when a second held too many starts, or a job is stuck.
    """
    submit_many([NewJob(limited.RATED, {"seconds": seconds}) for _ in range(jobs)])
    ideal = jobs / limited.PER_SECOND
    env = {"JOBS_TEST_RATES": "1"}
    with spawn_workers("--processes", str(processes), "--threads", "4", settings=SETTINGS, env=env) as workers:
        workers.wait_ready(timeout=60)
        kills = 0 if every is None else keep_killing(workers, every=every, lasts=ideal)
        wait_until(lambda: not Job.objects.live().exists(), 3 * ideal + 60, "the end of all jobs")
        workers.terminate()
        assert workers.wait(60) == 0
        check_drained(output=workers.output())
    starts = list(Effect.objects.filter(kind="start").order_by("at").values_list("at", flat=True))
    took = (starts[-1] - starts[0]).total_seconds()
    figures = (
        f"{jobs} jobs, {len(starts)} starts, {kills} kills, {Attempt.objects.count()} runs ended by them;"
        f" {took:.2f} s from the first start to the last, {took / ideal:.3f} of the ideal time; {nearest(starts)}"
    )
    return took / ideal, figures


def nearest(starts: list[datetime]) -> str:
    """Return how near a start and the hundredth after it came; raise AssertionError if that is within a second."""
    spans = [(late - early).total_seconds() for early, late in zip(starts, starts[limited.PER_SECOND :], strict=False)]
    too_near = [span for span in spans if span < 1.0]
    assert not too_near, (
        f"{len(too_near)} of {len(spans)} seconds held more than {limited.PER_SECOND}: {min(spans):.4f}"
    )
    return f"at the nearest {min(spans):.4f} s from a start to the hundredth after it"


@pytest.mark.quick("postgresql")
@pytest.mark.slow
def test_a_short_kill_storm_exceeds_no_rate_and_leaves_no_job_behind(database: Database) -> None:
    share, figures = storm(jobs=350, processes=2, every=0.9)
    print(f"\n{database.vendor}: {share:.3f}, {figures}")


@pytest.mark.fault
def test_a_full_kill_storm_exceeds_no_rate_and_loses_no_time(database: Database) -> None:
    share, figures = storm(jobs=2_000, processes=4, every=1.0)
    print(f"\n{database.vendor}: {figures}")
    assert share <= 1.1, figures
