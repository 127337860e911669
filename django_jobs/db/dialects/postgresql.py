"""The hot statements for PostgreSQL 15+."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django_jobs.db.connections import jobs_connection

from .base import (
    CLAIMED_COLUMNS,
    COMPLETED,
    ENDED,
    FIXED_COLUMNS,
    INSERT_COLUMNS,
    JOB,
    LIVE_PROCESS,
    OPEN_EDGES,
    Dialect,
    EndedRow,
    connect_timeout,
)

NOW = "STATEMENT_TIMESTAMP()"
KEEPALIVES = 3

_TYPES = {
    "payload": "jsonb",
    "metadata": "jsonb",
    "rank": "smallint",
    "scheduled_at": "timestamptz",
    "available_at": "timestamptz",
    "max_retries": "integer",
    "timeout_seconds": "double precision",
    "pending_dependencies": "integer",
}

# Text sorts as the times do, and is not parsed for jobs whose handler never asks.
_CLAIMED_CASTS = {"available_at": "::text", "created_at": "::text"}

# A job starts when its row is taken: the statement may have arrived, and waited for the processor, before the dependency ended.
# `= ANY(ARRAY(…))` takes each row by its primary key. Joined to what was picked, the planner reads the whole table for a batch as
# long as it has some ten thousand rows, and a nested loop once claimed 200 rows for LIMIT 1 (docs/decisions.md).
_CLAIM = f"""
UPDATE {JOB} AS job SET status = 'running', fence = fence + 1, worker_id = %s, started_at = CLOCK_TIMESTAMP(), updated_at = {NOW}
WHERE id = ANY(ARRAY(
    SELECT id FROM {JOB}
    WHERE status = 'pending' AND pending_dependencies = 0 AND queue = %s AND {LIVE_PROCESS.format(now=NOW)}
    ORDER BY rank, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING {", ".join(f"job.{name}{_CLAIMED_CASTS.get(name, '')}" for name in CLAIMED_COLUMNS)}"""

_COMPLETE = f"""
WITH done AS MATERIALIZED (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[]) AS given(id, fence, result))
UPDATE {JOB} AS job SET {COMPLETED.format(job="job", now=NOW)}, result = done.result::jsonb
FROM done WHERE job.id = ANY(ARRAY(SELECT id FROM done)) AND job.id = done.id AND job.fence = done.fence
RETURNING job.id"""

_END = f"""
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::float8[], %s::int[], %s::int[], %s::text[])
        AS given(id, fence, status, delay, spent, crashes, error))
