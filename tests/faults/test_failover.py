"""A primary that fails over to its standby under load: what was acknowledged, what runs, and how soon."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import Error, connection, connections

from django_jobs import submit
from django_jobs.models import Attempt, DeadLetter, Job
from tests.support.databases import create_database, default_database_at, migrate, new_url
from tests.support.effects.models import Effect
from tests.support.invariants import check_drained
from tests.support.outages import frozen
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PrivatePostgres
from tests.support.standby import Standby, both
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.fault

SETTINGS = {"LEASE_SECONDS": 10, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3, "MAX_RETRIES": 100}
GOAL = 5.0  # seconds from the promotion to the first new job


class Producer:
    """Submits all the time, on whichever server takes writes, and keeps what was acknowledged and how far the server was then."""

    def __init__(self, position: Callable[[], int]) -> None:
        self.acknowledged: dict[str, int] = {}
        self._position = position
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Producer":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        number = 0
        while not self._is_over.wait(0.002):
            number += 1
            job_type = "effects.record_atomic" if number % 2 else "effects.sleep"
            try:
                job = submit(job_type, {"seconds": 0.01}, job_id=f"job-{number}")
                self.acknowledged[job.pk] = self._position()
            except Error:
                connections["default"].close()
        connections.close_all()


def _written() -> int:
    """Return how much the server has written to its log, in bytes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
        return int(cursor.fetchone()[0])


@pytest.fixture
def servers(tmp_path: Path, django_db_blocker: Any) -> Iterator[tuple[PrivatePostgres, Standby]]:
    """Give a primary, migrated, and its standby; `default` is whichever takes writes."""
    with PrivatePostgres() as primary, django_db_blocker.unblock():
        create_database(new_url("postgresql", tmp_path, primary.url))
        with default_database_at(new_url("postgresql", tmp_path, primary.url)):
            migrate()
        with Standby(primary) as standby, default_database_at(new_url("postgresql", tmp_path, both(primary, standby))):
            yield primary, standby


@contextmanager
def load(position: Callable[[], int] = _written) -> Iterator[tuple[Workers, Producer]]:
    """Let two workers run, and jobs be submitted, until the block ends; begin it when some are done."""
    with spawn_workers("--processes", "2", "--threads", "2", settings=SETTINGS) as workers:
        workers.wait_ready(2, timeout=60)
        with Producer(position) as producer:
            wait_until(lambda: Job.objects.filter(status="completed").count() > 200, 60, "jobs that are done")
            yield workers, producer


def first_new_job(promoted: float) -> float:
    """Return the seconds from the promotion until a job submitted after it was done."""
    connection.close()
    job = submit("effects.record", priority=10)
    wait_until(lambda: Job.objects.filter(pk=job.pk, status="completed").exists(), 60, "the first new job")
    return time.monotonic() - promoted


def drain(workers: Workers) -> None:
    """Wait for the end of all jobs and of the workers."""
    wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
    workers.terminate()
    assert workers.wait(60) == 0


def test_a_synchronous_standby_loses_nothing_that_was_acknowledged(servers: tuple[PrivatePostgres, Standby]) -> None:
    primary, standby = servers
    standby.wait_streaming(synchronous=True)
    with load() as (workers, producer):
        primary.kill()
        standby.promote()
        seconds = first_new_job(time.monotonic())
        wait_until(lambda: len(producer.acknowledged) > 400, 60, "jobs submitted to the new primary")
        producer.__exit__()
        drain(workers)
    print(f"\nsynchronous: {len(producer.acknowledged)} acknowledged, none lost; first new job after {seconds:.1f} s")
    check_drained(producer.acknowledged, output=workers.output())
    assert [*Job.objects.exclude(status="completed")] == []
    assert not Attempt.objects.filter(outcome="crashed").exists(), "nobody who lives was rescued"
    assert seconds < GOAL


def lose_what_was_not_received(
    position: Callable[[], int],
    stop_receiving: Callable[[], int],
    kill: Callable[[], object],
    take_over: Callable[[], object],
) -> None:
    """Kill a primary whose last second the other server has not received, promote that one, and see that no more is lost.

    Claims, settles and fences of that time are undone, and their runs are still there.
    """
    with load(position) as (workers, producer):
        received = stop_receiving()
        before = len(producer.acknowledged)
        wait_until(lambda: len(producer.acknowledged) > before + 100, 60, "jobs that the other server does not receive")
        kill()
        old = dict(producer.acknowledged)
        take_over()
        seconds = first_new_job(time.monotonic())
        count = len(producer.acknowledged)
        wait_until(lambda: len(producer.acknowledged) > count + 100, 60, "jobs submitted to the new primary")
        producer.__exit__()
        drain(workers)
    stored = set(Job.objects.values_list("pk", flat=True))
    lost = {job_id for job_id in producer.acknowledged if job_id not in stored}
    print(f"\nasynchronous: {len(lost)} of {len(old)} lost; first new job after {seconds:.1f} s")
    assert lost
    assert lost <= {job_id for job_id, place in old.items() if place > received}
    # A process that had claimed a job which is lost ran it all the same; only an atomic one's effects went with it.
    ran_all_the_same = Effect.objects.exclude(job_id__in=stored)
    assert {int(job_id.removeprefix("job-")) % 2 for job_id in ran_all_the_same.values_list("job_id", flat=True)} <= {0}
    ran_all_the_same.delete()
    check_drained(stored, output=workers.output())
    assert [*Job.objects.exclude(status="completed")] == []
    assert not DeadLetter.objects.exists()
    assert seconds < GOAL


def test_an_asynchronous_standby_loses_only_what_it_had_not_received(servers: tuple[PrivatePostgres, Standby]) -> None:
    primary, standby = servers
    standby.wait_streaming(synchronous=False)
    lose_what_was_not_received(_written, standby.stop_receiving, primary.kill, standby.promote)


def test_a_primary_that_falls_silent_and_comes_back_is_a_stranger(servers: tuple[PrivatePostgres, Standby]) -> None:
    """It takes writes again, and acknowledges no commit, for its standby has gone; a worker may have sessions on both."""
    primary, standby = servers
    standby.wait_streaming(synchronous=True)
    with load() as (workers, producer):
        connection.close()
        with frozen(primary):
            standby.promote()
            seconds = first_new_job(time.monotonic())
        count = len(producer.acknowledged)
        jobs = [submit("effects.record").pk for _ in range(20)]
        wait_until(lambda: Job.objects.filter(pk__in=jobs, status="completed").exists(), 60, "one of the new jobs")
        # The producer waits for the stranger, but for the answer to a commit that had reached the standby.
        assert len(producer.acknowledged) <= count + 1
        primary.kill()
        wait_until(lambda: len(producer.acknowledged) > count + 100, 60, "jobs submitted to the new primary")
        producer.__exit__()
        drain(workers)
    acknowledged, lease = len(producer.acknowledged), SETTINGS["LEASE_SECONDS"]
    print(f"\nstranger: {acknowledged} acknowledged, none lost; first new job after {seconds:.1f} s, lease {lease} s")
    check_drained([*producer.acknowledged, *jobs])
    assert [*Job.objects.exclude(status="completed")] == []
