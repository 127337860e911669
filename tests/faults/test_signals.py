"""Signals at bad moments: while a worker boots, in the middle of a claim, while the database is away. It just leaves."""

import signal
import time
from pathlib import Path

import pytest
from django.db import connection

from django_jobs import NewJob, submit_many
from django_jobs.models import Attempt, Job, WorkerProcess
from tests.support.effects.models import Effect
from tests.support.invariants import check_invariants
from tests.support.points import at_point
from tests.support.processes import spawn_workers
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until

SETTINGS = {"LEASE_SECONDS": 10, "SHUTDOWN_GRACE_SECONDS": 2, "BASE_DELAY": 0.05}
# Before our handlers are there the system's own apply: the process ends by the signal itself.
CODES = {signal.SIGTERM: {0, -signal.SIGTERM}, signal.SIGINT: {0, -signal.SIGINT}}


@pytest.mark.fault
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arguments", [(), ("--processes", "2")], ids=["alone", "supervised"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_the_start(number: signal.Signals, arguments: tuple[str, ...]) -> None:
    submitted = [job.pk for job in submit_many([NewJob("effects.sleep", {"seconds": 0.05}) for _ in range(200)])]
    seen = []
    for step in range(16):
        with spawn_workers("--threads", "2", *arguments, settings=SETTINGS) as workers:
            time.sleep(step * 0.25)  # the moment that is tried
            workers.signal(number)
            code = workers.wait(60)
        seen.append(code)
        assert code in CODES[number], f"{code} after {step * 0.25} s\n{workers.output()}"
        if number == signal.SIGTERM or code == 0:  # Python tells of a Ctrl-C that comes before any of our code runs
            check_invariants(submitted, output=workers.output())
        assert not workers.pids()
    print(f"\nexit codes by moment: {seen}")
    assert 0 in seen
    assert not Job.objects.filter(status="running").exists()
    assert not WorkerProcess.objects.exists()


@pytest.mark.quick("sqlite")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.fault)])
def test_a_signal_in_the_middle_of_a_claim_hands_the_jobs_back(number: signal.Signals, tmp_path: Path) -> None:
    submitted = [job.pk for job in submit_many([NewJob("effects.record") for _ in range(30)])]
    environment = at_point("after the claim commits", tmp_path / "count", times=1, number=number)
    with spawn_workers("--threads", "1", settings=SETTINGS, env=environment) as workers:
        assert workers.wait(60) == 0
        check_invariants(submitted, output=workers.output())
    assert not Job.objects.filter(status="running").exists()
    assert Job.objects.filter(status="completed").count() == Effect.objects.count()
    assert not Attempt.objects.exists(), "what had not started was handed back as if nothing had been"
    assert not WorkerProcess.objects.exists()


@pytest.mark.fault
@pytest.mark.parametrize("arguments", [(), ("--processes", "1")], ids=["alone", "supervised"])
def test_a_signal_while_the_database_is_away(private_server: PrivateServer, arguments: tuple[str, ...]) -> None:
    submitted = [job.pk for job in submit_many([NewJob("effects.sleep", {"seconds": 0.5}) for _ in range(40)])]
    with spawn_workers("--threads", "4", *arguments, settings=SETTINGS) as workers:
        wait_until(lambda: Effect.objects.count() >= 4, 60, "started jobs")
        private_server.kill()
        connection.close()
        time.sleep(1)  # until every thread has met the outage
        signalled_at = time.monotonic()
        workers.terminate()
        assert workers.wait(60) == 0
        print(f"\nit left {time.monotonic() - signalled_at:.1f} s after the signal, with a grace of 2 s")
        assert "Traceback" not in workers.output()
    private_server.start()
    check_invariants(submitted)
    with spawn_workers("--threads", "4", settings=SETTINGS) as workers:
        wait_until(lambda: not Job.objects.live().exists(), 60, "the jobs, those that were held included")
        workers.terminate()
        assert workers.wait(60) == 0
        check_invariants(submitted, output=workers.output())


@pytest.mark.fault
def test_a_signal_while_it_waits_for_a_database_that_is_away_from_the_start(private_server: PrivateServer) -> None:
    private_server.kill()
    connection.close()
    with spawn_workers("--threads", "1", settings=SETTINGS) as workers:
        wait_until(lambda: "waiting for it" in workers.output(), 60, "its word that it waits")
        workers.terminate()
        assert workers.wait(60) == 0
        assert "Traceback" not in workers.output()
