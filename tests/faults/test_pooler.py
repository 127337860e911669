"""Behind PgBouncer in transaction pooling workers share a few sessions: nothing is lost, each atomic effect comes once."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.db import connection

import django_jobs
from benchmarks.pooler import pooler, program
from django_jobs import NewJob
from django_jobs.models import Job
from tests.support.databases import Database
from tests.support.effects.models import Effect
from tests.support.ports import free_port
from tests.support.processes import spawn_workers
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.databases("postgresql"), pytest.mark.fault]
POOL = 6


@pytest.fixture
def pooled(database: Database) -> Iterator[str]:
    """The URL of the database under test through a PgBouncer of its own."""
    if program() is None:
        pytest.skip("pgbouncer is not installed")
    server, port = urlsplit(database.url), free_port()
    host, user = server.hostname or "", server.username or ""
    url = urlunsplit(server._replace(netloc=f"{user}@{host}:{port}"))

    def answers() -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(url).close()
            return True
        return False

    with pooler(host, server.port or 5432, own_port=port, pool=POOL, user=user):
        wait_until(answers, 30, "the pooler")
        yield url


def test_killed_workers_behind_a_pooler_lose_nothing(pooled: str) -> None:
    jobs = django_jobs.submit_many(
        [NewJob(("effects.record_atomic", "effects.record")[number % 2]) for number in range(1500)]
    )
    completed = Job.objects.filter(status="completed")
    settings = {"LEASE_SECONDS": 4}
    with spawn_workers(
        "--processes", "2", "--threads", "6", settings=settings, env={"DATABASE_URL": pooled}
    ) as workers:
        for enough in (100, 400, 700):
            wait_until(lambda enough=enough: completed.count() >= enough, 120, workers.output())
            os.kill(next(pid for pid in workers.pids() if pid != workers.pid), signal.SIGKILL)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            assert cursor.fetchone()[0] <= POOL
        wait_until(lambda: completed.count() == len(jobs), 180, workers.output())
    atomic = sorted(job.pk for job in jobs if job.job_type == "effects.record_atomic")
    assert sorted(Effect.objects.filter(job_id__in=atomic).values_list("job_id", flat=True)) == atomic
