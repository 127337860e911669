"""Handlers that fork: their children end when they are told to, and leave the worker's sessions alone."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_jobs import submit
from django_jobs.models import Job
from django_jobs.worker.forks import _after_fork
from tests.support.processes import spawn_workers

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--processes", "1")], ids=["alone", "supervised"])
def test_a_pool_is_terminated_as_in_plain_python(arguments: tuple[str, ...]) -> None:
    job = submit("effects.pool", {})
    with spawn_workers("--drain", "--threads", "1", *arguments) as workers:
        assert workers.wait(60) == 0, workers.output()
        assert not workers.pids(), "no forked child is left"
    job.refresh_from_db()
    assert job.status == "completed", job.error
    assert "receive" not in str(job.result["handlers"]), "the children have handlers of ours"
    assert job.result["seconds"] < 30, "terminate() did nothing, and the pool was waited for"


@pytest.mark.slow
def test_a_forked_child_has_sessions_of_its_own() -> None:
    # Another thread may hold locks of SQLite at the moment of a fork; the child would wait for them for ever.
    payload = {"queries": connection.vendor != "sqlite"}
    jobs = [submit("effects.forks_and_queries", payload) for _ in range(3)]
    after = submit("effects.sum_of_rows", {})
    with spawn_workers("--drain", "--threads", "1") as workers:
        assert workers.wait(60) == 0, workers.output()
    assert {job.pk: job.status for job in Job.objects.all()} == dict.fromkeys(
        [*(job.pk for job in jobs), after.pk], "completed"
    )
    after.refresh_from_db()
    assert after.result == 42


def of_a_child(look: Callable[[], object]) -> str:
    """Fork, and return as text what a function returns in the child."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        try:
            _after_fork()
            os.write(theirs, str(look()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.databases("postgresql", "mariadb")
def test_a_child_of_an_atomic_handler_may_begin_transactions_of_its_own() -> None:
    def look() -> bool:
        with transaction.atomic(durable=True):
            return Job.objects.exists()

    with transaction.atomic():
        assert of_a_child(look) == "False"


@pytest.mark.databases("postgresql")
def test_a_child_takes_no_session_of_its_parents_pool() -> None:
    pooled: Any = connections.create_connection("default")
    options = {**connections.settings["default"].get("OPTIONS", {}), "pool": {"min_size": 1, "max_size": 1}}
    pooled.settings_dict = {**pooled.settings_dict, "OPTIONS": options}

    def session() -> str:
        with pooled.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return str(cursor.fetchone()[0])

    try:
        mine = session()
        pooled.close()  # it goes back to the pool, open

        def look() -> str:
            pooled.connection = None
            return session()

        assert of_a_child(look) not in ("", mine)
        assert session() == mine
    finally:
        pooled.close()
        pooled.close_pool()