UPDATE {JOB} AS job SET {ENDED.format(prefix="", job="job", now=NOW, due=f"{NOW} + ended.delay * INTERVAL '1 second'")}
FROM ended WHERE job.id = ANY(ARRAY(SELECT id FROM ended)) AND job.id = ended.id AND job.fence = ended.fence
RETURNING job.id"""

_PROMOTE = f"""
UPDATE {JOB} AS job SET status = 'pending', updated_at = {NOW}
WHERE id = ANY(ARRAY(
    SELECT id FROM {JOB} WHERE status = 'scheduled' AND available_at <= {NOW}
    ORDER BY available_at LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING queue"""

_RANK, _AVAILABLE, _ID = (CLAIMED_COLUMNS.index(name) for name in ("rank", "available_at", "id"))


class PostgreSQL(Dialect):
    """One statement per move; RETURNING gives back what was moved."""

    now = NOW

    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        """Give a column that has one value throughout as that value, and the others as arrays."""
        given: dict[str, Any] = {}
        arrays: list[str] = []
        for name, column in zip(INSERT_COLUMNS, zip(*rows, strict=True), strict=True):
            given[name] = column[0]
            if column.count(column[0]) != len(column):
                given[name] = array(column)
                arrays.append(name)
        mark = {name: f"%({name})s::{_TYPES.get(name, 'text')}" for name in INSERT_COLUMNS}
        selected = {name: name if name in arrays else mark[name] for name in INSERT_COLUMNS}
        selected["available_at"] = f"COALESCE({selected['available_at']}, {NOW})"
        source = f"FROM unnest({', '.join(f'{mark[name]}[]' for name in arrays)}) AS new({', '.join(arrays)})"
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {JOB} ({', '.join(INSERT_COLUMNS)}, {FIXED_COLUMNS})"
                f" SELECT {', '.join(selected.values())}, {NOW}, {NOW}, 0, 0, 0, '' {source if arrays else ''}",
                given,
            )

    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(_CLAIM, (process_id, queue, process_id, queue, limit))
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        if len(rows) > 1:  # an UPDATE returns its rows in no order
            rows.sort(key=lambda row: (row[_RANK], row[_AVAILABLE], row[_ID]))
        return rows

    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        ids, fences, results = zip(*rows, strict=True)
        with jobs_connection().cursor() as cursor:
            cursor.execute(_COMPLETE, (array(ids), array(fences), array(results)))
            return {row[0] for row in cursor.fetchall()}

    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(_END, [array(column) for column in zip(*rows, strict=True)])
            return {row[0] for row in cursor.fetchall()}

    def open_edges(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(f"{OPEN_EDGES} = ANY(%s::text[])", (array(ids),))
            return list(cursor.fetchall())

    def promote(self, limit: int) -> list[str]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(_PROMOTE, (limit,))
            return [row[0] for row in cursor.fetchall()]

    def end_sessions(self, process_id: str) -> int:
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()",
                (session_name(process_id),),
            )
            return int(cursor.fetchone()[0])

    def name_session(self, process_id: str) -> None:
        with jobs_connection().cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (session_name(process_id),))

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {max(1, int(seconds * 1000))}")
        yield

    def silence_options(self, lease: float) -> dict[str, Any]:
        idle, interval, user_timeout = _silence(lease)
        return {
            "connect_timeout": connect_timeout(lease),
            "keepalives_idle": idle,
            "keepalives_interval": interval,
            "keepalives_count": KEEPALIVES,
            "tcp_user_timeout": user_timeout,
        }

    def prepare_worker(self, lease: float) -> None:
        # Our moves are written for READ COMMITTED, whatever the site chose for its own requests: as the server's default for
        # single statements, and as the driver's for BEGIN, which the site's `isolation_level` option has set.
        # The server, too, gives up a client that is silent, so that a host that lost its power holds no transaction open.
        idle, interval, user_timeout = _silence(lease)
        with jobs_connection().cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(
                "SELECT set_config(name, chosen.value, false) FROM pg_settings JOIN (VALUES ('tcp_keepalives_idle', %s),"
                " ('tcp_keepalives_interval', %s), ('tcp_keepalives_count', %s), ('tcp_user_timeout', %s)) AS chosen(name, value)"
                " USING (name) WHERE source = 'default'",
                (str(idle), str(interval), str(KEEPALIVES), str(user_timeout)),
            )
        jobs_connection().connection.isolation_level = None


def _silence(lease: float) -> tuple[int, int, int]:
    """Return after how many seconds of silence a peer is asked, how often again, and the milliseconds after which it is gone.

    Together they stay below a lease: 1/4, then three times 1/8; and 3/4 for what was sent and not acknowledged.
    """
    return max(1, int(lease / 4)), max(1, int(lease / 8)), max(1000, int(lease * 750))


def array(values: Sequence[Any]) -> Any:
    """Return a parameter for a one-dimensional array; the driver takes ten times as long for what is of one kind."""
    kinds = set(map(type, values))
    if kinds == {str}:  # a NUL is in no text that PostgreSQL takes
        text = "\0".join(values).replace("\\", r"\\").replace('"', r"\"").replace("\0", '","')
        return '{"' + text + '"}'
    if kinds == {type(None)}:
        return "{" + ",".join(["NULL"] * len(values)) + "}"
    return "{" + ",".join(map(str, values)) + "}" if kinds == {int} else list(values)


def session_name(process_id: str) -> str:
    """Return the application_name of a process's sessions; PostgreSQL keeps 63 bytes of ASCII."""
    return f"jobs {process_id[-58:]}".encode("ascii", "replace").decode()
