"""The hot statements for MariaDB 10.6+ and MySQL 8: no UPDATE … RETURNING, so a move is two statements in a transaction."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from django.db import DatabaseError, IntegrityError, transaction

from django_jobs.db.connections import jobs_alias, jobs_connection

from .base import (
    CLAIMED_COLUMNS,
    COMPLETED,
    ENDED,
    FIXED_COLUMNS,
    INSERT_COLUMNS,
    JOB,
    LIVE_PROCESS,
    Dialect,
    EndedRow,
    connect_timeout,
)

NOW = "UTC_TIMESTAMP(6)"
ROWS_PER_INSERT = 500
NO_SUCH_THREAD = 1094
DUPLICATE_KEY = 1062
MOST_SESSIONS = 1024
LOCKS_PER_QUESTION = 256
PACKET_CHARACTERS = 1_000_000

# The index gives the order: a filesort would lock every row that it reads.
_PICK = f"""
SELECT {", ".join(CLAIMED_COLUMNS)} FROM {JOB} FORCE INDEX (django_jobs_job_ready)
WHERE queue = %s AND status = 'pending' AND pending_dependencies = 0 AND {LIVE_PROCESS.format(now=NOW)}
ORDER BY `rank`, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED"""

# By primary key even in a tiny table: a scan would wait for the locks of rows that are none of ours.
_COMPLETE = f"""
UPDATE JSON_TABLE(%s, '$[*]' COLUMNS(
    id VARCHAR(64) PATH '$[0]', fence BIGINT PATH '$[1]', result LONGTEXT PATH '$[2]')) AS done
STRAIGHT_JOIN {JOB} AS job FORCE INDEX (PRIMARY)
    ON job.id = CONVERT(done.id USING utf8mb4) COLLATE {{collation}} AND job.fence = done.fence
SET {COMPLETED.format(job="job", now=NOW).replace("fence =", "job.fence =")}, job.result = done.result"""


_DUE = f"{NOW} + INTERVAL ROUND(ended.delay * 1000000) MICROSECOND"
_END = f"""
UPDATE JSON_TABLE(%s, '$[*]' COLUMNS(
    id VARCHAR(64) PATH '$[0]', fence BIGINT PATH '$[1]', status VARCHAR(10) PATH '$[2]', delay DOUBLE PATH '$[3]',
    spent INT PATH '$[4]', crashes INT PATH '$[5]', error LONGTEXT PATH '$[6]')) AS ended
STRAIGHT_JOIN {JOB} AS job FORCE INDEX (PRIMARY)
    ON job.id = CONVERT(ended.id USING utf8mb4) COLLATE {{collation}} AND job.fence = ended.fence
