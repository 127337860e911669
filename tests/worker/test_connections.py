"""How many connections a process holds, as the server counts them; whose they are; and that each has one user at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from django_jobs import signals
from django_jobs.db.connections import shared
from django_jobs.db.dialects import mariadb, postgresql
from django_jobs.models import Job
from django_jobs.worker import connections as module
from django_jobs.worker import thread as thread_module
from django_jobs.worker.connections import ProcessConnections
from django_jobs.worker.process import Process
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql", "mariadb")]

THREADS = 32
MOST = (
    4  # of a process whose handlers leave the database alone: lease, listener, and two for claims, settles and chores
)


_earlier: set[int] = set()  # sessions that other tests of this run have left open


@pytest.fixture(autouse=True)
def leave_out_earlier_sessions() -> Iterator[None]:
    _earlier.update(_all_sessions())
    yield
    _earlier.clear()


def _all_sessions() -> set[int]:
    """Return the server's numbers of the sessions on this database beside that of the test."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            if connection.vendor == "postgresql"
            else "SELECT id FROM information_schema.processlist"
            " WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command <> 'Killed'"
        )
        return {number for (number,) in cursor.fetchall()}


def sessions() -> int:
    """Return how many sessions of this test the server has."""
    return len(_all_sessions() - _earlier)


def few_sessions() -> bool:
    return 0 < sessions() <= MOST


class Crowd:
    """Jobs of which as many run at once as there are threads, until `part`."""

    def __init__(self, bench: Bench, work: Callable[[], object], **options: object) -> None:
        self._barrier = threading.Barrier(THREADS + 1)
        self._work = work
        self._bench = bench
        bench.handle("crowd", self._handle, **options)

    def _handle(self, payload: object) -> None:
        self._work()
        self._barrier.wait(60)
        self._barrier.wait(60)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Let all threads be busy with a job each in the block."""
        for _ in range(THREADS):
            self._bench.submit("crowd", max_retries=0)
        self._barrier.wait(60)
        try:
            yield
        finally:
            self._barrier.wait(60)
        wait_until(lambda: not Job.objects.exclude(status="completed").exists(), 60, "all are completed")


def query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.fixture
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(thread_module, "IDLE_SECONDS", 0.5)


def test_idle_threads_hold_no_connection(bench: Bench) -> None:
    process = bench.start(THREADS)
    wait_until(lambda: process.state.found_nothing, 60, "a look in vain")
    wait_until(few_sessions, 30, "few sessions")


def test_threads_whose_handlers_leave_the_database_alone_hold_no_connection(bench: Bench) -> None:
    crowd = Crowd(bench, lambda: None)
    bench.start(THREADS)
    for _ in range(3):
        with crowd.gathered():
            wait_until(few_sessions, 30, "few sessions while all threads run jobs")
    wait_until(few_sessions, 30, "few sessions after all is settled")


@pytest.mark.slow
def test_a_handler_that_asks_the_database_has_a_connection_until_its_thread_is_idle(
    bench: Bench, quickly_idle: None
) -> None:
    crowd = Crowd(bench, query)
    bench.start(THREADS)
    for _ in range(2):
        with crowd.gathered():
            assert sessions() >= THREADS
            wait_until(lambda: sessions() <= THREADS + MOST, 30, "one for each thread")
        wait_until(few_sessions, 30, "few sessions after a while")


@pytest.mark.slow
def test_atomic_handlers_run_in_sessions_that_bear_the_name_of_the_process(bench: Bench, quickly_idle: None) -> None:
    """By it a rescuer ends the open transaction of a process that is dead, whenever the connection was opened."""
    crowd = Crowd(bench, lambda: None, atomic=True)
    process = bench.start(THREADS)
    for _ in range(2):
        with crowd.gathered():
            assert named(process.id) >= THREADS
            # On a busy machine more are opened for the claims, and kept for a while.
            wait_until(
                lambda: named(process.id) <= THREADS + module.USUAL_NUMBER, 30, "one for each thread and the usual"
            )
        wait_until(few_sessions, 30, "few sessions after a while")


def named(process_id: str) -> int:
    """Return how many sessions bear the name of a process."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            name = postgresql.session_name(process_id)
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name])
            return int(cursor.fetchone()[0])
        names = [mariadb._lock_name(process_id, number) for number in range(mariadb.MOST_SESSIONS)]
        cursor.execute(f"SELECT {', '.join(['IS_USED_LOCK(%s)'] * len(names))}", names)
        return sum(holder is not None for holder in cursor.fetchone())


def session(payload: object) -> int:
    """Return the server's number of the session that asks."""
    number = "pg_backend_pid()" if connection.vendor == "postgresql" else "CONNECTION_ID()"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {number}")
        return int(cursor.fetchone()[0])


def test_a_session_that_a_handler_opens_is_kept_for_the_next_one(bench: Bench) -> None:
    """What sets it up, receivers of the site's included, is nothing that a handler has left in it."""

    def set_up(connection: Any, **rest: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET statement_timeout = 60000" if connection.vendor == "postgresql" else "SET wait_timeout = 60"
            )

    bench.handle("session", session)
    connection_created.connect(set_up)
    try:
        bench.start(1)
        results = [bench.submit("session").wait(60).result for _ in range(3)]
    finally:
        connection_created.disconnect(set_up)
    assert len(set(results)) == 1


