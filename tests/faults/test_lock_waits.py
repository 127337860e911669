"""What waits for what on a server: no session of ours may stop the writes of others, nor a lease wait behind a row."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs import NewJob, submit_many
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.rescue import rescue_process
from django_jobs.models import Attempt, Job, WorkerProcess
from django_jobs.models.fields import DbNow
from tests.support.databases import Database, create_database, default_database_at, migrate, new_url
from tests.support.factories import JobFactory
from tests.support.processes import spawn_workers
from tests.support.servers import MariaDBOrMySQL, PrivateMariaDB
from tests.support.slow_line import slow_line
from tests.support.waiting import wait_until

from .storm import open_jobs


class Writer(threading.Thread):
    """Another application of the server: it writes a row twenty times a second, and knows the longest that it had to wait."""

    def __init__(self) -> None:
        super().__init__(name="another application", daemon=True)
        self.longest = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        other = connection.copy()
        other.inc_thread_sharing()
        with other.cursor() as cursor:
            while not self._end.wait(0.05):
                started = time.monotonic()
                cursor.execute("UPDATE another SET number = number + 1")
                self.longest = max(self.longest, time.monotonic() - started)
        other.close()

    def __enter__(self) -> "Writer":
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE another (number BIGINT)")
            cursor.execute("INSERT INTO another VALUES (0)")
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self.join(60)


@pytest.fixture
def private_mariadb(database: Database, tmp_path: Path, django_db_blocker: Any) -> Iterator[PrivateMariaDB]:
    """Give a MariaDB or MySQL of the test's own, migrated and `default`; our account may write while nobody else may.

    It asks for the `database` so that it runs only where MariaDB is tested.
    """
    with MariaDBOrMySQL() as server, django_db_blocker.unblock():
        url = new_url("mariadb", tmp_path, server.url)
        create_database(url)
        with default_database_at(url):
            migrate()
            yield server


def _site(server: PrivateMariaDB) -> str:
    """Make an account that may not write while the server is read-only; return its URL."""
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE USER site@'127.0.0.1'")
        cursor.execute(f"GRANT ALL ON `{name}`.* TO site@'127.0.0.1'")
    return urlunsplit(urlsplit(server.url)._replace(netloc=f"site@127.0.0.1:{server.port}", path=f"/{name}"))


def _set_read_only(seconds: float) -> float:
    """Make the server read-only for so long; return how long it took to become so."""
    with connection.cursor() as cursor:
        started = time.monotonic()
        cursor.execute("SET GLOBAL read_only = 1")
        taken = time.monotonic() - started
        time.sleep(seconds)
        cursor.execute("SET GLOBAL read_only = 0")
    return taken


@pytest.mark.slow
@pytest.mark.databases("mariadb")
@pytest.mark.parametrize(
    ("lease", "round_trip"),
    [(10, 0.0), *(pytest.param(*case, marks=pytest.mark.fault) for case in [(60, 0.0), (10, 0.1), (60, 0.1)])],
)
def test_a_server_that_becomes_read_only_while_threads_connect_goes_on_writing(
    lease: int, round_trip: float, private_mariadb: PrivateMariaDB
) -> None:
    """Each thread's connection once locked the one row of its process: writes stopped for 50 s, and leases were lost."""
    jobs = [
        NewJob("effects.record", job_id=f"job-{n}", depends_on=[f"job-{n - n % 20}"] if n % 20 else [])
        for n in range(1_000)
    ]
    submit_many(jobs)
    settings = {"LEASE_SECONDS": lease, "BASE_DELAY": 0.05}
    with slow_line(_site(private_mariadb), round_trip) as url, Writer() as writer:
        arguments = ("--processes", "2", "--threads", "32")
        with spawn_workers(*arguments, settings=settings, env={"DATABASE_URL": url}) as workers:
            wait_until(lambda: _sessions() > 6, 60, "threads that connect")
            taken = [_set_read_only(0.3) for _ in range(8)]
            workers.wait_ready(2)
            before = set(WorkerProcess.objects.values_list("id", flat=True))
            taken += [_set_read_only(1.0) for _ in range(3)]
            wait_until(lambda: open_jobs() == 0, 120, "the end of all jobs")
            assert set(WorkerProcess.objects.alive().values_list("id", flat=True)) == before
            workers.terminate()
            assert workers.wait(60) == 0
    print(
        f"\nlease {lease} s, round trip {round_trip * 1000:.0f} ms: the server took {max(taken):.2f} s to become read-only,"
        f" another application waited {writer.longest:.2f} s at most"
    )
    assert "lost its lease" not in workers.output()
    assert not Attempt.objects.filter(outcome__in=["crashed", "lease lost"]).exists()
    assert max(taken) < 30
    assert writer.longest < 30


def _sessions() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'site'")
        return int(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql", "mariadb")
def test_a_rescue_takes_its_jobs_in_batches() -> None:
    """Job by job, 64 of them took 65 s over a line of 200 ms a round trip."""
    leases.register("dead", queues=[], threads=1)
    JobFactory.create_batch(64, status="running", worker_id="dead", fence=1, started_at=DbNow())
    with CaptureQueriesContext(connection) as queries:
        assert rescue_process("dead") == 64
    assert not Job.objects.filter(status="running").exists()
    assert len(queries) < 40, queries.captured_queries


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("mariadb")
def test_our_sessions_wait_for_locks_only_so_long_and_the_sites_own_time_stays() -> None:
    names = ("innodb_lock_wait_timeout", "lock_wait_timeout")

    def waits() -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}")
            return list(cursor.fetchone())

    leases.prepare_connection("p")  # a lease of 60 seconds
    assert waits() == [15, 15]
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 77")
    leases.prepare_connection("p")
    assert waits() == [77, 15]
    connection.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("mariadb")
def test_a_beat_gives_up_a_locked_row_before_the_driver_gives_up_the_session() -> None:
    """Or else the server goes on waiting for each beat that nobody waits for any more."""
    found: list[list[int]] = []

    def beat() -> None:
        leases.limit_waits_of_loop()
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@SESSION.innodb_lock_wait_timeout, @@SESSION.lock_wait_timeout")
            found.append(list(cursor.fetchone()))
        connection.close()

    thread = threading.Thread(target=beat)
    thread.start()
    thread.join(60)
    assert found == [[7, 7]], "an eighth of a lease of 60 seconds; the driver reads for half of one"
