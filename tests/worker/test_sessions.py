"""What a handler leaves in its session, by whatever way, does not reach the next job; and ordinary work keeps its session."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, F, Func, Q, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Lower, TruncDay
from django.utils import timezone

from django_jobs.db.connections import jobs_alias
from django_jobs.db.server import product_and_version
from django_jobs.db.sessions import leaves_nothing
from django_jobs.models import Attempt, Job
from django_jobs.stats import queue_stats
from django_jobs.worker import thread

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)

# Once set, a parameter of the site's has a name until the session ends; reset, it is empty.
APP_X = "SELECT NULLIF(current_setting('app.x', true), '')"
PQ_TEXT = 0  # psycopg's name for it is not there where no psycopg is
ADVISORY = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


def run_sql(*statements: str) -> Callable[[], None]:
    """Return what runs the statements by Django's cursor."""

    def run() -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    return run


def run_raw(*statements: str) -> Callable[[], None]:
    """Return what runs the statements by a cursor of the driver's connection."""

    def run() -> None:
        connection.ensure_connection()
        cursor = connection.connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    return run


def run_inner(*statements: str) -> Callable[[], None]:
    """Return what runs the statements by the driver's cursor inside Django's."""

    def run() -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.cursor.execute(statement)

    return run


def run_made(statement: str) -> Callable[[], None]:
    """Return what runs a statement by a cursor that Django has not wrapped."""

    def run() -> None:
        connection.ensure_connection()
        connection.create_cursor().execute(statement)

    return run


def value(statement: str) -> Callable[[], Any]:
    """Return what asks for one value."""

    def ask() -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return None if row is None else str(row[0])

    return ask


def fails(statement: str) -> Callable[[], Any]:
    """Return what says whether a statement is refused."""

    def ask() -> bool:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                cursor.fetchall() if cursor.description else None
        except Exception:
            return True
        return False

    return ask


def callproc() -> None:
    with connection.cursor() as cursor:
        cursor.callproc("leave_something")


def select_db() -> None:
    connection.ensure_connection()
    connection.connection.select_db("information_schema")


def row_factory() -> None:
    connection.ensure_connection()
    connection.connection.row_factory = dict_row


def dict_row(cursor: Any, row: Any = None) -> Any:
    raise RuntimeError("a row factory of another job")


def set_attribute() -> None:
    connection.schema_name = "tenant"


def copy_in() -> None:
    run_sql("CREATE TEMP TABLE IF NOT EXISTS copied (n int)")()
    with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
        copy.write_row((1,))


def create_function() -> None:
    connection.ensure_connection()
    connection.connection.create_function("of_another_job", 0, lambda: 1)


def lock_in_queryset(function: str, *more: Any) -> Callable[[], None]:
    """Return what takes a lock by a function in a queryset."""

    def run() -> None:
        arguments = [Value(argument) for argument in ("left_here", *more)] if more else [Value(4)]
        list(
            Job.objects.annotate(held=Func(*arguments, function=function, output_field=TextField())).values("held")[:1]
        )

    return run


def driver_autocommit() -> None:
    connection.ensure_connection()
    connection.connection.autocommit = False


def driver_adapter() -> None:
    connection.ensure_connection()
    adapters = connection.connection.adapters
    adapters.register_loader("int4", adapters.get_loader(adapters.types["bool"].oid, PQ_TEXT))


