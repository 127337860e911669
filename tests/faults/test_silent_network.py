"""A network that loses packets without a word, one way, the other or both: what runs behind it, and how soon it goes on."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection, connections

from django_jobs import NewJob, submit, submit_many
from django_jobs.models import Attempt, Job, WorkerProcess
from tests.support.databases import create_database, default_database_at, migrate, new_url
from tests.support.hosts import Host, host
from tests.support.invariants import check_drained
from tests.support.name_server import name_server
from tests.support.outages import end_connections
from tests.support.processes import Workers, spawn, spawn_workers
from tests.support.servers import PRIVATE_SERVERS, PrivateServer
from tests.support.slow_line import slow_line
from tests.support.waiting import wait_until

from .storm import open_jobs

pytestmark = pytest.mark.fault

LEASE = 12
OWN_QUEUE = "own"  # served by the host whose cable fails alone: it is no race with the other
SETTINGS = {"LEASE_SECONDS": LEASE, "BASE_DELAY": 0.05, "MAX_DELAY": 0.3}


class Site:
    """Two hosts with workers, behind cables of their own, before one server; `cut` is the one whose cable fails."""

    def __init__(self, cut: Host, workers: Workers, other: Workers) -> None:
        self.cut = cut
        self.workers = workers
        self.other = other
        self.submitted: list[str] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._submit, daemon=True)
        self._thread.start()

    def _submit(self) -> None:
        number = 0
        while not self._is_over.wait(0.1):
            types = ("effects.record_atomic", "effects.sleep", "effects.sleep_async", "effects.record")
            jobs = [NewJob(types[(number + each) % 4], {"seconds": 0.02}, max_retries=100) for each in range(8)]
            self.submitted += [job.pk for job in submit_many(jobs)]
            number += 1
        connections.close_all()

    def stop(self) -> None:
        """Submit nothing more."""
        self._is_over.set()
        self._thread.join(60)

    def finish(self) -> None:
        """Submit nothing more, and see all done and whole."""
        self.stop()
        wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
        for workers in (self.workers, self.other):
            workers.terminate()
            assert workers.wait(60) == 0
        check_drained(self.submitted, output=self.workers.output() + self.other.output())
        assert [*Job.objects.exclude(status="completed")] == []

    def processes(self) -> set[str]:
        """Return the names of the worker processes on the host that is cut off."""
        return set(WorkerProcess.objects.filter(pid__in=self.workers.pids()).values_list("id", flat=True))

    def done_by(self, names: set[str]) -> int:
        return Job.objects.filter(status="completed", worker_id__in=names).count()


@pytest.fixture(params=sorted(PRIVATE_SERVERS))
def site(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[Site]:
    with ExitStack() as stack:
        cut, near = stack.enter_context(host()), stack.enter_context(host())
        url = stack.enter_context(_database_for_hosts(request.param, tmp_path, django_db_blocker))
        workers = [
            stack.enter_context(_workers_on(cut, url)),
            stack.enter_context(_workers_on(near, url, "--queues", "default")),
        ]
        for one in workers:
            one.wait_ready(2, timeout=60)
        made = Site(cut, *workers)
        stack.callback(made.stop)
        yield made


@contextmanager
def _database_for_hosts(vendor: str, tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    """Give the URL of a database on a private server, migrated and `default`, that hosts reach."""
    with ExitStack() as stack:
        server = stack.enter_context(PRIVATE_SERVERS[vendor](addresses="*"))
        stack.enter_context(django_db_blocker.unblock())
        url = new_url(vendor, tmp_path, server.url)
        create_database(url)
        stack.enter_context(default_database_at(url))
        migrate()
        _let_hosts_in()
        yield url


def _let_hosts_in() -> None:
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("CREATE USER root@'10.214.%'")
            cursor.execute("GRANT ALL ON *.* TO root@'10.214.%'")


@contextmanager
def _workers_on(where: Host, url: str, *more: str, name: str = "") -> Iterator[Workers]:
    """Run workers on a host, with `more` arguments; `name` is what they call this machine, where it is not its address."""
    parts = urlsplit(url)
    account = (parts.username or "") + "@"
    env = {"DATABASE_URL": urlunsplit(parts._replace(netloc=f"{account}{name or where.gateway}:{parts.port}"))}
    arguments = ("runworkers", "--processes", "2", "--threads", "2", *more)
    with spawn(*arguments, program=where.program, env=env, settings=SETTINGS) as workers:
        yield workers


@pytest.mark.parametrize("direction", ["in", "out", "both"])
@pytest.mark.parametrize("seconds", [5, LEASE / 2, 3 * LEASE])
def test_a_host_that_is_cut_off(site: Site, direction: str, seconds: float) -> None:
    before = site.processes()
    wait_until(lambda: site.done_by(before) > 50, 60, "jobs that this host did")
    with site.cut.losing(direction):
        time.sleep(seconds)  # the silence itself
    back, done = time.monotonic(), Job.objects.filter(status="completed").count()
    names: set[str] = set()

    def goes_on() -> bool:
        names.update(site.processes())
        return Job.objects.filter(pk__in=site.submitted[-200:], status="completed", worker_id__in=names).exists()

    mark = len(site.submitted)
    wait_until(lambda: len(site.submitted) > mark + 200, 60, "new jobs")
    wait_until(goes_on, 90, "a new job that this host did")
    resumed = time.monotonic() - back
    after = site.processes()
    site.finish()
    crashed = Attempt.objects.filter(outcome="crashed").count()
    kept = "kept its processes" if after == before else "has new processes"
    print(
        f"\n{connection.vendor}, {direction}, {seconds:g} s: {done} done by then, {crashed} taken back; the host {kept},"
        f" and did a new job after {resumed:.1f} s"
    )
    if seconds <= LEASE / 2:
        assert after == before
        assert not crashed, "nobody who lives was rescued"


@pytest.mark.parametrize("share", [0.1])
def test_a_network_that_loses_a_tenth_of_its_packets(site: Site, share: float) -> None:
    before = site.processes()
    with site.cut.losing("both", share):
        began = time.monotonic()
        submitted = _submit(200, queue=OWN_QUEUE, max_retries=100)
        wait_until(lambda: not Job.objects.filter(pk__in=submitted).live().exists(), 240, "jobs of this host alone")
        seconds = time.monotonic() - began
        assert site.processes() == before
    site.submitted += submitted
    site.finish()
    attempts = Attempt.objects.count()
    print(
        f"\n{connection.vendor}: {len(submitted)} jobs of its own in {seconds:.0f} s; {attempts} attempts beside"
        f" {len(site.submitted)} jobs"
    )
    assert not Attempt.objects.filter(outcome="crashed").exists()


def _new_job_takes() -> float:
    """Submit a job and return the seconds until it is done."""
    began = time.monotonic()
    job = submit("effects.record", priority=10)
    wait_until(lambda: Job.objects.filter(pk=job.pk, status="completed").exists(), 60, "a new job")
    return time.monotonic() - began


def _submit(number: int, **options: Any) -> list[str]:
    types = ("effects.record_atomic", "effects.sleep", "effects.sleep_async", "effects.record")
    jobs = [NewJob(types[each % 4], {"seconds": 0.02}, **options) for each in range(number)]
    return [job.pk for job in submit_many(jobs)]


def _drain(workers: Workers, submitted: list[str]) -> None:
    wait_until(lambda: not Job.objects.filter(pk__in=submitted).live().exists(), 120, "the end of all jobs")
    workers.terminate()
    assert workers.wait(60) == 0
    check_drained(submitted, output=workers.output())
    assert [*Job.objects.exclude(status="completed")] == []
    assert not Attempt.objects.filter(outcome="crashed").exists(), "nobody who lives was rescued"


def test_a_server_that_is_200_ms_away(private_server: PrivateServer) -> None:
    with slow_line(
        urlunsplit(urlsplit(private_server.url)._replace(path=f"/{connection.settings_dict['NAME']}")), 0.2
    ) as url:
        began = time.monotonic()
        arguments = ("--processes", "2", "--threads", "2")
        with spawn_workers(*arguments, settings=SETTINGS, env={"DATABASE_URL": url}) as workers:
            workers.wait_ready(2, timeout=60)
            ready = time.monotonic() - began
            names = set(WorkerProcess.objects.values_list("id", flat=True))
            first = sorted(_new_job_takes() for _ in range(10))
            began, submitted = time.monotonic(), _submit(80)
            wait_until(lambda: not Job.objects.filter(pk__in=submitted).live().exists(), 120, "the end of all jobs")
            rate = len(submitted) / (time.monotonic() - began)
            assert set(WorkerProcess.objects.values_list("id", flat=True)) == names
            _drain(workers, submitted)
    print(
        f"\n{connection.vendor}, 200 ms: ready after {ready:.1f} s; a new job done after {first[0]:.1f} to {first[-1]:.1f} s;"
        f" {rate:.0f} jobs a second; {Attempt.objects.count()} attempts"
    )


@pytest.mark.parametrize("seconds", [3.0])
def test_a_name_server_that_answers_late(private_hosts: tuple[Host, str], seconds: float) -> None:
    """Each new connection waits for it; leases are kept meanwhile, and established sessions do not care."""
    where, url = private_hosts
    with name_server(where.name, where.gateway) as names:
        names.delay = seconds
        began = time.monotonic()
        with _workers_on(where, url, name="database.test") as workers:
            workers.wait_ready(2, timeout=60)
            ready = time.monotonic() - began
            before = set(WorkerProcess.objects.values_list("id", flat=True))
            first = _new_job_takes()
            submitted = _submit(200)
            end_connections()
            again = _new_job_takes()
            submitted += _submit(100)
            wait_until(lambda: not Job.objects.live().exists(), 120, "the end of all jobs")
            assert set(WorkerProcess.objects.values_list("id", flat=True)) == before, "leases were kept"
            _drain(workers, submitted)
    print(
        f"\n{connection.vendor}, answers after {seconds:g} s ({names.asked} questions): ready after {ready:.1f} s; a new job done"
        f" after {first:.1f} s, and after {again:.1f} s once the server had ended all sessions"
    )


@pytest.fixture(params=sorted(PRIVATE_SERVERS))
def private_hosts(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: Any) -> Iterator[tuple[Host, str]]:
    """Give a host and the URL of a database, migrated and `default`, that it reaches."""
    with ExitStack() as stack:
        where = stack.enter_context(host())
        yield where, stack.enter_context(_database_for_hosts(request.param, tmp_path, django_db_blocker))
