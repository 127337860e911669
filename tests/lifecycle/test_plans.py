"""The hot statements read what they take and no more: the index gives the order, whatever else is in the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_jobs.due import queues_with_work
from django_jobs.ids import new_id
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.settle import Outcome, settle
from django_jobs.models import Job
from tests.support.factories import JobFactory
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)


def copies(job: Job, number: int) -> Iterator[Job]:
    """Yield jobs that differ in their ids alone; a factory for each would take most of the test's time."""
    values = {field.attname: getattr(job, field.attname) for field in Job._meta.concrete_fields if field.name != "id"}
    return (Job(id=new_id(), **values) for _ in range(number))


@pytest.fixture(autouse=True)
def a_full_table() -> None:
    leases.register("p", queues=[], threads=1)
    soon = timezone.now() + timedelta(hours=1)
    past = timezone.now() - timedelta(hours=1)
    Job.objects.bulk_create(
        [
            *copies(JobFactory.build(status="completed"), 3000),
            *(job for n in range(3) for job in copies(JobFactory.build(queue=f"q{n}"), 100)),
            *copies(JobFactory.build(status="scheduled", scheduled_at=soon, available_at=soon), 300),
            *copies(JobFactory.build(status="scheduled", scheduled_at=past, available_at=past), 20),
        ],
        batch_size=500,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE TABLE django_jobs_job" if connection.vendor == "mysql" else "ANALYZE")
        if connection.vendor == "mysql":
            cursor.fetchall()


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Record the statements that run in the block."""
    seen: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        yield seen


def plan_of(sql: str, params: Any) -> str:
    """Return the database's plan of a statement as text."""
    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN", "mysql": "EXPLAIN"}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"{explain} {sql}", params)
        return "\n".join(" ".join(str(value) for value in row) for row in cursor.fetchall())


def first_plan(statements: list[tuple[str, Any]]) -> str:
    """Return the plan of the first statement about jobs."""
    sql, params = next((sql, params) for sql, params in statements if "django_jobs_job" in sql)
    return plan_of(sql, params)


def test_a_claim_walks_the_index_of_ready_jobs_in_its_order() -> None:
    with recorded() as statements:
        assert len(claim("q1", 7, "p")) == 7
    plan = first_plan(statements)
    assert "django_jobs_job_ready" in plan, plan
    for sort in ("Sort", "filesort", "TEMP B-TREE"):
        assert sort not in plan, plan


def test_a_batch_is_claimed_and_settled_by_its_keys_without_reading_the_table() -> None:
    with recorded() as statements:
        jobs = claim("q1", 100, "p")
        settle([Outcome.completed(job) for job in jobs], "p")
    updates = [(sql, params) for sql, params in statements if "UPDATE" in sql and "django_jobs_job" in sql]
    assert len(updates) == 2 + (connection.vendor == "mysql")  # there a claim is picked FOR UPDATE first
    for sql, params in updates:
        plan = plan_of(sql, params)
        for whole in ("Seq Scan on django_jobs_job", "SCAN django_jobs_job", "job ALL"):
            assert whole not in plan, plan


def test_a_promotion_walks_the_index_of_due_jobs() -> None:
    with recorded() as statements:
        assert len(promote(limit=5)) == 5
    plan = first_plan(statements)
    assert "django_jobs_job_due" in plan, plan
    for sort in ("Sort", "filesort", "TEMP B-TREE"):
        assert sort not in plan, plan


def test_the_queues_with_work_are_found_by_hops_along_the_index() -> None:
    with recorded() as statements:
        assert sorted(queues_with_work()) == ["q0", "q1", "q2"]
    plan = first_plan(statements)
    assert "django_jobs_job_ready" in plan, plan


def test_a_claim_takes_one_or_two_statements() -> None:
    with recorded() as statements:
        claim("q1", 7, "p")
    assert len(statements) == (2 if connection.vendor == "mysql" else 1)


@pytest.mark.databases("postgresql", "mariadb")
def test_a_claim_locks_no_more_rows_than_it_takes() -> None:
    with transaction.atomic():
        mine = {job.id for job in claim("q1", 10, "p")}
        theirs: set[str] = set()
        run_in_threads(lambda: theirs.update(job.id for job in claim("q1", 90, "p")), 1)
    assert len(mine) == 10
    assert len(theirs) == 90
    assert not mine & theirs


@pytest.mark.databases("postgresql")
def test_a_job_enters_no_index_but_the_five_it_needs() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'django_jobs_job' ORDER BY 1")
        names = [name.removeprefix("django_jobs_job_") for (name,) in cursor.fetchall()]
    assert names == ["due", "held", "pkey", "ready", "unique"]
