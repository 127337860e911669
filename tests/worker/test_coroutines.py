"""Coroutine jobs that harm what they share: the thread of their database work."""

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from django_jobs.models import Job

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.databases("postgresql", "mariadb")  # SQLite has no server to end a session
def test_a_broken_connection_reaches_one_job_and_no_more(bench: Bench) -> None:
    async def count(payload: dict[str, Any]) -> int:
        return await sync_to_async(Job.objects.count)()

    async def break_it(payload: dict[str, Any]) -> None:
        await sync_to_async(_end_session)()

    bench.handle("t.count", count)
    bench.handle("t.break", break_it, max_retries=0)
    process = bench.start()
    statuses = [bench.submit(job_type).wait(20).status for job_type in ("t.count", "t.break", "t.count", "t.count")]
    process.stop(grace=10)
    assert statuses == ["completed", "dead", "completed", "completed"]


def _end_session() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            cursor.execute("SELECT CONNECTION_ID()")
            cursor.execute(f"KILL {cursor.fetchone()[0]}")