POSTGRESQL = {
    "SET": (run_sql("SET statement_timeout = 5432"), value("SHOW statement_timeout")),
    "set in a comment's shadow": (run_sql("/* a */ SET statement_timeout = 5432"), value("SHOW statement_timeout")),
    "set_config": (run_sql("SELECT set_config('timezone', 'Asia/Tokyo', false)"), value("SHOW timezone")),
    "quoted set_config": (
        run_sql("""SELECT "set_config"('app.x', 'y', false)"""),
        value(APP_X),
    ),
    "SQL that follows": (run_sql("SELECT 1; SET search_path = pg_catalog"), value("SHOW search_path")),
    "search path": (run_sql("SET search_path = pg_catalog"), value("SHOW search_path")),
    "role": (run_sql("SET ROLE pg_monitor"), value("SELECT current_user")),
    "session isolation": (
        run_sql("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
        value("SHOW transaction_isolation"),
    ),
    "DO": (
        run_sql("DO $$ BEGIN PERFORM set_config('app.x', 'y', false); END $$"),
        value(APP_X),
    ),
    "advisory lock": (run_sql("SELECT pg_advisory_lock(77)"), value(ADVISORY)),
    "tried advisory lock": (run_sql("SELECT pg_try_advisory_lock_shared(78)"), value(ADVISORY)),
    "raw advisory lock": (run_raw("SELECT pg_advisory_lock(79)"), value(ADVISORY)),
    "temporary table": (run_sql("CREATE TEMP TABLE left_here (n int)"), value("SELECT to_regclass('left_here')")),
    "select into": (run_sql("SELECT 1 AS n INTO TEMP left_here"), value("SELECT to_regclass('left_here')")),
    "create as": (
        run_sql("CREATE TEMPORARY TABLE left_here AS SELECT 1 AS n"),
        value("SELECT to_regclass('left_here')"),
    ),
    "temporary view": (
        run_sql("CREATE TEMP VIEW left_here AS SELECT 1 AS n"),
        value("SELECT to_regclass('left_here')"),
    ),
    "prepared": (run_sql("PREPARE left_here AS SELECT 1"), value("SELECT count(*) FROM pg_prepared_statements")),
    "cursor": (run_sql("DECLARE left_here CURSOR WITH HOLD FOR SELECT 1"), value("SELECT count(*) FROM pg_cursors")),
    "LISTEN": (run_sql("LISTEN left_here"), value("SELECT count(*) FROM pg_listening_channels()")),
    "function": (run_sql("SELECT leave_something()"), value(APP_X)),
    "called function": (callproc, value(APP_X)),
    "raw SET": (run_raw("SET statement_timeout = 5432"), value("SHOW statement_timeout")),
    "SET by the inner cursor": (run_inner("SET statement_timeout = 5432"), value("SHOW statement_timeout")),
    "SET by a made cursor": (run_made("SET statement_timeout = 5432"), value("SHOW statement_timeout")),
    "row factory": (row_factory, fails("SELECT 1 WHERE true")),
    "COPY": (copy_in, value("SELECT to_regclass('copied')")),
    "attribute": (set_attribute, lambda: hasattr(connection, "schema_name")),
    "authorization": (run_sql("SET SESSION AUTHORIZATION pg_monitor"), value("SELECT session_user")),
    "encoding": (run_sql("SET client_encoding = 'LATIN1'"), value("SHOW client_encoding")),
    "last value": (
        run_sql("CREATE TEMP SEQUENCE left_here", "SELECT nextval('left_here')"),
        fails("SELECT lastval()"),
    ),
    "lock in a queryset": (lock_in_queryset("pg_advisory_lock"), value(ADVISORY)),
    "lock in SQL of a queryset": (
        lambda: list(Job.objects.annotate(held=RawSQL("pg_advisory_lock(%s)", [5])).values("held")[:1]),
        value(ADVISORY),
    ),
    "driver's autocommit": (driver_autocommit, lambda: vars(connections["default"])["connection"].autocommit),
    "driver's execute": (
        lambda: connection.connection.execute("SET statement_timeout = 5432"),
        value("SHOW statement_timeout"),
    ),
    "driver's adapter": (driver_adapter, value("SELECT 7::int4")),
}
LOCK_HELD = "SELECT IS_USED_LOCK('left_here') = CONNECTION_ID()"
MYSQL = {
    "SET": (run_sql("SET SESSION net_read_timeout = 77"), value("SELECT @@net_read_timeout")),
    "sql_mode": (run_sql("SET sql_mode = 'ANSI_QUOTES'"), value("SELECT @@sql_mode")),
    "time zone": (run_sql("SET time_zone = '+09:00'"), value("SELECT @@time_zone")),
    "names": (run_sql("SET NAMES latin1"), value("SELECT @@character_set_client")),
    "variable": (run_sql("SET @left_here = 1"), value("SELECT @left_here")),
    "variable in a query": (run_sql("SELECT @left_here := 2"), value("SELECT @left_here")),
    "variable by INTO": (run_sql("SELECT 3 INTO @left_here"), value("SELECT @left_here")),
    "lock": (run_sql("SELECT GET_LOCK('left_here', 1)"), value(LOCK_HELD)),
    "raw lock": (run_raw("SELECT GET_LOCK('left_here', 1)"), value(LOCK_HELD)),
    "in a comment that is run": (run_sql("/*! SET @left_here = 4 */"), value("SELECT @left_here")),
    "temporary table": (
        run_sql("CREATE TEMPORARY TABLE left_here (n int)"),
        fails("CREATE TEMPORARY TABLE left_here (n int)"),
    ),
    "raw temporary table": (
        run_raw("CREATE TEMPORARY TABLE left_here (n int)"),
        fails("CREATE TEMPORARY TABLE left_here (n int)"),
    ),
    "prepared": (run_sql("PREPARE left_here FROM 'SELECT 1'"), fails("DEALLOCATE PREPARE left_here")),
    "locked tables": (run_sql("LOCK TABLES django_jobs_job READ"), fails("SELECT 1 FROM django_jobs_queue LIMIT 1")),
    "DO": (run_sql("DO (@left_here := 5)"), value("SELECT @left_here")),
    "checks": (run_sql("SET foreign_key_checks = 0"), value("SELECT @@foreign_key_checks")),
    "last id": (run_sql("SELECT LAST_INSERT_ID(4711)"), value("SELECT LAST_INSERT_ID()")),
    "procedure": (run_sql("CALL leave_something()"), value("SELECT @left_here")),
    "called procedure": (callproc, value("SELECT @left_here")),
    "USE": (run_sql("USE information_schema"), value("SELECT DATABASE()")),
    "driver's USE": (select_db, value("SELECT DATABASE()")),
    "SET by the inner cursor": (run_inner("SET @left_here = 7"), value("SELECT @left_here")),
    "SET by a made cursor": (run_made("SET @left_here = 8"), value("SELECT @left_here")),
    "lock in a queryset": (lock_in_queryset("GET_LOCK", 1), value(LOCK_HELD)),
    "handler": (run_sql("HANDLER django_jobs_queue OPEN"), fails("HANDLER django_jobs_queue READ FIRST")),
    "role": (run_sql("SET ROLE NONE", "SET @left_here = 11"), value("SELECT @left_here")),
    "read only": (
        run_sql("SET SESSION TRANSACTION READ ONLY"),
        fails("UPDATE django_jobs_queue SET name = '' WHERE 1 = 0"),
    ),
    "attribute": (set_attribute, lambda: hasattr(connection, "schema_name")),
}
MARIADB = {
    **MYSQL,
    "block": (run_sql("BEGIN NOT ATOMIC SET @left_here = 6; END"), value("SELECT @left_here")),
}
SQLITE = {
    "pragma": (run_sql("PRAGMA cache_size = 77"), value("PRAGMA cache_size")),
    "foreign keys": (run_sql("PRAGMA foreign_keys = OFF"), value("PRAGMA foreign_keys")),
    "raw pragma": (run_raw("PRAGMA query_only = 1"), value("PRAGMA query_only")),
    "pragma by the inner cursor": (run_inner("PRAGMA cache_size = 77"), value("PRAGMA cache_size")),
    "pragma by a made cursor": (run_made("PRAGMA cache_size = 77"), value("PRAGMA cache_size")),
    "attached": (run_sql("ATTACH ':memory:' AS left_here"), value("SELECT count(*) FROM pragma_database_list")),
    "raw attached": (run_raw("ATTACH ':memory:' AS left_here"), value("SELECT count(*) FROM pragma_database_list")),
    "temporary table": (run_sql("CREATE TEMP TABLE left_here (n)"), value("SELECT count(*) FROM sqlite_temp_master")),
    "temporary table by name": (run_sql("CREATE TABLE temp.left_here (n)"), value("SELECT count(*) FROM sqlite_temp_master")),
    "temporary trigger": (
        run_sql("CREATE TEMP TRIGGER left_here AFTER UPDATE ON django_jobs_queue BEGIN SELECT 1; END"),
        value("SELECT count(*) FROM sqlite_temp_master"),
    ),
    "function": (create_function, fails("SELECT of_another_job()")),
    "row factory": (row_factory, fails("SELECT 1 WHERE true")),
    "attribute": (set_attribute, lambda: hasattr(connection, "schema_name")),
}  # fmt: skip
KINDS = {"postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MARIADB, "sqlite": SQLITE}


ROUTINES = {
    "postgresql": (
        "CREATE FUNCTION leave_something() RETURNS text AS $f$ SELECT set_config('app.x', 'y', false) $f$ LANGUAGE sql",
        "DROP FUNCTION leave_something()",
    ),
    "mysql": ("CREATE PROCEDURE leave_something() SET @left_here = 9", "DROP PROCEDURE leave_something"),
    "sqlite": ("SELECT 1", "SELECT 1"),
}


@pytest.fixture
def routine() -> Iterator[None]:
    create, drop = ROUTINES[connection.vendor]
    run_sql(create)()
    yield
    run_sql(drop)()


@pytest.mark.usefixtures("routine")
def test_nothing_that_is_left_in_a_session_reaches_the_next_job(bench: Bench) -> None:
    kinds = KINDS[product_and_version()[0]]
    seen: dict[str, list[Any]] = {name: [] for name in kinds}

    def leave(payload: dict[str, Any]) -> None:
        connection.ensure_connection()
        kinds[payload["kind"]][0]()
        seen[payload["kind"]].append(kinds[payload["kind"]][1]())

    def look(payload: dict[str, Any]) -> None:
        connection.ensure_connection()
        seen[payload["kind"]].append(kinds[payload["kind"]][1]())

    bench.handle("t.leave", leave, max_retries=0)
    bench.handle("t.look", look, max_retries=0)
    process = bench.start()
    for kind in kinds:
        for name in ("look", "leave", "look"):
            # One after the other, so that the next job is the one that looks: two claims promise no order.
            job = bench.submit(f"t.{name}", {"kind": kind})
            assert (job.wait(60).status, job.error) == ("completed", None), kind
    process.stop(grace=10)
    for kind, (before, changed, after) in seen.items():
        assert before == after, f"{kind}: {before!r}, left {changed!r}, then {after!r}"
        assert changed != before, f"{kind} tests nothing"


@pytest.mark.parametrize(
    ("vendor", "statement"),
    [
        ("postgresql", """SELECT 'it''s' AS "a b", "t"."x" #> '{a}' FROM "t" WHERE "x" LIKE '%;--' FOR UPDATE"""),
        ("postgresql", "SET LOCAL statement_timeout = 5"),
        ("postgresql", """INSERT INTO "s"."t" ("a") VALUES (%s), (%s) ON CONFLICT("a") DO NOTHING RETURNING "id\""""),
        (
            "postgresql",
            "WITH RECURSIVE a(x, y) AS (\n SELECT 1, 2), b(z) AS MATERIALIZED (WITH c AS (SELECT 1) SELECT 2) SELECT 3",
        ),
        ("sqlite", r"""SELECT 1 FROM "t" WHERE "x" LIKE %s ESCAPE '\'"""),
        ("sqlite", "BEGIN"),
        ("mysql", "INSERT IGNORE INTO `t` (`a`) VALUES (%s)"),
        ("mysql", "SELECT a FROM t FORCE INDEX (b) WHERE a IN (1)"),
        ("mysql", "(SELECT COUNT(*) FROM `t`) UNION (SELECT 1)"),
    ],
)
def test_ordinary_statements_are_known(vendor: str, statement: str) -> None:
    assert leaves_nothing(statement, vendor)


@pytest.mark.parametrize(
    ("vendor", "statement"),
    [
        ("postgresql", """SELECT 'a', "set_config" ('a', 'b', false)"""),
        ("postgresql", "SELECT pg_catalog.set_config('a', 'b', false)"),
        ("postgresql", "SELECT $$'$$, leave('')"),
        ("postgresql", "WITH a AS (SELECT 1) SELECT * INTO TEMP b FROM a"),
        ("postgresql", "WITH a(x) AS (SELECT leave('')) SELECT x FROM a"),
        ("postgresql", "SELECT * FROM f(x) AS (y int)"),
        ("postgresql", "SELECT * FROM unnest(a), f(x) AS (values int)"),
        ("postgresql", "SET LOCAL a = 1; SET b = 1"),
        ("postgresql", "BEGIN"),
        ("mysql", """SELECT "it's", GET_LOCK('a', 1)"""),
        ("mysql", r"""SELECT '\'', GET_LOCK('a', 1), ''"""),
        ("mysql", "SELECT 1 # '\n, GET_LOCK('a', 1)"),
        ("mysql", "SELECT @a:=1"),
        ("mysql", "BEGIN"),
        ("sqlite", "SELECT [load_extension]('a')"),
        ("sqlite", ""),
        ("sqlite", "EXPLAIN SELECT 1"),
    ],
)
def test_what_may_leave_something_is_not_known(vendor: str, statement: str) -> None:
    assert not leaves_nothing(statement, vendor)


# What Django and a worker set up in a session of theirs.
SETTINGS = ("SHOW timezone", "SHOW application_name", "SHOW default_transaction_isolation", "SHOW tcp_user_timeout")


def session_id() -> Any:
    """Return what tells sessions apart; it is the driver's object, so ask for it outside handlers or as the last thing."""
    return id(vars(connections[jobs_alias()])["connection"])


def test_ordinary_work_keeps_its_session(bench: Bench) -> None:
    def ordinary(payload: dict[str, Any]) -> int:
        jobs = Job.objects.filter(Q(job_type__icontains="t.") | Q(payload__n=1), created_at__year__gte=2020)
        list(
            jobs.annotate(day=TruncDay("created_at"), low=Lower("queue"))
            .values("day")
            .annotate(n=Count("id"), m=Count("low"))
        )
        with transaction.atomic(), transaction.atomic():
            Job.objects.select_for_update().filter(pk="mark").update(retry_count=F("retry_count") + 1)
        Attempt.objects.bulk_create(
            [
                Attempt(job_id="mark", number=n, worker_id="w", outcome="failed", ended_at=timezone.now())
                for n in range(2)
            ],
            ignore_conflicts=True,
        )
        list(Job.objects.filter(pk="a").order_by().union(Job.objects.filter(pk="mark").order_by()))
        list(Job.objects.order_by("id").iterator(chunk_size=2))
        Job.objects.filter(payload__contains={"n": 1}).exists() if connection.vendor != "sqlite" else None
        bench.submit("t.child", {}, delay=3600)
        queue_stats()
        Attempt.objects.filter(job_id="mark").delete()
        return session_id()

    bench.handle("t.child", lambda payload: None)
    bench.handle("t.ordinary", ordinary, max_retries=0)
    bench.submit("t.child", job_id="mark", delay=3600)
    jobs = [bench.submit("t.ordinary") for _ in range(8)]
    assert set(bench.run(*jobs)) == {"completed"}, [job.error for job in jobs]
    assert len({job.result for job in jobs}) == 1


@pytest.mark.databases("postgresql")
def test_what_the_server_can_reset_costs_no_new_session(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "IDLE_SECONDS", 3600.0)

    def leave(payload: dict[str, Any]) -> int:
        run_sql("SELECT set_config('app.x', 'y', false)")()
        return int(value("SELECT pg_backend_pid()")())

    bench.handle("t.leave", leave, max_retries=0)
    bench.handle("t.held", lambda payload: (leave({}), run_raw("SELECT 1")())[0], max_retries=0)
    bench.handle("t.settings", lambda payload: [value(ask)() for ask in SETTINGS], max_retries=0)
    names = ("settings", "leave", "settings", "leave", "held", "leave")
    bench.start()
    jobs = [bench.submit(f"t.{name}").wait(60) for name in names]
    assert {job.status for job in jobs} == {"completed"}, [job.error for job in jobs]
    first, second, held, after = (jobs[n].result for n in (1, 3, 4, 5))
    assert first == second == held != after
    assert jobs[0].result == jobs[2].result


def test_an_atomic_handler_and_a_job_of_a_process_of_its_own_leave_nothing(bench: Bench) -> None:
    before, after = {
        "postgresql": ("SET app.x = 'y'", APP_X),
        "mysql": ("SET @left_here = 1", "SELECT @left_here"),
        "sqlite": ("PRAGMA cache_size = 77", "PRAGMA cache_size"),
    }[connection.vendor]
    bench.handle("t.leave", lambda payload: run_sql(before)(), atomic=True)
    bench.handle("t.look", lambda payload: value(after)())
    first, last = bench.submit("t.look", priority=9), bench.submit("t.look")
    leave = bench.submit("t.leave", priority=7)
    assert bench.run(first, leave, last) == ["completed"] * 3
    assert first.result == last.result


def test_a_coroutine_leaves_nothing(bench: Bench) -> None:
    kinds = KINDS[product_and_version()[0]]

    async def leave(payload: dict[str, Any]) -> None:
        await sync_to_async(kinds["attribute"][0])()
        await sync_to_async(next(iter(kinds.values()))[0])()
        await asyncio.sleep(0)

    async def look(payload: dict[str, Any]) -> Any:
        return [await sync_to_async(kinds["attribute"][1])(), await sync_to_async(next(iter(kinds.values()))[1])()]

    bench.handle("t.leave", leave, max_retries=0)
    bench.handle("t.look", look, max_retries=0)
    process = bench.start()
    results = []
    for name in ("look", "leave", "look", "look"):
        job = bench.submit(f"t.{name}").wait(60)
        assert (job.status, job.error) == ("completed", None)
        results.append(job.result)
    process.stop(grace=10)
    assert results[0] == results[2] == results[3]


def test_the_session_of_another_database_is_clean_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        connections.settings,
        "other",
        {
            **connections.settings["default"],
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "other"),
            "OPTIONS": {},
        },
    )

    def connect(other: BaseDatabaseWrapper) -> None:
        if other.connection is None:
            other.connect()

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", connect)  # Django's test case has none but its own

    def run(statement: str) -> Any:
        with connections["other"].cursor() as cursor:
            cursor.execute(statement)
            return (cursor.fetchone() or [None])[0]

    def leave_raw(payload: dict[str, Any]) -> None:
        connections["other"].ensure_connection()
        connections["other"].connection.execute("ATTACH ':memory:' AS left_here")

    bench.handle("t.look", lambda payload: [run("PRAGMA cache_size"), run("SELECT count(*) FROM pragma_database_list")])
    bench.handle("t.pragma", lambda payload: run("PRAGMA cache_size = 77"))
    bench.handle("t.raw", leave_raw)
    bench.handle("t.open", lambda payload: transaction.set_autocommit(False, using="other"))
    bench.handle("t.autocommit", lambda payload: connections["other"].get_autocommit())
    names = ("look", "pragma", "look", "raw", "look", "open", "autocommit")
    jobs = [bench.submit(f"t.{name}") for name in names]
    assert set(bench.run(*jobs)) == {"completed"}, [job.error for job in jobs]
    assert jobs[0].result == jobs[2].result == jobs[4].result
    assert jobs[-1].result is True


