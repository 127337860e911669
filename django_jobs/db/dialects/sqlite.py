"""The hot statements for SQLite 3.38+: one writer at a time, so plain statements are atomic claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from .base import Dialect
from .limits import HELD
from .words import (
    ATTEMPT,
    ATTEMPT_COLUMNS,
    CLAIMED_COLUMNS,
    COMPLETED,
    ENDED,
    FIXED_COLUMNS,
    INSERT_COLUMNS,
    INSERT_DONE_STEP,
    INSERT_STEP,
    JOB,
    LIVE_PROCESS,
    READY,
    UNKEYED,
    AttemptRow,
    EndedRow,
    StepRow,
)

# %% because Django hands the statement to the % operator of its parameter style.
NOW = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now')"

_CLAIM_READY = f"""
UPDATE {JOB} SET status = 'running', fence = fence + 1, worker_id = %s, started_at = {NOW}, updated_at = {NOW}
WHERE id IN (
    SELECT id FROM {JOB}
    WHERE {UNKEYED} AND queue = %s AND {LIVE_PROCESS.format(now=NOW)} {{of_rank}}
    ORDER BY rank, available_at, id LIMIT %s)
RETURNING {", ".join(CLAIMED_COLUMNS)}"""
_CLAIM_JOBS = f"""
UPDATE {JOB} SET status = 'running', fence = fence + 1, worker_id = %s, started_at = {NOW}, updated_at = {NOW}
WHERE id IN ({{ids}}) AND {READY} AND {LIVE_PROCESS.format(now=NOW)}
RETURNING {", ".join(CLAIMED_COLUMNS)}"""
_CLAIM_HELD = _CLAIM_JOBS.replace(READY, HELD).replace("fence = fence + 1", "fence = fence + 1, pending_limits = 0")
_CLAIM = _CLAIM_READY.format(of_rank="")
_CLAIM_OF_RANK = _CLAIM_READY.format(of_rank="AND rank = %s")

_COMPLETE = f"""
UPDATE {JOB} SET {COMPLETED.format(job=JOB, now=NOW)}, result = done.value ->> 2
FROM json_each(%s) AS done
WHERE {JOB}.id = done.value ->> 0 AND {JOB}.fence = done.value ->> 1
RETURNING {JOB}.id"""

_DUE = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now', PRINTF('+%%.3f seconds', ended.delay))"
_END = f"""
UPDATE {JOB} SET {ENDED.format(prefix="", job=JOB, now=NOW, due=_DUE)}
FROM (SELECT value ->> 0 AS id, value ->> 1 AS fence, value ->> 2 AS status, value ->> 3 AS delay, value ->> 4 AS spent,
      value ->> 5 AS crashes, value ->> 6 AS error FROM json_each(%s)) AS ended
WHERE {JOB}.id = ended.id AND {JOB}.fence = ended.fence
RETURNING {JOB}.id"""

_STARTED = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now', PRINTF('-%%.3f seconds', %s))"
_INSERT_ATTEMPT = (
    f"INSERT INTO {ATTEMPT} ({ATTEMPT_COLUMNS}) VALUES (%s, %s, %s, {_STARTED}, {NOW}, %s, %s, %s, %s, %s)"
)

_DONE_STEP = INSERT_DONE_STEP.format(now=NOW, json="%s", began=_STARTED, lock="")
_STEP = INSERT_STEP.format(
    now=NOW,
    json="%s",
    flag="%s",
    began=_STARTED,
    due="STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now', PRINTF('%%+.3f seconds', %s))",
    lock="RETURNING id",
)

_PROMOTE = f"""
UPDATE {JOB} SET status = 'pending', updated_at = {NOW}
WHERE id IN (SELECT id FROM {JOB} WHERE status = 'scheduled' AND available_at <= {NOW} ORDER BY available_at LIMIT %s)
RETURNING queue"""

_in_order = itemgetter(*(CLAIMED_COLUMNS.index(name) for name in ("rank", "available_at", "id")))


class SQLite(Dialect):
    """Every statement runs alone; outside a transaction it commits by itself."""

    now = NOW
    later = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now', PRINTF('+%%.3f seconds', %s))"
    share_lock = ""
    done_step = _DONE_STEP
    write_lock = ""
    # The text has up to six digits behind the point.
    aged = (
        "UNIXEPOCH(SUBSTR(heads.since, 1, 19)) * 1000000 + CAST(SUBSTR(heads.since || '000000', 21, 6) AS INTEGER)"
        " + heads.place * {step}"
    )

    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        statement = f"INSERT INTO {JOB} ({', '.join(INSERT_COLUMNS)}, {FIXED_COLUMNS}) VALUES ({self._values()})"
        with self.connection.cursor() as cursor:
            cursor.executemany(statement, rows)

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        with self.connection.cursor() as cursor:
            marks = ", ".join(["%s"] * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM, (process_id, queue, process_id, queue, limit))

    def claim_of_rank(self, queue: str, rank: int, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM_OF_RANK, (process_id, queue, process_id, queue, rank, limit))

    def claim_jobs(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        statement = _CLAIM_JOBS.format(ids=", ".join(["%s"] * len(ids)))
        return self._claim(statement, (process_id, *ids, process_id, queue))

    def claim_held(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        statement = _CLAIM_HELD.format(ids=", ".join(["%s"] * len(ids)))
        return self.take_slots(self._claim(statement, (process_id, *ids, process_id, queue)))

    def _claim(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        if len(rows) > 1:
            rows.sort(key=_in_order)
        return rows

    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_COMPLETE, (json.dumps(rows),))
            return {row[0] for row in cursor.fetchall()}

    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        return {row[0] for row in self.read(_END, (json.dumps(rows),))}

    def end_members(self, ids: Sequence[str]) -> int:
        return self._end_members("IN (SELECT value FROM json_each(%s))", (json.dumps(ids),))

    def insert_attempts(self, rows: Sequence[AttemptRow]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(_INSERT_ATTEMPT, rows)

    def insert_step(self, job_id: str, fence: int, row: StepRow) -> int | None:
        return next((key for (key,) in self.read(_STEP, row.parameters(job_id, fence))), None)

    def promote(self, limit: int) -> list[str]:
        return [row[0] for row in self.read(_PROMOTE, (limit,))]

    def lock_numbers(self, numbers: Sequence[int]) -> None:
        """Do nothing: who writes has the database for itself."""

    def version_of_data(self) -> int | None:
        """Ask SQLite, which looks into shared memory for it (https://sqlite.org/pragma.html#pragma_data_version)."""
        # Not with a cursor of Django's: this is asked hundreds of times a second, and under DEBUG it would keep each statement.
        raw = self.connection.connection
        if raw is None:
            return None
        with self.connection.wrap_database_errors:
            return int(raw.execute("PRAGMA data_version").fetchone()[0])

    def prepare_worker(self, lease: float) -> None:
        """Do nothing: every transaction on SQLite is serializable."""