def test_receivers_that_ask_for_the_class_of_djangos_connection_set_up_the_sessions_of_threads(bench: Bench) -> None:
    made: list[str] = []

    def set_up(connection: Any, **rest: object) -> None:
        if connection not in shared:
            made.append(threading.current_thread().name.partition(" ")[0])

    bench.handle("session", session)
    bench.handle("closes", lambda payload: connections["default"].close())
    connection_created.connect(set_up, sender=type(connections["default"]))
    try:
        bench.start(1)
        for name in ("session", "closes", "session"):
            bench.submit(name).wait(60)
    finally:
        connection_created.disconnect(set_up, sender=type(connections["default"]))
    assert made.count("worker") >= 2


@pytest.mark.slow
def test_a_session_that_the_server_has_ended_meanwhile_fails_no_handler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_module, "FRESH_SECONDS", 0.0)
    bench.handle("session", session)
    bench.start(1)
    for _ in range(3):
        job = bench.submit("session", max_retries=0).wait(60)
        assert job.status == "completed", job.error
        end(job.result)


def end(session: int) -> None:
    """End a session, and wait until the server has."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [session])
            return
        cursor.execute("KILL %s", [session])

    def is_gone() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM information_schema.processlist WHERE id = %s", [session])
            return cursor.fetchone()[0] == 0

    wait_until(is_gone, 60, "the session has ended")


@pytest.fixture
def lender() -> Iterator[ProcessConnections]:
    lender = ProcessConnections("p")
    lender.open()
    yield lender
    lender.close()
    wait_until(lambda: sessions() == 0, 60, "all are closed")


@pytest.mark.slow
def test_a_third_user_waits_a_moment_and_then_has_a_connection_that_is_closed_when_nobody_needs_it(
    lender: ProcessConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(module.USUAL_NUMBER + 1)

    def use() -> None:
        with lender.lent():
            query()
            together.wait(60)

    def is_back_to_the_usual() -> bool:
        with lender.lent():
            query()
        return sessions() == module.USUAL_NUMBER

    for _ in range(2):
        monkeypatch.setattr(module, "SPARE_SECONDS", 60.0)
        run_in_threads(use, module.USUAL_NUMBER + 1)
        before = _all_sessions() - _earlier
        run_in_threads(use, module.USUAL_NUMBER + 1)
        assert _all_sessions() - _earlier == before, "the same again: a busy server has no time to open others"
        assert sessions() == module.USUAL_NUMBER + 1
        monkeypatch.setattr(module, "SPARE_SECONDS", 0.2)
        wait_until(is_back_to_the_usual, 60, "the usual number")


def test_each_has_one_user_at_a_time(lender: ProcessConnections) -> None:
    used: set[int] = set()
    collisions: list[int] = []

    def use() -> None:
        for _ in range(50):
            with lender.lent():
                mine = id(connections["default"])
                if mine in used:
                    collisions.append(mine)
                used.add(mine)
                query()
                used.discard(mine)

    run_in_threads(use, 6)
    assert not collisions


def test_a_user_finds_his_own_connection_again_and_a_broken_one_is_not_lent_any_more(
    lender: ProcessConnections,
) -> None:
    own = connections["default"]
    with lender.lent():
        lent = connections["default"]
        assert lent is not own
        query()
        raw = lent.connection
        with lender.lent():
            assert connections["default"] is lent, "whoever has one needs no other"
    assert connections["default"] is own
    with lender.lent():
        assert connections["default"].connection is raw, "it is used again"
        connections["default"].set_autocommit(False)
    with lender.lent():
        assert connections["default"].connection is None, "a transaction was left in it"
        query()
    with pytest.raises(ZeroDivisionError), lender.lent():
        raise ZeroDivisionError
    with lender.lent():
        assert connections["default"].connection is None
    with transaction.atomic(), lender.lent():
        assert connections["default"] is own, "a caller goes on in his transaction"
    assert own not in shared


def test_a_receiver_that_leaves_a_transaction_open_stops_nobody(bench: Bench) -> None:
    """Receivers of signals run where the job is settled, on a connection that others use after them."""

    def leave(**rest: object) -> None:
        connections["default"].set_autocommit(False)

    bench.handle("nothing", lambda payload: None)
    signals.job_completed.connect(leave)
    try:
        assert bench.run(*[bench.submit("nothing") for _ in range(20)], threads=2) == ["completed"] * 20
    finally:
        signals.job_completed.disconnect(leave)


@pytest.mark.slow
def test_a_process_that_has_ended_holds_no_connection(bench: Bench) -> None:
    bench.handle("ask", lambda payload: query())
    process: Process = bench.start(2)
    bench.submit("ask").wait(60)
    assert process.stop(grace=10)
    wait_until(lambda: sessions() == 0, 60, "no session is left")