@pytest.mark.databases("postgresql")
def test_a_pooled_connection_goes_back_clean(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**connections.settings["default"].get("OPTIONS", {}), "pool": {"min_size": 1, "max_size": 8}}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    connection.close()
    kinds = {name: POSTGRESQL[name] for name in ("SET", "advisory lock", "temporary table", "raw SET", "LISTEN")}
    ask = value("SELECT current_setting('application_name') || current_setting('default_transaction_isolation')")
    usual = ask()
    bench.handle("t.leave", lambda payload: kinds[payload["kind"]][0](), max_retries=0)
    bench.handle("t.look", lambda payload: kinds[payload["kind"]][1](), max_retries=0)
    try:
        assert connection.pool is not None
        for kind in kinds:
            jobs = [bench.submit(f"t.{name}", {"kind": kind}) for name in ("look", "leave", "look")]
            assert bench.run(*jobs) == ["completed"] * 3, [job.error for job in jobs]
            assert jobs[0].result == jobs[2].result, kind
        connection.close()
        pooled = [connection.pool.getconn() for _ in range(8)]
        found = {
            one.execute(
                "SELECT current_setting('application_name') || current_setting('default_transaction_isolation')"
            ).fetchone()[0]
            for one in pooled
        }
        for one in pooled:
            connection.pool.putconn(one)
        assert found == {usual}, "what left the workers has none of their settings"
    finally:
        connection.close()
        connection.close_pool()
