"""What a process asks of its database: counted, not timed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections
from django.db.backends.signals import connection_created

from django_jobs.lifecycle import leases
from django_jobs.models import Job, WorkerProcess
from django_jobs.models.fields import DbNow
from django_jobs.worker import maintenance, poller
from django_jobs.worker.lease import Lease
from django_jobs.worker.state import WorkerState
from django_jobs.worker.watch import ReadyWatch
from tests.support.databases import Database
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
POLL = 0.02
BURST = 5  # what comes every few seconds may all fall into a short count


class Statements:
    """An `execute_wrapper` that keeps the statements of every thread but the one that made it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._here = threading.get_ident()

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if threading.get_ident() != self._here:
            self.seen.append((threading.current_thread().name.partition(" ")[0], " ".join(str(sql).split())[:90]))
        return execute(sql, params, many, context)


@contextmanager
def counted() -> Iterator[Statements]:
    """Count what is asked on connections that are made while the block runs."""
    statements = Statements()

    def watch(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(statements)

    connection_created.connect(watch)
    try:
        yield statements
    finally:
        connection_created.disconnect(watch)


@pytest.mark.slow
def test_an_idle_process_asks_little(database: Database, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "LEASE_SECONDS": 3600}  # no beat or rescue falls into the count
    for name in ("TICK_SECONDS", "PRUNE_SECONDS"):
        monkeypatch.setattr(maintenance, name, 3600.0)
    monkeypatch.setattr(ReadyWatch, "paces", ((float("inf"), 1.0),))
    with counted() as statements, running_process(threads=4) as process:
        # Rests grow while nothing is found: it is idle once a rest is the longest.
        if database.vendor == "postgresql":
            wait_until(lambda: process.state.pollers.is_notified, 60, "notifications")
            wait_until(lambda: _polls(statements) >= 6, 60, "rests that have grown")
        else:
            wait_until(lambda: _polls(statements) >= 5, 60, "rests that have grown")
        wait_until(lambda: _looks_ahead(statements) >= 2, 60, "the end of the first round of maintenance")
        began = time.monotonic()
        statements.seen.clear()
        time.sleep(4)
        lasted = time.monotonic() - began
        seen = list(statements.seen)
    others = len(seen) - sum(thread == "worker" for thread, _ in seen)
    assert others <= 2 + 1.2 * lasted, seen
    if database.vendor == "postgresql":
        assert len(seen) <= 2 * lasted + BURST, seen
    else:
        per_interval = 1 if database.vendor == "sqlite" else 1.2
        assert len(seen) - others <= 2 + per_interval * lasted / POLL, "however many threads wait"


@pytest.mark.slow
def test_a_process_without_work_for_long_polls_less(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "LONG_IDLE_SECONDS", 0.3)
    monkeypatch.setattr(poller, "NOTIFIED_POLL_SECONDS", 5 * POLL)
    monkeypatch.setattr(ReadyWatch, "paces", ((float("inf"), 5.0),))
    with counted() as statements, running_process(threads=4):
        wait_until(lambda: _polls(statements) >= 25, 60, "rests that have grown")
        began = time.monotonic()
        statements.seen.clear()
        wait_until(lambda: _polls(statements) >= 8, what="more looks")
        seen, lasted = _polls(statements), time.monotonic() - began
    per_rest = 2 if database.vendor == "mariadb" else 1  # a question and a look
    assert seen <= 2 + per_rest * lasted / (5 * POLL)


def _polls(statements: Statements) -> int:
    looks = "WITH RECURSIVE found", "SELECT DISTINCT queue"
    return sum(thread == "worker" and sql.startswith(looks) for thread, sql in statements.seen)


def _looks_ahead(statements: Statements) -> int:
    return sum(thread == "maintenance" and sql.startswith("SELECT (SELECT") for thread, sql in statements.seen)


def test_a_heartbeat_is_one_statement_whatever_runs() -> None:
    """Fifty running jobs that are asked to stop, change nothing."""
    state = WorkerState()
    leases.register(state.id, queues=[], threads=50)
    JobFactory.create_batch(50, status="running", worker_id=state.id, fence=1, started_at=DbNow())
    Job.objects.update(cancel_requested_at=DbNow())
    seen: list[str] = []

    def watch(execute: Any, sql: Any, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    with connections["default"].execute_wrapper(watch):
        Lease(state).step()
    assert len(seen) == 1, seen
    assert WorkerProcess.objects.get().beat == 1


def test_a_request_to_cancel_reaches_a_running_job_with_the_look_at_its_row(bench: Bench) -> None:
    started = threading.Event()

    def wait_for_it(context: Any, payload: Any) -> None:
        started.set()
        while True:
            context.check_cancelled()
            time.sleep(0.01)

    bench.handle("t.endless", wait_for_it, takes_context=True)
    job = bench.submit("t.endless")
    process = bench.start()
    assert started.wait(60)
    Job.objects.filter(pk=job.pk).update(cancel_requested_at=DbNow())
    process.maintenance.look_at_requests()
    assert job.wait(60).status == "cancelled"
