"""The hot statements read what they take and no more: the index gives the order, whatever else is in the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import pytest
from django.db import connection, transaction
from django.utils import timezone

import django_jobs
from django_jobs import Limit, NewJob, job, submit_many
from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.words import KEYED, Place, Stretch
from django_jobs.due import queues_with_work
from django_jobs.handlers import registry
from django_jobs.ids import new_id
from django_jobs.lifecycle import active_limits, leases, slots, turns
from django_jobs.lifecycle.claim import claim
from django_jobs.lifecycle.outcome import Outcome
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.settle import Handover, settle, settle_unlocked
from django_jobs.models import Job, LimitSlot
from django_jobs.models.fields import DbNow
from tests.support.factories import JobFactory
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)


def copies(job: Job, number: int) -> Iterator[Job]:
    """Yield jobs that differ in their ids alone; a factory for each would take most of the test's time."""
    values = {field.attname: getattr(job, field.attname) for field in Job._meta.concrete_fields if field.name != "id"}
    return (Job(id=new_id(), **values) for _ in range(number))


def analyze() -> None:
    """Let the planner know what is in the table now."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE TABLE django_jobs_job" if connection.vendor == "mysql" else "ANALYZE")
        if connection.vendor == "mysql":
            cursor.fetchall()


@pytest.fixture(autouse=True)
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a look for fair keys has found hold for the test, however slow it is, as it holds for a second elsewhere."""
    monkeypatch.setattr(turns, "LOOK_SECONDS", 3600.0)


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
    analyze()


@contextmanager
def limited_many(queue: str, concurrency: int) -> Iterator[None]:
    """Let there be a job type of a queue with a limit."""
    job("limited.many", queue=queue, limit=Limit(concurrency=concurrency))(lambda payload: None)
    try:
        yield
    finally:
        registry.forget("limited.many")


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """Record the statements that run in the block, apart from looks for fair keys: one in a queue at most."""
    seen: list[tuple[str, Any]] = []
    looks: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        (looks if is_look_for_keys(sql) else seen).append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        yield seen
    queues = [queue for _, (queue,) in looks]
    assert len(queues) == len({*queues}), f"a process looks once a second in each queue: {queues}"


def is_look_for_keys(sql: str) -> bool:
    """Say whether a statement asks if a queue has ready jobs with fair keys."""
    return KEYED in sql and sql.endswith("LIMIT 1")


def plan_of(sql: str, params: Any) -> str:
    """Return the database's plan of a statement as text, without MySQL's line for the table that an INSERT writes."""
    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN", "mysql": "EXPLAIN"}[connection.vendor]
    if connection.vendor == "mysql" and not cast(Any, connection).mysql_is_mariadb:
        explain += (
            " FORMAT=TRADITIONAL"  # MySQL 9 draws a tree otherwise, without the indexes of rows that it reads at once
        )
    with connection.cursor() as cursor:
        cursor.execute(f"{explain} {sql}", params)
        lines = [" ".join(str(value) for value in row) for row in cursor.fetchall()]
        return "\n".join(line for line in lines if not line.startswith("1 INSERT "))


