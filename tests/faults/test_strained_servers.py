"""A full disk under the server, and a server out of connections."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import Error, connection

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Attempt, Job, WorkerProcess
from tests.support.databases import create_database, default_database_at, migrate, new_url
from tests.support.invariants import check_drained
from tests.support.processes import Workers, spawn_workers
from tests.support.servers import PRIVATE_SERVERS, PrivateServer
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.fault
SETTINGS = {"LEASE_SECONDS": 12, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3, "MAX_RETRIES": 100}
ARGUMENTS = ("--processes", "2", "--threads", "2")
DISK_MB = {"mariadb": 700, "postgresql": 250}


def _submit_some(number: int) -> list[str]:
    types = ("effects.record_atomic", "effects.sleep", "effects.sleep_async", "effects.record")
    return [job.pk for job in submit_many([NewJob(types[each % 4], {"seconds": 0.02}) for each in range(number)])]


def _submit_all_the_same() -> str:
    """Submit one job, however often that has to be tried."""

    def submitted() -> str:
        try:
            return str(submit("effects.record", priority=10).pk)
        except Error:
            connection.close()
            return ""

    return wait_until(submitted, 60, "a submit")


def _is_completed(job_id: str) -> bool:
    with suppress(Error):
        return Job.objects.filter(pk=job_id, status="completed").exists()
    connection.close()
    return False


def _finish(workers: Workers, submitted: list[str]) -> None:
    wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
    workers.terminate()
    assert workers.wait(60) == 0
    check_drained(submitted, output=workers.output())
    assert [*Job.objects.exclude(status="completed")] == []


@pytest.fixture(params=sorted(DISK_MB))
def small_disk(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[PrivateServer]:
    """Give a server, migrated and `default`, whose data is on a small disk of its own."""
    server = PRIVATE_SERVERS[request.param]()
    mounted = subprocess.run(
        [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={DISK_MB[request.param]}m,mode=700,uid={server.data.stat().st_uid}",
            "tmpfs",
            server.data,
        ],
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with server, django_db_blocker.unblock():
            url = new_url(request.param, tmp_path, server.url)
            create_database(url)
            with default_database_at(url):
                migrate()
                yield server
    finally:
        subprocess.run(["umount", server.data], check=False)


def test_a_full_disk_under_the_server(small_disk: PrivateServer) -> None:
    """It refuses writes, or ends; what was acknowledged is there when there is room again."""
    submitted = _submit_some(300)
    with spawn_workers(*ARGUMENTS, settings={**SETTINGS, "LEASE_SECONDS": 60}) as workers:
        wait_until(lambda: Job.objects.filter(status="completed").count() > 50, 60, "some completed jobs")
        ballast = small_disk.data / "ballast"
        _fill(ballast)
        refused, end = 0, time.monotonic() + 15
        while time.monotonic() < end:
            try:
                submitted.append(submit("effects.record", {"result": "x" * 100_000}).pk)
            except Error:
                refused += 1
                connection.close()
            time.sleep(0.05)
        assert refused, "the disk was never full"
        has_ended = _has_ended(small_disk)
        ballast.unlink()
        if has_ended:
            small_disk.restart()
        back = time.monotonic()
        submitted.append(_submit_all_the_same())
        wait_until(lambda: _is_completed(submitted[-1]), 60, "the first new job")
        resumed = time.monotonic() - back
        _finish(workers, submitted)
    what = "ended, and was started" if has_ended else "stayed"
    print(f"\n{small_disk.account}: {refused} submits refused; the server {what}; a new job done {resumed:.1f} s later")
    assert not Attempt.objects.filter(outcome="crashed").exists(), "nobody who lives was rescued"


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 2**20)


def _has_ended(server: PrivateServer) -> bool:
    process = server._process
    assert process is not None
    return process.poll() is not None


def test_a_server_out_of_connections(private_server: PrivateServer) -> None:
    """Sessions that are there go on; whoever needs a new one waits, and is there soon after some are free again."""
    submitted = _submit_some(100)
    with spawn_workers(*ARGUMENTS, settings=SETTINGS) as workers:
        workers.wait_ready(2, timeout=60)
        wait_until(lambda: Job.objects.filter(status="completed").count() > 50, 60, "some completed jobs")
        names = set(WorkerProcess.objects.values_list("id", flat=True))
        killed = WorkerProcess.objects.order_by("id")[0]
        with ExitStack() as taken:
            number = _take_all_connections(taken)
            os.kill(killed.pid, signal.SIGKILL)  # the one in its place cannot connect
            began = time.monotonic()
            while time.monotonic() - began < 12:
                submitted += _submit_some(4)
                time.sleep(0.1)
                number += _take_all_connections(taken)
            done = Job.objects.filter(pk__in=submitted[-200:], status="completed").count()
        free = time.monotonic()
        workers.wait_ready(2, timeout=60)
        ready = time.monotonic() - free
        assert len(names & set(WorkerProcess.objects.values_list("id", flat=True))) == 1, "the other one stayed"
        _finish(workers, submitted)
    said = workers.output().count("cannot be used, waiting for it")
    print(
        f"\n{private_server.account}: {number} connections taken; {done} of the last 200 jobs done meanwhile; both processes"
        f" were there {ready:.1f} s after they were free again; {said} lines of log"
    )
    assert done


def _take_all_connections(taken: ExitStack) -> int:
    """Open sessions until the server has none left; return how many these are."""
    number = 0
    while True:
        one = connection.copy()
        one.inc_thread_sharing()
        try:
            one.connect()
        except Exception:  # of whichever driver
            return number
        taken.callback(one.close)
        number += 1
