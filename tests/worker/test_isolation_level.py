"""A worker's transactions are READ COMMITTED, whatever the site chose for its own."""

import pytest
from django.db import connection, transaction

from django_jobs.lifecycle import leases


@pytest.mark.databases("postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_site_with_serializable_requests_has_read_committed_workers() -> None:
    from psycopg import IsolationLevel

    leases.register("p", queues=[], threads=1)
    connection.ensure_connection()
    assert connection.connection is not None
    connection.connection.isolation_level = IsolationLevel.SERIALIZABLE  # as OPTIONS["isolation_level"] does

    def level() -> str:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            return str(cursor.fetchone()[0])

    try:
        assert level() == "serializable"
        leases.prepare_connection("p")
        assert level() == "read committed"
    finally:
        connection.close()
