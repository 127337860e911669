"""The physical limit: the driver alone, claiming 128 rows at a time, running them and completing them in one statement.

The table is as wide as a django_jobs job and has the same indexes (`djangosite/models.py`). No lease, no handler
lookup, no retry: what the database and the driver leave for a queue to be. Bulk submit is `INSERT … SELECT unnest(…)`
on PostgreSQL, a multi-row INSERT on MariaDB, `executemany` on SQLite; `submit.py` measures COPY and the ORM's
`create()` as well.
"""

import json
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import stores, work
from benchmarks.peer import module
from benchmarks.peers.django_peer import DjangoPeer

BATCH = 128
BULK = 2_000
COLUMNS = (
    "id, job_type, queue, payload, rank, status, available_at, created_at, updated_at, max_retries, retry_count,"
    " metadata, pending_dependencies, fence, crash_count"
)
NOW = {
    "postgresql": "STATEMENT_TIMESTAMP()",
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f','now')",
    "mariadb": "UTC_TIMESTAMP(6)",
}
READY = "queue = 'default' AND status = 'pending' AND pending_dependencies = 0 ORDER BY rank, available_at, id"
CLAIM = """UPDATE bare_job j SET status = 'running', worker_id = 'w', started_at = {now}, updated_at = {now}, fence = fence + 1
    WHERE id = ANY(ARRAY(SELECT id FROM bare_job WHERE {ready} LIMIT {batch} FOR UPDATE SKIP LOCKED))
    RETURNING j.id, j.job_type, j.payload, j.fence"""
SETTLE = """WITH done AS MATERIALIZED (SELECT * FROM unnest(%s::text[], %s::bigint[]) AS given(id, fence))
    UPDATE bare_job j SET status = 'completed', finished_at = {now}, updated_at = {now}, fence = j.fence + 1,
    result = NULL FROM done WHERE j.id = ANY(ARRAY(SELECT id FROM done)) AND j.id = done.id AND j.fence = done.fence"""
CLAIM_IN = """UPDATE bare_job SET status = 'running', worker_id = 'w', started_at = {now}, updated_at = {now},
    fence = fence + 1 WHERE id IN ({ids})"""
SETTLE_ONE = """UPDATE bare_job SET status = 'completed', finished_at = {now}, updated_at = {now}, fence = fence + 1
    WHERE id = {mark} AND fence = {mark}"""


def row_of(kind: str, row_id: str, job: str, payload: str) -> str:
    """Return the SQL values of one row; the last three arguments are SQL expressions or parameter marks."""
    now, empty = NOW[kind], "'{}'::jsonb" if kind == "postgresql" else "'{}'"
    return f"{row_id}, {job}, 'default', {payload}, 0, 'pending', {now}, {now}, {now}, 3, 0, {empty}, 0, 0, 0"


def drain_postgresql(store: stores.Store) -> None:
    """Claim and complete until stopped."""
    claim, settle = (text.format(ready=READY, batch=BATCH, now=NOW["postgresql"]) for text in (CLAIM, SETTLE))
    with stores.postgresql(store.url) as connection:
        while True:
            rows = connection.execute(claim, prepare=True).fetchall()
            _run(rows)
            if rows:
                connection.execute(settle, [[row[0] for row in rows], [row[3] for row in rows]], prepare=True)


def drain_sqlite(store: stores.Store) -> None:
    """Claim and complete until stopped; WAL, synchronous=NORMAL, immediate transactions."""
    now = NOW["sqlite"]
    connection = sqlite3.connect(f"/{store.name.lstrip('/')}", timeout=20, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    ids = f"SELECT id FROM bare_job WHERE {READY} LIMIT {BATCH}"
    claim = CLAIM_IN.format(now=now, ids=ids) + " RETURNING id, job_type, payload, fence"
    while True:
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(claim).fetchall()
        connection.execute("COMMIT")
        _run([(row[0], row[1], json.loads(row[2]), row[3]) for row in rows])
        if rows:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(SETTLE_ONE.format(now=now, mark="?"), [(row[0], row[3]) for row in rows])
            connection.execute("COMMIT")


def drain_mariadb(store: stores.Store) -> None:
    """Claim and complete until stopped, in READ COMMITTED."""
    now = NOW["mariadb"]
    with stores.mariadb(store) as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        while True:
            cursor.execute("BEGIN")
            cursor.execute(
                f"SELECT id, job_type, payload, fence FROM bare_job WHERE {READY} LIMIT {BATCH} FOR UPDATE SKIP LOCKED"
            )
            rows = [(row[0], row[1], json.loads(row[2]), row[3] + 1) for row in cursor.fetchall()]
            if rows:
                ids = ", ".join(f"'{row[0]}'" for row in rows)
                cursor.execute(CLAIM_IN.format(now=now, ids=ids))
            cursor.execute("COMMIT")
            _run(rows)
            if rows:
                cursor.execute("BEGIN")
                whole = SETTLE_ONE.format(now=now, mark="%s").partition("WHERE")[0]
                pairs = ", ".join(f"('{row[0]}', {row[3]})" for row in rows)
                cursor.execute(f"{whole} WHERE id IN ({ids}) AND (id, fence) IN ({pairs})")
                cursor.execute("COMMIT")


def _run(rows: list[Any]) -> None:
    for row in rows:
        getattr(work, row[1])()


class Adapter(DjangoPeer):
    name = "bare driver loop"
    packages = ("psycopg", "mysqlclient")
    stores = ("postgresql", "sqlite", "mariadb")
    settings = f"claim {BATCH} FOR UPDATE SKIP LOCKED, complete {BATCH} in one statement; no queue around it"
    bulk = "INSERT … SELECT unnest, multi-row INSERT, executemany"

    def submit(self, job: str, count: int) -> None:
        from django.db import connection, transaction

        from benchmarks.djangosite.models import new_id

        ids = [new_id() for _ in range(count)]
        head, kind = f"INSERT INTO bare_job ({COLUMNS})", self.store.kind
        with transaction.atomic(), connection.cursor() as cursor:
            if kind == "sqlite":
                cursor.executemany(f"{head} VALUES ({row_of(kind, '%s', '%s', '%s')})", [(n, job, "{}") for n in ids])
                return
            for start in range(0, count, BULK):
                part = ids[start : start + BULK]
                if kind == "postgresql":
                    row = row_of(kind, "u.id", f"'{job}'", "u.payload")
                    sql = f"{head} SELECT {row} FROM unnest(%s::text[], %s::jsonb[]) u(id, payload)"
                    cursor.execute(sql, [part, ["{}"] * len(part)])
                else:
                    rows = ", ".join(f"({row_of(kind, '%s', '%s', '%s')})" for _ in part)
                    cursor.execute(f"{head} VALUES {rows}", [value for n in part for value in (n, job, "{}")])

    def submitter(self, job: str) -> Callable[[int], object]:
        from django.db import connection

        from benchmarks.djangosite.models import new_id

        sql = f"INSERT INTO bare_job ({COLUMNS}) VALUES ({row_of(self.store.kind, '%s', '%s', '%s')})"
        cursor = connection.cursor()
        return lambda number: cursor.execute(sql, [new_id(), job, "{}"])

    def commands(self, processes: int) -> list[list[str]]:
        return [module(__name__, self.store.kind)] * processes

    def remaining(self) -> int:
        return self.count("bare_job", "status IN ('pending', 'running')")


if __name__ == "__main__":
    {"postgresql": drain_postgresql, "sqlite": drain_sqlite, "mariadb": drain_mariadb}[sys.argv[1]](stores.current())
