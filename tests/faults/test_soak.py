"""A soak: steady work and random faults for minutes; who survives them all must not grow.

`JOBS_SOAK_SECONDS` says how long (default 600). The jobs do well and badly in every way that leaves something
behind: failures with tracebacks, suspects, subprocesses, coroutines, dependents, transactions.
"""

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass

import pytest
from django.db import connection

from django_jobs import NewJob, submit_many
from django_jobs.models import Job
from tests.support.databases import Database
from tests.support.invariants import check_drained
from tests.support.proc import children, usage
from tests.support.processes import Workers, spawn_workers
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.fault]
SECONDS = float(os.environ.get("JOBS_SOAK_SECONDS", "600"))
SETTINGS = {"LEASE_SECONDS": 4, "BASE_DELAY": 0.05, "MAX_DELAY": 0.2}
JOBS_A_SECOND = 20
SAMPLE_SECONDS = 1.0
FAULT_SECONDS = (2.0, 6.0)


@dataclass(frozen=True)
class Sample:
    """What the survivor and the server held at one moment."""

    megabytes: float
    threads: int
    descriptors: int
    connections: int

    def __str__(self) -> str:
        return f"{self.megabytes:.0f} MB, {self.threads} threads, {self.descriptors} descriptors, {self.connections} sessions"


def _submit_some(number: int) -> list[str]:
    jobs = [
        NewJob("effects.record", {}, job_id=f"soak-{number}-0"),
        NewJob("effects.record_atomic", {"seconds": 0.005}, job_id=f"soak-{number}-1"),
        NewJob("effects.record_async", {}, job_id=f"soak-{number}-2"),
        NewJob("effects.flaky", {"failures": 1}, job_id=f"soak-{number}-3", max_retries=9),
        NewJob("effects.sleep", {"seconds": 0.05}, job_id=f"soak-{number}-4", depends_on=[f"soak-{number}-0"]),
    ]
    return [job.pk for job in submit_many(jobs)]


def _kill_one(storm: Workers, survivor: Workers) -> None:
    with suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(children(storm.pid)), signal.SIGKILL)


def _stop_one_for_a_while(storm: Workers, survivor: Workers) -> None:
    with suppress(ProcessLookupError, IndexError):
        pid = random.choice(children(storm.pid))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)


def _kill_a_subprocess(storm: Workers, survivor: Workers) -> None:
    with suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(children(survivor.pid)), signal.SIGKILL)


def _end_every_session(storm: Workers, survivor: Workers) -> None:
    """End the sessions of the workers, the survivor's included (not on SQLite, which has none)."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        elif connection.vendor == "mysql":
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            for (session,) in cursor.fetchall():
                with suppress(Exception):  # it has gone by itself
                    cursor.execute(f"KILL {int(session)}")


FAULTS: list[Callable[[Workers, Workers], None]] = [
    _kill_one,
    _kill_one,
    _stop_one_for_a_while,
    _kill_a_subprocess,
    _end_every_session,
]


def _sessions() -> int:
    if connection.vendor == "sqlite":
        return 0
    statement = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0])


def _median(samples: list[Sample]) -> Sample:
    return Sample(*(round(statistics.median(values), 1) for values in zip(*map(astuple, samples), strict=True)))


def test_a_worker_that_survives_minutes_of_faults_does_not_grow(database: Database) -> None:
    submitted: list[str] = []
    samples: list[Sample] = []
    faults = dict.fromkeys([fault.__name__ for fault in FAULTS], 0)
    with (
        spawn_workers("--threads", "4", settings=SETTINGS) as survivor,
        spawn_workers("--processes", "2", "--threads", "2", settings=SETTINGS) as storm,
    ):
        survivor.wait_ready(timeout=60)
        storm.wait_ready(timeout=60)
        began = time.monotonic()
        next_fault, next_sample = began + FAULT_SECONDS[0], began
        while (now := time.monotonic()) < began + SECONDS:
            if len(submitted) < (now - began) * JOBS_A_SECOND and open_jobs() < 20 * JOBS_A_SECOND:
                submitted += _submit_some(len(submitted))
            if now >= next_sample:
                one = usage(survivor.pid)
                samples.append(Sample(one.megabytes, one.threads, one.descriptors, _sessions()))
                next_sample = now + SAMPLE_SECONDS
            if now >= next_fault:
                fault = random.choice(FAULTS)
                fault(storm, survivor)
                faults[fault.__name__] += 1
                next_fault = now + random.uniform(*FAULT_SECONDS)
            time.sleep(0.02)
        wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
        for workers in (storm, survivor):
            assert workers.is_running(), "no fault ended a supervisor or the survivor"
            workers.terminate()
        for workers in (storm, survivor):
            assert workers.wait(60) == 0
        check_drained(submitted, output=survivor.output() + storm.output())
    quarter = len(samples) // 4
    before, after = _median(samples[quarter : 2 * quarter]), _median(samples[-quarter:])
    print(f"\n{database.vendor}: {len(submitted)} jobs in {SECONDS:.0f} s, faults {faults}\n  {before}\n  {after}")
    assert Job.objects.exclude(status="completed").count() == 0
    assert after.megabytes <= before.megabytes * 1.1 + 2, (before, after)
    assert after.threads <= before.threads + 2, (before, after)
    assert after.descriptors <= before.descriptors + 4, (before, after)
    assert after.connections <= before.connections + 4, (before, after)
