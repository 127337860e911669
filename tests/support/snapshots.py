"""Transactions that stay open beside the workers: a report, a backup, a forgotten shell; and a request that commits late."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.db import connection, connections, transaction

from django_jobs.models import Job


@contextmanager
def old_snapshot() -> Iterator[None]:
    """Keep a snapshot on a connection of its own, so that nothing that dies meanwhile can be removed (PostgreSQL)."""
    other = cast(Any, connection).copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT COUNT(*) FROM django_jobs_job")
            yield
    finally:
        other.close()


@contextmanager
def uncommitted(job: Job) -> Iterator[None]:
    """Insert a job in a thread of its own, and commit it at the end of the block."""
    inserted, is_over = threading.Event(), threading.Event()

    def insert() -> None:
        with transaction.atomic():
            job.save(force_insert=True)
            inserted.set()
            is_over.wait(60)
        connections.close_all()

    thread = threading.Thread(target=insert, daemon=True)
    thread.start()
    assert inserted.wait(60)
    try:
        yield
    finally:
        is_over.set()
        thread.join(60)