SET {ENDED.format(prefix="job.", job="job", now=NOW, due=_DUE)}"""


def _quoted(names: Sequence[str]) -> str:
    """Quote `rank`, which MySQL 8 reserves, and leave the rest readable."""
    return ", ".join("`rank`" if name == "rank" else name for name in names)


_PICK = _PICK.replace(", ".join(CLAIMED_COLUMNS), _quoted(CLAIMED_COLUMNS))
_COLUMNS = f"{_quoted(INSERT_COLUMNS)}, {FIXED_COLUMNS}"
_FENCE = CLAIMED_COLUMNS.index("fence")
_session_numbers = itertools.count()


class MariaDB(Dialect):
    """Pick and lock in index order, then update by primary key, in READ COMMITTED."""

    now = NOW
    share_lock = "LOCK IN SHARE MODE"

    def insert_job(self, row: Sequence[Any]) -> datetime | None:
        returning = "RETURNING created_at" if jobs_connection().mysql_is_mariadb else ""  # type: ignore[attr-defined]
        try:
            with jobs_connection().cursor() as cursor:
                cursor.execute(f"INSERT INTO {JOB} ({_COLUMNS}) VALUES ({self._values()}) {returning}", row)
                if returning:
                    return self.to_datetime(cursor.fetchone()[0])
                cursor.execute(f"SELECT created_at FROM {JOB} WHERE id = %s", (row[0],))
                return self.to_datetime(cursor.fetchone()[0])
        except IntegrityError as error:
            # The failed statement is undone alone; the caller's transaction goes on.
            if error.args and error.args[0] == DUPLICATE_KEY:
                return None
            raise

    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        one = f"({self._values()})"
        with jobs_connection().cursor() as cursor:
            for start in range(0, len(rows), ROWS_PER_INSERT):
                chunk = rows[start : start + ROWS_PER_INSERT]
                cursor.execute(
                    f"INSERT INTO {JOB} ({_COLUMNS}) VALUES {', '.join([one] * len(chunk))}",
                    [value for row in chunk for value in row],
                )

    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        with transaction.atomic(using=jobs_alias()), jobs_connection().cursor() as cursor:
            cursor.execute(_PICK, (queue, process_id, queue, limit))
            rows = cursor.fetchall()
            if not rows:
                return []
            cursor.execute(
                f"UPDATE {JOB} SET status = 'running', fence = fence + 1, worker_id = %s, started_at = {NOW},"
                f" updated_at = {NOW} WHERE id IN ({', '.join(['%s'] * len(rows))})",
                (process_id, *(row[0] for row in rows)),
            )
        return [(*row[:_FENCE], row[_FENCE] + 1, *row[_FENCE + 1 :]) for row in rows]

    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        """Complete them, then ask which, if only some were ours: those that have the next fence and finished last.

        A claim that was settled before has the next fence as well, and an earlier time.
        """
        completed: set[str] = set()
        for chunk in _packets(rows):
            number = self._update(_COMPLETE, chunk)
            if number == len(chunk):
                completed.update(row[0] for row in chunk)
            elif number:
                next_fences = [(row[0], row[1] + 1) for row in chunk]
                just_now = f"AND status = 'completed' ORDER BY finished_at DESC LIMIT {number}"
                completed |= self._with_fence(next_fences, just_now)
        return completed

    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        """Lock those that are ours, then end them: a rescue may have left the next fence in the very same status."""
        ended: set[str] = set()
        for chunk in _packets(rows):
            ours = self._with_fence([(row[0], row[1]) for row in chunk], "ORDER BY id FOR UPDATE")
            if ours:
                self._update(_END, [row for row in chunk if row[0] in ours])
            ended |= ours
        return ended

    def _update(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        collation = "utf8mb4_nopad_bin" if jobs_connection().mysql_is_mariadb else "utf8mb4_0900_bin"  # type: ignore[attr-defined]
        with jobs_connection().cursor() as cursor:
            cursor.execute(statement.format(collation=collation), (json.dumps(rows),))
            return int(cursor.rowcount)

    def _with_fence(self, fences: Sequence[tuple[str, int]], rest: str) -> set[str]:
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM {JOB} WHERE id IN ({', '.join(['%s'] * len(fences))})"
                f" AND (id, fence) IN ({', '.join(['(%s, %s)'] * len(fences))}) {rest}",
                [job_id for job_id, _ in fences] + [value for one in fences for value in one],
            )
            return {row[0] for row in cursor.fetchall()}

    def promote(self, limit: int) -> list[str]:
        with transaction.atomic(using=jobs_alias()), jobs_connection().cursor() as cursor:
            cursor.execute(
                f"SELECT id, queue FROM {JOB} FORCE INDEX (django_jobs_job_due) WHERE status = 'scheduled'"
                f" AND available_at <= {NOW} ORDER BY available_at LIMIT %s FOR UPDATE SKIP LOCKED",
                (limit,),
            )
            rows = cursor.fetchall()
            if rows:
                cursor.execute(
                    f"UPDATE {JOB} SET status = 'pending', updated_at = {NOW}"
                    f" WHERE id IN ({', '.join(['%s'] * len(rows))})",
                    [row[0] for row in rows],
                )
        return [row[1] for row in rows]

    def end_sessions(self, process_id: str) -> int:
        """End the sessions that hold a lock with the process's name."""
        ended = 0
        for start in range(0, MOST_SESSIONS, LOCKS_PER_QUESTION):
            names = [_lock_name(process_id, number) for number in range(start, start + LOCKS_PER_QUESTION)]
            with jobs_connection().cursor() as cursor:
                cursor.execute(f"SELECT {', '.join(['IS_USED_LOCK(%s)'] * len(names))}", names)
                ended += sum(self._kill(session) for session in cursor.fetchone() if session is not None)
        return ended

    def _kill(self, session: int) -> bool:
        try:
            with jobs_connection().cursor() as cursor:
                cursor.execute(f"KILL {int(session)}")
        except DatabaseError as error:
            if not error.args or error.args[0] != NO_SUCH_THREAD:
                raise
            return False
        return True

    def name_session(self, process_id: str) -> None:
        """Take a lock that has the process's name and a number, and that ends with the session.

        A rescuer asks for the holders of all numbers, so that no row has to list them: a row that each new session writes
        would be locked by all threads that connect, and by the beats.
        """
        with jobs_connection().cursor() as cursor:
            for _ in range(MOST_SESSIONS):
                cursor.execute("SELECT GET_LOCK(%s, 0)", (_lock_name(process_id, next(_session_numbers)),))
                if (
                    cursor.fetchone()[0] == 1
                ):  # 0: an older session of this process, which has not ended yet, has the number
                    return

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        """Wait whole seconds; MariaDB knows 0, MySQL waits for one at least."""
        least = 0 if jobs_connection().mysql_is_mariadb else 1  # type: ignore[attr-defined]
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                "SET @django_jobs_wait = @@SESSION.innodb_lock_wait_timeout,"
                f" SESSION innodb_lock_wait_timeout = {max(math.ceil(seconds - 0.4), least)}"
            )
        try:
            yield
        finally:
            with suppress(Exception):  # a broken connection has nothing to restore
                # The driver's own cursor: Django's refuses to speak in a transaction that is to be rolled back.
                jobs_connection().connection.cursor().execute(
                    "SET SESSION innodb_lock_wait_timeout = @django_jobs_wait"
                )

    def silence_options(self, lease: float) -> dict[str, Any]:
        return {"connect_timeout": connect_timeout(lease)}

    def loop_options(self, lease: float) -> dict[str, Any]:
        seconds = max(1, int(lease / 2))  # the driver has no keepalives of its own, and waits for an answer without end
        return {"read_timeout": seconds, "write_timeout": seconds}

    def prepare_worker(self, lease: float) -> None:
        with jobs_connection().cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _lock_name(process_id: str, number: int) -> str:
    """Return the name of a lock, at most 64 characters: a process's name may be longer than that."""
    digest = hashlib.blake2b(process_id.encode(), digest_size=16).hexdigest()
    return f"django_jobs:{digest}:{number % MOST_SESSIONS}"


def _packets(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut a batch so that each statement stays well below the server's max_allowed_packet (16 MB by default)."""
    packet: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        size += sum(len(value) for value in row if isinstance(value, str))
        if packet and size > PACKET_CHARACTERS:
            yield packet
            packet, size = [], 0
        packet.append(row)
    if packet:
        yield packet
