"""A worker's transactions are READ COMMITTED, whatever the site chose for its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from django_jobs.library import queue as library
from django_jobs.lifecycle import leases
from django_jobs.models import Job
from django_jobs.queue import JobQueue
from django_jobs.worker.local_process import stop_local_process


def level() -> str:
    """Return the isolation level of this thread's transactions."""
    asked = {"postgresql": "SHOW transaction_isolation", "mysql": "SELECT @@tx_isolation"}[connection.vendor]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(asked)
        return str(cursor.fetchone()[0]).lower().replace("-", " ")


@pytest.mark.databases("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_site_with_serializable_requests_has_read_committed_workers() -> None:
    from psycopg import IsolationLevel

    leases.register("p", queues=[], threads=1)
    connection.ensure_connection()
    assert connection.connection is not None
    connection.connection.isolation_level = IsolationLevel.SERIALIZABLE  # as OPTIONS["isolation_level"] does
    try:
        assert level() == "serializable"
        leases.prepare_connection("p")
        assert level() == "read committed"
    finally:
        connection.close()


@pytest.fixture
def repeatable_reads(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the site's connections have REPEATABLE READ, as their options say."""
    options = connection.settings_dict.setdefault("OPTIONS", {})
    if connection.vendor == "postgresql":
        from psycopg import IsolationLevel

        monkeypatch.setitem(options, "isolation_level", IsolationLevel.REPEATABLE_READ)
    else:
        monkeypatch.setitem(options, "isolation_level", "repeatable read")
    connection.close()
    yield
    stop_local_process()
    connection.close()


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("repeatable_reads")
def test_a_script_claims_at_read_committed_whatever_its_own_level_is(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []

    def noted(move: Callable[..., Any]) -> Callable[..., Any]:
        def move_and_note(*given: Any, **options: Any) -> Any:
            levels.append(level())
            return move(*given, **options)

        return move_and_note

    for name in ("claim", "move_to"):
        monkeypatch.setattr(library, name, noted(getattr(library, name)))
    queue = JobQueue("mail")
    first, second = queue.enqueue("any.type"), queue.enqueue("any.type")
    assert level() == "repeatable read"
    taken = queue.dequeue()
    assert taken is not None
    assert taken.id == first
    queue.update_status(second, "running")
    assert levels == ["read committed"] * 2
    assert {job.status for job in Job.objects.all()} == {"running"}
    for job_id in (first, second):
        queue.update_status(job_id, "completed")
    assert levels == ["read committed"] * 4
    assert level() == "repeatable read", "the script's own transactions are as they were"
