"""A server that is killed, or takes no writes for a while: workers wait for it, say so once, and lose nothing."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import Error, connection

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Attempt, Job
from tests.support.invariants import check_drained
from tests.support.outages import read_only
from tests.support.proc import children, is_alive
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PrivateServer
from tests.support.waiting import wait_until

from .storm import open_jobs

# The lease outlasts the outage: what is to be seen here is waiting, not giving up.
SETTINGS = {"LEASE_SECONDS": 60, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3}
PROCESSES = 2


@pytest.mark.fault
def test_a_server_that_is_killed_and_comes_back_after_twenty_seconds(private_server: PrivateServer) -> None:
    resumed = _kill_and_start(private_server, seconds=20)
    print(f"\n{connection.vendor}: away for 20 s, a new job done {resumed:.1f} s after the server was back")
    assert resumed <= 30  # seconds, on a busy machine


def _kill_and_start(server: PrivateServer, seconds: float) -> float:
    """Kill the server under load, start it anew, and return how long after that a new job was completed."""
    submitted = _submit_load()
    with _workers() as workers:
        wait_until(lambda: Job.objects.filter(status="completed").count() > 50, 60, "some completed jobs")
        before = workers.pids()
        server.kill()
        connection.close()
        with pytest.raises(Error):
            submit("effects.record", {})
        connection.close()
        time.sleep(seconds)  # the outage itself
        server.start()
        back = time.monotonic()
        submitted.append(submit("effects.record", {}, priority=10).pk)
        wait_until(lambda: Job.objects.filter(pk=submitted[-1], status="completed").exists(), 60, "the first new job")
        resumed = time.monotonic() - back
        _finish(workers, before, submitted)
    return resumed


@pytest.mark.fault
def test_a_child_that_waits_for_the_server_before_it_has_a_name_leaves_with_its_supervisor(
    private_server: PrivateServer,
) -> None:
    with spawn_workers("--processes", "1", settings=SETTINGS) as workers:
        workers.wait_ready()
        (first,) = children(workers.pid)
        connection.close()
        private_server.kill()
        os.kill(first, signal.SIGKILL)
        child = wait_until(
            lambda: max((pid for pid in children(workers.pid) if pid != first), default=0), 60, "another"
        )
        workers.signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(child), 60, "the end of the child")
        private_server.start()


@pytest.mark.fault
def test_a_server_that_takes_no_writes_for_ten_seconds(private_server: PrivateServer) -> None:
    """Reads are answered all the time, which must not look as if all were well."""
    submitted = _submit_load(count=20)
    with _workers(_site_account(private_server)) as workers:
        wait_until(lambda: open_jobs() == 0, 60, "the first jobs")
        before = workers.pids()
        said = len(workers.output())
        with read_only():
            submitted += _submit_all_the_same(20)
            time.sleep(10)  # the time without writes
            lines = workers.output()[said:].splitlines()
        back = time.monotonic()
        wait_until(lambda: open_jobs() == 0, 60, "the jobs of that time")
        resumed = time.monotonic() - back
        print(
            f"\n{connection.vendor}: ten seconds without writes, {len(lines)} lines from {PROCESSES} processes, ",
            end="",
        )
        print(f"20 jobs done {resumed:.1f} s later")
        _finish(workers, before, submitted)
    assert len(lines) <= PROCESSES, lines
    assert resumed <= 30


def _submit_load(count: int = 3_000) -> list[str]:
    batch = [
        NewJob(
            "effects.record_atomic" if number % 4 == 0 else "effects.sleep",
            {"seconds": 0.01},
            job_id=f"load-{number}",
            depends_on=[f"load-{number - 1}"] if number % 10 == 9 else [],
            max_retries=100,
        )
        for number in range(count)
    ]
    return [job.pk for job in submit_many(batch)]


def _submit_all_the_same(count: int) -> list[str]:
    """Submit in a session that may write: on MariaDB ours may, on PostgreSQL it says so."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET default_transaction_read_only = off")
    return [job.pk for job in submit_many([NewJob("effects.record") for _ in range(count)])]


@contextmanager
def _workers(url: str | None = None) -> Iterator[Workers]:
    env = {"DATABASE_URL": url} if url else None
    with spawn_workers("--processes", str(PROCESSES), "--threads", "4", settings=SETTINGS, env=env) as workers:
        workers.wait_ready(PROCESSES, timeout=60)
        yield workers


def _finish(workers: Workers, before: list[int], submitted: list[str]) -> None:
    wait_until(lambda: open_jobs() == 0, 180, "the end of all jobs")
    assert workers.pids() == before, "no process was ended and replaced"
    workers.terminate()
    assert workers.wait(60) == 0
    check_drained(submitted, output=workers.output())
    assert [*Job.objects.exclude(status="completed").values_list("pk", "status", "error")] == []
    assert not Attempt.objects.filter(outcome="crashed").exists(), "nobody who lives was rescued"


def _site_account(server: PrivateServer) -> str | None:
    """Return the URL for an account that may not write when nobody may; None where every account is one."""
    if connection.vendor == "postgresql":
        return None
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE USER site@'127.0.0.1'")
        cursor.execute(f"GRANT ALL ON `{name}`.* TO site@'127.0.0.1'")
    parts = urlsplit(server.url)
    return urlunsplit(parts._replace(netloc=f"site@127.0.0.1:{parts.port}", path=f"/{name}"))
