"""Threads that cannot start, break or die: the process ends with a message and an exit code, and its jobs run elsewhere."""

import time
from pathlib import Path

import pytest

from django_jobs import submit
from django_jobs.models import Attempt, Job, WorkerProcess
from django_jobs.monitoring.health import live as health_live
from django_jobs.worker.state import EXIT_RECYCLE
from tests.support.databases import Database
from tests.support.points.breaks import LOOPS, broken
from tests.support.processes import Workers, manage, spawn_workers
from tests.support.waiting import wait_until

from .test_silent_server import locked_table

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = {"LEASE_SECONDS": 1200, "SHUTDOWN_GRACE_SECONDS": 300}  # what waits for one of these takes too long

CASES = [
    *((thread, way) for thread in LOOPS for way in ("cannot start", "breaks at once", "breaks later")),
    ("event loop", "cannot start"),
    ("event loop", "breaks at once"),
]


@pytest.mark.slow
@pytest.mark.quick("sqlite")
@pytest.mark.parametrize(("thread", "way"), [case for case in CASES if case[0] != "listener"])
def test_a_process_without_one_of_its_threads_ends(thread: str, way: str, tmp_path: Path, database: Database) -> None:
    _see_it_end(thread, way, tmp_path / "count")


@pytest.mark.slow
@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("way", [way for thread, way in CASES if thread == "listener"])
def test_a_process_that_cannot_listen_ends(way: str, tmp_path: Path) -> None:
    _see_it_end("listener", way, tmp_path / "count")


def _see_it_end(thread: str, way: str, count: Path) -> None:
    job = submit("effects.record_async" if thread in ("coroutines", "event loop") else "effects.record")
    with spawn_workers("--threads", "2", settings=SETTINGS, env=broken(thread, way, count)) as workers:
        assert workers.wait() == EXIT_RECYCLE, workers.output()
        assert count.read_text(), "it has failed"
        _says_why(workers)
    assert not WorkerProcess.objects.exists(), "it has left in order"
    assert not Job.objects.filter(status="running").exists(), "and has handed back what it had"
    probe = manage("jobs", "health", settings=SETTINGS)
    assert (probe.returncode, probe.stderr) == (1, "no worker process is alive\n")
    with spawn_workers("--threads", "2", settings=SETTINGS):
        assert job.wait(60).status == "completed"


def _says_why(workers: Workers) -> None:
    assert workers.output().count("a thread of worker process") == 1, workers.output()


@pytest.mark.slow
@pytest.mark.quick("sqlite")
@pytest.mark.parametrize("thread", ["worker", "watchdog", "lifeline", "pulse"])
def test_a_supervisor_starts_another_child_until_its_threads_start(
    thread: str, tmp_path: Path, database: Database
) -> None:
    environment = broken(thread, "cannot start", tmp_path / "count", times=3)
    job = submit("effects.record")
    with spawn_workers("--processes", "1", "--threads", "1", settings=SETTINGS, env=environment) as workers:
        workers.wait_ready()
        assert job.wait(60).status == "completed"
        moments = [float(line) for line in (tmp_path / "count").read_text().splitlines()]
        assert len(moments) >= 4, "three failures, then a start that succeeded"
        workers.terminate()
        assert workers.wait() == 0
    assert workers.output().count("broke") == 3


@pytest.mark.slow
@pytest.mark.quick("sqlite")
def test_a_coroutine_that_ends_the_event_loop_is_a_crash_loop_and_takes_no_neighbour_along(database: Database) -> None:
    neighbours = [submit("effects.sleep_async", {"seconds": 0.5}) for _ in range(5)]
    breaker = submit("effects.break_loop", {}, max_retries=0, priority=10)
    settings = SETTINGS | {"BASE_DELAY": 0.05}
    with spawn_workers("--processes", "1", "--threads", "2", settings=settings) as workers:
        assert {job.wait(240).status for job in neighbours} == {"completed"}
        assert breaker.wait(60).status == "dead"
        workers.terminate()
        assert workers.wait() == 0
    assert Attempt.objects.filter(job=breaker, outcome="crashed").count() >= 1


@pytest.mark.slow
@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_probes_see_threads_that_look_for_no_work(threads: int) -> None:
    """A heartbeat alone is no worker: the threads of this one cannot get at the table of jobs any more."""
    settings = {"LEASE_SECONDS": 20}  # a starved process keeps it; its threads are silent after half of it
    with spawn_workers("--threads", str(threads), settings=settings) as workers:
        workers.wait_ready()
        assert manage("jobs", "health", settings=settings).returncode == 0
        with locked_table():  # `wait_until` would show the rows of that table
            end = time.monotonic() + 180
            while (silent := _silent()) < threads and time.monotonic() < end:
                time.sleep(0.1)
            is_alive, problems = WorkerProcess.objects.alive().exists(), health_live().problems
        assert (silent, is_alive) == (threads, True)
        assert problems == ["no thread of the worker processes of this machine looks for work"]
        wait_until(lambda: _silent() == 0, 60, "threads that look for work again")
        assert manage("jobs", "health", "--live", settings=settings).returncode == 0


def _silent() -> int:
    return WorkerProcess.objects.values_list("silent_threads", flat=True).get()
