"""Schedules while worker processes are killed: no tick twice, and none missing with catch-up "all"."""

import os
import random
import signal
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import connections

from django_jobs.db.transactions import database_now
from django_jobs.models import Job, Schedule, ScheduleTick, WorkerProcess
from django_jobs.scheduling.store import create_schedule, disable
from django_jobs.scheduling.ticks import tick
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.processes import Workers, manage, spawn_workers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"LEASE_SECONDS": 2, "SHUTDOWN_GRACE_SECONDS": 2, "POLL_INTERVAL": 0.05}
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _no_declared_schedules(transactional_db: None) -> None:
    Schedule.objects.all().delete()


@pytest.mark.slow
def test_a_schedule_of_one_second_under_kills_for_six_seconds() -> None:
    _tick_every_second_under_kills(seconds=6)


@pytest.mark.fault
def test_a_schedule_of_one_second_under_kills_for_a_minute() -> None:
    _tick_every_second_under_kills(seconds=60)


def _tick_every_second_under_kills(seconds: float) -> None:
    choose = random.Random(seconds)
    with spawn_workers("--processes", "4", "--threads", "1", settings=SETTINGS) as workers:
        workers.wait_ready(processes=4)
        row = create_schedule("every second", "effects.record", every=1, catch_up="all")
        first = row.next_run_at
        assert first is not None
        end, kills = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            time.sleep(choose.uniform(0.5, 1.3))
            kills += _kill_one(workers, choose)
        until = database_now()
        wait_until(lambda: Schedule.objects.get().next_run_at > until, 60, "the ticks of the time under kills")
        disable("every second")
        wait_until(lambda: not Job.objects.live().exists(), 60, "all jobs to be finished")
        workers.terminate()
        workers.wait()
        output = workers.output()
    ticks = list(ScheduleTick.objects.order_by("due_at").values_list("due_at", "job_id"))
    moments = [moment for moment, _ in ticks]
    assert moments == [first + number * SECOND for number in range(len(ticks))]
    assert moments[-1] >= until - SECOND
    made = {job.pk: job.metadata["tick"] for job in Job.objects.all()}
    assert made == {job_id: moment.isoformat() for moment, job_id in ticks}
    assert not Job.objects.exclude(status="completed").exists()
    check_drained(output=output)
    print(f"{len(ticks)} ticks in {seconds:g} s under {kills} kills, {Effect.objects.count()} starts")
    assert kills >= seconds / 3
    assert len(ticks) >= seconds


def _kill_one(workers: Workers, choose: random.Random) -> int:
    """SIGKILL one of the processes that hold a lease, and say how many it was; those that boot still are let be."""
    alive = set(WorkerProcess.objects.alive().values_list("pid", flat=True)).intersection(workers.pids())
    if not alive:
        return 0
    with suppress(ProcessLookupError):
        os.kill(choose.choice(sorted(alive)), signal.SIGKILL)
    return 1


KILLED_AT = {
    "after the job is written": "ticks.submit_many",
    "after the tick is written": "ticks._submit",
    "before the commit": "ticks._take",
}
KILL_SELF = """
import os, signal
from unittest import mock
from django_jobs.db.transactions import transactional
from django_jobs.scheduling import ticks
def and_die(*args, **kwargs):
    getattr(original, "__wrapped__", original)(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
original = {target}
with mock.patch("django_jobs.scheduling.{target}", transactional(and_die)):
    ticks.tick()
"""


@pytest.mark.parametrize("target", KILLED_AT.values(), ids=KILLED_AT)
@pytest.mark.slow
def test_a_process_that_is_killed_inside_a_tick_leaves_it_to_the_next(target: str) -> None:
    create_schedule("hourly", "effects.record", every=3600)
    due = database_now() - SECOND
    Schedule.objects.update(next_run_at=due)
    killed = manage("shell", "-v", "0", "-c", KILL_SELF.format(target=target))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Job.objects.exists()
    assert Schedule.objects.get().next_run_at == due
    wait_until(lambda: bool(tick()) and ScheduleTick.objects.exists(), 60, "the dead session to let go of the row")
    assert Job.objects.count() == ScheduleTick.objects.count() == 1
    assert Schedule.objects.get().next_run_at == due + timedelta(hours=1)


@pytest.mark.slow
def test_drain_makes_the_ticks_that_are_due_and_runs_their_jobs() -> None:
    create_schedule("missed", "effects.record", every=60, catch_up="all")
    Schedule.objects.update(next_run_at=database_now() - timedelta(minutes=59, seconds=30))
    drained = manage("runworkers", "--drain", settings=SETTINGS)
    assert drained.returncode == 0, drained.stderr
    assert Job.objects.filter(status="completed").count() == Job.objects.count() == Effect.objects.count()
    assert Job.objects.count() in (60, 61)  # a minute may have passed meanwhile
    check_drained(output=drained.stderr)
    connections.close_all()