def cost_of(sql: str, params: Any) -> float:
    """Return what PostgreSQL's planner takes a statement for, in its units."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
        return float(cursor.fetchone()[0][0]["Plan"]["Total Cost"])


def first_plan(statements: list[tuple[str, Any]]) -> str:
    """Return the plan of the first statement about jobs."""
    sql, params = next((sql, params) for sql, params in statements if "django_jobs_job" in sql)
    return plan_of(sql, params)


@pytest.mark.slow
def test_a_claim_walks_the_index_of_ready_jobs_in_its_order() -> None:
    with recorded() as statements:
        assert len(claim("q1", 7, "p")) == 7
    plan = first_plan(statements)
    assert "django_jobs_job_ready" in plan, plan
    for sort in ("Sort", "filesort", "TEMP B-TREE"):
        assert sort not in plan, plan


@pytest.mark.slow
def test_a_look_for_fair_keys_walks_over_no_jobs_without_one_and_holds_for_the_next_claims() -> None:
    looks: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if is_look_for_keys(sql):
            looks.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        assert [len(claim("q1", 7, "p")) for _ in range(3)] == [7, 7, 7]
    assert [params for _, params in looks] == [("q1",)]
    plan = plan_of(*looks[0])
    # MariaDB's index has the jobs without a key, too, in front of the others of their rank: it hops over them.
    index = "Using index for group-by" if connection.vendor == "mysql" else "django_jobs_job_fair"
    assert index in plan, plan


@pytest.mark.slow
def test_an_aged_claim_reads_the_first_jobs_of_each_rank_in_the_order_of_the_index() -> None:
    Job.objects.bulk_create(copies(JobFactory.build(queue="q1", priority=9), 100))
    with recorded() as statements:
        assert len(claim("q1", 7, "p", ageing=600.0)) == 7
    looks = [(sql, params) for sql, params in statements if "django_jobs_job" in sql]
    assert len(looks) <= 3 + 2 * (connection.vendor == "mysql"), (
        "the ranks, their shares, a claim for each that has one"
    )
    for sql, params in looks[:3]:
        plan = plan_of(sql, params)
        assert "django_jobs_job_ready" in plan, plan
        for whole in ("Seq Scan on django_jobs_job", "SCAN django_jobs_job"):
            assert whole not in plan, plan
    if connection.vendor == "mysql":
        assert "Using index for group-by" in plan_of(*looks[0])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_promotion_walks_the_index_of_due_jobs() -> None:
    with recorded() as statements:
        assert len(promote(limit=5)) == 5
    plan = first_plan(statements)
    assert "django_jobs_job_due" in plan, plan
    for sort in ("Sort", "filesort", "TEMP B-TREE"):
        assert sort not in plan, plan


@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_what_begins_at_a_mark_walks_the_same_indexes() -> None:
    first, second = Place(-20, "-infinity", ""), Place(0, "2020-01-01 00:00:00+00", "x")
    stretches = [Stretch(Place(-101, "-infinity", ""), -20), Stretch(first, 0), Stretch(second, 101)]
    with recorded() as statements:
        assert len(dialect().claim_from(stretches, "q1", 7, "p").rows) == 7
        assert len(dialect().promote_from(timezone.now() - timedelta(hours=2), 5).queues) == 5
        assert sorted(queues_with_work(["q1"])) == ["default", "q0", "q2"]
        assert sorted(queues_with_work(["q1"], ["q0", "q1", "none"])) == ["q0"]
    for (sql, params), index in zip(statements, ("ready", "due", "ready", "ready"), strict=True):
        plan = plan_of(sql, params)
        assert f"django_jobs_job_{index}" in plan, plan
        for bad in ("Sort", "Seq Scan on django_jobs_job"):
            assert bad not in plan, plan


@pytest.mark.slow
def test_the_queues_with_work_are_found_by_hops_along_the_index() -> None:
    with recorded() as statements:
        assert sorted(queues_with_work()) == ["q0", "q1", "q2"]
    plan = first_plan(statements)
    assert "django_jobs_job_ready" in plan, plan


@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_the_look_for_the_oldest_jobs_is_not_compiled_and_what_its_transaction_had_chosen_comes_back() -> None:
    def setting() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW jit")
            return str(cursor.fetchone()[0])

    during: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "RECURSIVE" in sql:
            during.append(setting())
        return execute(sql, params, many, context)

    before = setting()
    with connection.execute_wrapper(note):
        assert {queue for queue, _ in dialect().oldest_ready()} == {"q0", "q1", "q2"}
        assert setting() == before
        with transaction.atomic():
            dialect().oldest_ready()
            assert setting() == before
    assert before == "on"
    assert during == ["off", "off"]


@pytest.mark.databases("mariadb")
def test_the_queues_with_work_and_their_oldest_jobs_are_found_without_a_look_at_each_job() -> None:
    before = entries_read()
    assert sorted(queues_with_work()) == ["q0", "q1", "q2"]
    assert entries_read() - before < 20
    before = entries_read()
    assert sorted(queue for queue, _ in dialect().oldest_ready()) == ["q0", "q1", "q2"]
    assert entries_read() - before < 20


def entries_read() -> int:
    """Return how many entries of indexes this session has read."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS WHERE variable_name IN ('Handler_read_key', 'Handler_read_next')")
        return sum(int(number) for _, number in cursor.fetchall())


@pytest.mark.slow
def test_a_claim_takes_one_or_two_statements() -> None:
    with recorded() as statements:
        claim("q1", 7, "p")
    assert len(statements) == (2 if connection.vendor == "mysql" else 1)


