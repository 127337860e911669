"""A server that does not answer any more, or a table that somebody has locked: starts, signals and exits do not wait for it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection

from django_jobs import NewJob, submit, submit_many
from django_jobs.db.connections import jobs_connection
from django_jobs.models import Job, WorkerProcess
from tests.support.outages import frozen
from tests.support.processes import Workers, manage, spawn_workers
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until

GRACE = 1
SETTINGS = {"LEASE_SECONDS": 600, "SHUTDOWN_GRACE_SECONDS": GRACE}  # what waits for an answer waits half a lease
LONGEST = 60  # a grace and two seconds on a machine that is free


@contextmanager
def locked_table() -> Iterator[None]:
    """Lock the table of jobs against everybody else."""
    other = jobs_connection().copy()
    other.inc_thread_sharing()
    with other.cursor() as cursor:
        if other.vendor == "postgresql":
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE django_jobs_job IN ACCESS EXCLUSIVE MODE")
        else:
            cursor.execute("LOCK TABLES django_jobs_job WRITE")
    try:
        yield
    finally:
        other.close()


def stop(workers: Workers) -> float:
    """Ask it to stop and return how long that took."""
    started = time.monotonic()
    workers.terminate()
    workers.wait(LONGEST)
    return time.monotonic() - started


def _connects(pid: int) -> bool:
    """Say whether a process has a socket open: a lone worker, or a supervisor, has one to the server before any other."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return any(link.startswith("socket:") for link in links)


def child_of(workers: Workers) -> int:
    return min(set(workers.pids()) - {workers.pid})


@pytest.mark.fault
@pytest.mark.parametrize("arguments", [(), ("--processes", "2")], ids=["alone", "supervised"])
def test_an_idle_process_obeys_while_the_server_is_silent(
    private_server: PrivateServer, arguments: tuple[str, ...]
) -> None:
    with spawn_workers("--threads", "2", *arguments, settings=SETTINGS) as workers:
        workers.wait_ready(2 if arguments else 1)
        connection.close()
        with frozen(private_server):
            time.sleep(1)  # some statement is on its way then
            seconds = stop(workers)
        assert not workers.pids()
    print(
        f"\n{connection.vendor}, {arguments or 'alone'}: ended {seconds:.1f} s after SIGTERM, with a grace of {GRACE} s"
    )


@pytest.mark.fault
@pytest.mark.parametrize("probe", ["", "--live", "--ready"], ids=["health", "live", "ready"])
def test_a_probe_says_that_the_server_is_silent(private_server: PrivateServer, probe: str) -> None:
    connection.close()
    with frozen(private_server):
        started = time.monotonic()
        probed = manage("jobs", "health", *filter(None, [probe]), settings=SETTINGS | {"LEASE_SECONDS": 20}, timeout=60)
        taken = time.monotonic() - started
    print(f"\n{connection.vendor}, health {probe}: {probed.stderr.strip()!r} after {taken:.1f} s")
    assert probed.returncode == 1
    assert probed.stderr.endswith("\nthe database 'default' cannot be used (OperationalError)\n"), (
        "after a line of the log"
    )


@pytest.mark.fault
@pytest.mark.parametrize("job_type", ["effects.sleep", "effects.sleep_async", "effects.record_atomic"])
@pytest.mark.parametrize("seconds", [0.5, 30])
def test_a_busy_process_obeys_while_the_server_is_silent(
    private_server: PrivateServer, job_type: str, seconds: float
) -> None:
    """What runs cannot be settled, or does not end: either way it is left to a rescuer."""
    with spawn_workers("--threads", "2", settings=SETTINGS) as workers:
        workers.wait_ready()
        submit_many([NewJob(job_type, {"seconds": seconds}) for _ in range(2)])
        wait_until(lambda: Job.objects.filter(status="running").count() == 2, 60, "two running jobs")
        time.sleep(0.2)  # a coroutine has to write its effect first
        connection.close()
        with frozen(private_server):
            time.sleep(1)
            taken = stop(workers)
        assert not workers.pids()
    print(
        f"\n{connection.vendor}, {job_type} of {seconds} s: ended {taken:.1f} s after SIGTERM, with a grace of {GRACE} s"
    )


@pytest.mark.fault
@pytest.mark.parametrize("arguments", [(), ("--processes", "2"), ("--drain",)], ids=["alone", "supervised", "draining"])
def test_a_process_that_starts_while_the_server_is_silent_obeys(
    private_server: PrivateServer, arguments: tuple[str, ...]
) -> None:
    """Its first questions, whether all is migrated and what it registers, are asked by others than the thread that obeys."""
    connection.close()
    with (
        frozen(private_server),
        spawn_workers("--threads", "2", "--queues", "unnamed", *arguments, settings=SETTINGS) as workers,
    ):
        wait_until(lambda: _connects(workers.pid), 60, "a connection")
        seconds = stop(workers)
        assert workers.wait() == 0
        assert not workers.pids()
    print(f"\n{connection.vendor}, {arguments or 'alone'}: ended {seconds:.1f} s after SIGTERM at its start")


@pytest.mark.fault
def test_a_supervisor_replaces_a_child_while_the_server_is_silent(private_server: PrivateServer) -> None:
    with spawn_workers("--threads", "1", "--processes", "2", settings=SETTINGS) as workers:
        workers.wait_ready(2)
        connection.close()
        with frozen(private_server):
            before = set(workers.pids())
            os.kill(child_of(workers), signal.SIGKILL)
            started = time.monotonic()
            wait_until(lambda: set(workers.pids()) - before, LONGEST, "a new child")
            seconds = time.monotonic() - started
            ended = stop(workers)
        assert not workers.pids()
    print(f"\n{connection.vendor}: a new child {seconds:.1f} s after the kill, the end {ended:.1f} s after SIGTERM")


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql", "mariadb")
def test_a_locked_table_holds_up_neither_a_new_child_nor_the_end() -> None:
    job = submit("effects.sleep", {"seconds": 30})
    with spawn_workers("--threads", "1", "--processes", "2", settings=SETTINGS) as workers:
        workers.wait_ready(2)
        wait_until(lambda: Job.objects.filter(status="running").exists(), 60, "the job runs")
        holder = Job.objects.values_list("worker_id", flat=True).get(pk=job.pk)
        pid = WorkerProcess.objects.values_list("pid", flat=True).get(pk=holder)
        with locked_table():
            before = set(workers.pids())
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: set(workers.pids()) - before, 60, "a new child")
            stop(workers)
        assert not workers.pids()