@pytest.mark.slow
def test_a_limit_costs_jobs_that_it_does_not_hold_no_statement_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_limits, "FRESH_SECONDS", 3600.0)

    def moves() -> list[str]:
        with recorded() as statements:
            settle([Outcome.completed(one) for one in claim("q1", 7, "p")], "p")
        return [sql for sql, _ in statements if "pg_notify" not in sql]  # at most one in a while

    before = moves()
    job("limited.elsewhere", queue="elsewhere", limit=Limit(concurrency=1))(lambda payload: None)
    try:
        active_limits.active_limits()  # the numbers are read every few seconds
        assert moves() == before
        assert not LimitSlot.objects.exists()
    finally:
        registry.forget("limited.elsewhere")


@pytest.mark.slow
def test_jobs_that_are_held_back_are_not_in_the_way_of_a_claim() -> None:
    with limited_many("q1", concurrency=1):
        submit_many([NewJob("limited.many", {}, priority=9) for _ in range(1_000)])
        with recorded() as statements:
            assert len(claim("q1", 7, "p")) == 7
        sql, params = next((sql, params) for sql, params in statements if "SKIP LOCKED" in sql or "RETURNING" in sql)
        assert "django_jobs_job_ready" in plan_of(sql, params)
        assert Job.objects.held_back().count() == 999


@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_who_waits_for_a_slot_is_found_and_claimed_by_two_statements_along_the_indexes() -> None:
    with limited_many("held", concurrency=5):
        # So many that to read all slots is dearer than ten looks into an index, however full their pages are.
        submit_many([NewJob("limited.many", {}, queue="held") for _ in range(4_000)])
        outcomes = [Outcome.completed(one) for one in claim("held", 7, "p")]
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        handover = Handover(lambda queue: queue == "held", 7)
        with recorded() as statements:
            assert settle_unlocked(outcomes, "p", handover) == []
        assert len(outcomes) == len(handover.jobs) == 5
        number = next(number for number, (sql, _) in enumerate(statements) if "pg_advisory_xact_lock" in sql)
        look, claims = statements[number + 1 : number + 3]
        assert not [sql for sql, _ in statements[number + 3 :] if "pg_notify" not in sql]
        for sql, params in (look, claims):
            plan = plan_of(sql, params)
            assert "django_jobs_limitslot" in plan, plan
            assert "Seq Scan on django_jobs_job" not in plan, plan
            assert "Seq Scan on django_jobs_limitslot" not in plan, plan


@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_no_statement_of_a_jobs_way_seems_so_dear_that_the_server_compiles_it_however_many_wait() -> None:
    with limited_many("held", concurrency=5):
        submit_many([NewJob("limited.many", {}, queue="held") for _ in range(1_000)])
        analyze()
        with connection.cursor() as cursor:  # a million who wait, as far as the planner knows
            cursor.execute(
                "UPDATE pg_class SET reltuples = reltuples * 1000"
                " WHERE relname LIKE 'django_jobs_job%' OR relname LIKE 'django_jobs_limitslot%'"
            )
        with recorded() as statements:
            outcomes = [Outcome.completed(one) for one in claim("held", 7, "p")]
            assert settle_unlocked(outcomes, "p", Handover(lambda queue: queue == "held", 7)) == []
            assert len(claim("q1", 7, "p")) == 7
            assert len(promote(limit=5)) == 5
            assert "q1" in queues_with_work()
            submit_many([NewJob("limited.many", {}, queue="held") for _ in range(3)])
        costs = {
            sql: cost_of(sql, params)
            for sql, params in statements
            if sql.split()[0] in ("SELECT", "WITH", "UPDATE", "DELETE")
        }
        assert len(costs) > 7
        assert not {sql: cost for sql, cost in costs.items() if cost > 50_000}  # it compiles beyond 100,000


@pytest.mark.databases("sqlite", "mariadb")  # PostgreSQL asks in its own way, above
@pytest.mark.slow
def test_who_waits_for_a_slot_is_found_in_the_order_of_the_index_without_a_sort() -> None:
    with limited_many("held", concurrency=1):
        submit_many([NewJob("limited.many", {}, queue="held") for _ in range(1_000)])
        (outcome,) = (Outcome.completed(one) for one in claim("held", 7, "p"))
        with recorded() as statements:
            assert settle_unlocked([outcome], "p", Handover(lambda queue: True, 1)) == []
        (plan,) = (
            plan_of(sql, params) for sql, params in statements if "slot.waits = TRUE" in sql and "ORDER BY" in sql
        )
        assert "django_jobs_limitslot_order" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert "filesort" not in plan, plan


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_a_claim_locks_no_more_rows_than_it_takes() -> None:
    with transaction.atomic():
        mine = {job.id for job in claim("q1", 10, "p")}
        theirs: set[str] = set()
        run_in_threads(lambda: theirs.update(job.id for job in claim("q1", 90, "p")), 1)
    assert len(mine) == 10
    assert len(theirs) == 90
    assert not mine & theirs


@pytest.mark.slow
def test_jobs_without_a_batch_settle_without_a_word_about_batches() -> None:
    jobs = claim("q1", 100, "p")
    with recorded() as statements:
        settle([Outcome.completed(job) for job in jobs], "p")
    assert not [sql for sql, _ in statements if "django_jobs_batch" in sql or "django_jobs_openmember" in sql]


@pytest.mark.slow
def test_members_settle_with_two_statements_more_however_many_there_are() -> None:
    numbers = {}
    for members, at_once in ((40, 30), (5000, 500)):
        with django_jobs.batch() as batch:
            batch.submit_many([NewJob("catalogue.changes", queue=f"b{members}")] * members)
        jobs = claim(f"b{members}", at_once, "p")
        with recorded() as statements:
            settle([Outcome.completed(job) for job in jobs], "p")
        about = [(sql, params) for sql, params in statements if "django_jobs_openmember" in sql]
        numbers[members] = len(about)
        assert not [sql for sql, _ in statements if "django_jobs_batch" in sql]
    assert set(numbers.values()) == {2}
    end, look = (plan_of(*statement) for statement in about)
    for whole in ("Seq Scan on django_jobs_openmember", "SCAN django_jobs_openmember", "member ALL"):
        assert whole not in end, end
    assert "django_jobs_open_members" in look, look
    for sort in ("Sort", "filesort", "TEMP B-TREE"):
        assert sort not in look, look


@pytest.mark.databases("postgresql", "mariadb")  # SQLite walks over the keys when they are to be in order
@pytest.mark.slow
def test_pending_jobs_are_listed_and_counted_by_indexes_however_few_there_are() -> None:
    Job.objects.filter(status="pending").update(status="completed", finished_at=DbNow())
    waiting = [JobFactory(), JobFactory(fair_key="a"), JobFactory(pending_dependencies=1), JobFactory(pending_limits=1)]
    analyze()
    assert {job.pk for job in waiting} == {*Job.objects.pending().values_list("pk", flat=True)}
    for rows in (Job.objects.pending().order_by("-pk")[:50], Job.objects.pending().filter(queue="none")):
        with recorded() as statements:
            list(rows.values_list("pk", flat=True))
        plan = first_plan(statements)
        assert "django_jobs_job_" in plan, plan
        for whole in ("Seq Scan on django_jobs_job", "SCAN django_jobs_job", "django_jobs_job_pkey"):
            assert whole not in plan, plan


@pytest.mark.slow
def test_what_runs_without_a_slot_is_found_among_the_jobs_that_run_by_one_statement() -> None:
    assert len(claim("q1", 7, "p")) == 7
    with limited_many("q1", 2), recorded() as statements:
        slots.count_running()
        assert len(statements) == 2, "of limits, and of the jobs of their types that run"
        Job.objects.filter(status="running").update(job_type="limited.many")
        slots.count_running()
    assert LimitSlot.objects.filter(scope="type:limited.many", waits=False).count() == 7
    plan = first_plan(statements)
    assert "django_jobs_job_held" in plan or "django_jobs_job_due" in plan, plan


@pytest.mark.databases("postgresql")
@pytest.mark.slow
def test_a_job_enters_no_index_but_the_five_it_needs() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'django_jobs_job' ORDER BY 1")
        names = [name.removeprefix("django_jobs_job_") for (name,) in cursor.fetchall()]
    assert names == [
        "blocked",
        "due",
        "fair",
        "held",
        "pkey",
        "ready",
        "unique",
    ]  # "fair" holds those with a fair key instead of "ready", "blocked" those that wait for more than a worker
