"""The hot statements for MariaDB 10.6+: no UPDATE … RETURNING, so a move is two statements in a transaction.

MySQL has them too, but for what is in `mysql`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, ClassVar, cast

from django.db import DatabaseError, IntegrityError, transaction

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
    KEEPALIVES,
    LIVE_PROCESS,
    LOG,
    OPEN_MEMBER,
    READY,
    UNKEYED,
    AttemptRow,
    EndedRow,
    LogRow,
    StepRow,
    connect_timeout,
    silence,
)

NOW = "UTC_TIMESTAMP(6)"
LIMIT_LOCK = "django_jobs_limitlock"
ROWS_PER_INSERT = 500
NO_SUCH_THREAD = 1094
DUPLICATE_KEY = 1062
MOST_SESSIONS = 1024
LOCKS_PER_QUESTION = 256
PACKET_CHARACTERS = 1_000_000

# The index gives the order: a filesort would lock every row that it reads.
_READY_JOBS = f"""
SELECT {", ".join(CLAIMED_COLUMNS)} FROM {JOB} FORCE INDEX (django_jobs_job_ready)
WHERE queue = %s AND {UNKEYED} AND {LIVE_PROCESS.format(now=NOW)} {{of_rank}}
ORDER BY `rank`, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED"""

# By primary key even in a tiny table: a scan would wait for the locks of rows that are none of ours.
_COMPLETE = f"""
UPDATE JSON_TABLE(%s, '$[*]' COLUMNS(
    id VARCHAR(64) PATH '$[0]', fence BIGINT PATH '$[1]', result LONGTEXT PATH '$[2]')) AS done
STRAIGHT_JOIN {JOB} AS job FORCE INDEX (PRIMARY)
    ON job.id = CONVERT(done.id USING utf8mb4) COLLATE {{collation}} AND job.fence = done.fence
SET {COMPLETED.format(job="job", now=NOW).replace("fence =", "job.fence =")}, job.result = done.result"""


# Both walk the index from group to group, one entry each ("Using index for group-by"). All columns before `rank` have to be named
# for that, and a recursive statement of hops would read every ready job again for each queue.
_QUEUES_WITH_WORK = f"SELECT DISTINCT queue FROM {JOB} FORCE INDEX (django_jobs_job_ready) WHERE {READY}"
_OLDEST_READY = f"""
SELECT queue, MIN(available_at) FROM {JOB} FORCE INDEX (django_jobs_job_ready) WHERE {READY}
GROUP BY queue, status, pending_dependencies, pending_limits, `rank`, fair_key"""

_DUE = f"{NOW} + INTERVAL ROUND(ended.delay * 1000000) MICROSECOND"
_END = f"""
UPDATE JSON_TABLE(%s, '$[*]' COLUMNS(
    id VARCHAR(64) PATH '$[0]', fence BIGINT PATH '$[1]', status VARCHAR(10) PATH '$[2]', delay DOUBLE PATH '$[3]',
    spent INT PATH '$[4]', crashes INT PATH '$[5]', error LONGTEXT PATH '$[6]')) AS ended
STRAIGHT_JOIN {JOB} AS job FORCE INDEX (PRIMARY)
    ON job.id = CONVERT(ended.id USING utf8mb4) COLLATE {{collation}} AND job.fence = ended.fence
SET {ENDED.format(prefix="job.", job="job", now=NOW, due=_DUE)}"""
# Pairs in a list are compared one by one with each row, which takes six times as long for 512 of them.
_LOCK_WITH_FENCE = f"""
SELECT job.id FROM JSON_TABLE(%s, '$[*]' COLUMNS(id VARCHAR(64) PATH '$[0]', fence BIGINT PATH '$[1]')) AS given
STRAIGHT_JOIN {JOB} AS job FORCE INDEX (PRIMARY)
    ON job.id = CONVERT(given.id USING utf8mb4) COLLATE {{collation}} AND job.fence = given.fence
{{lock}}"""

# A list of ids would be looked for by a scan where it names much of the table, whatever index is asked for.
_END_MEMBERS = f"""
DELETE member FROM JSON_TABLE(%s, '$[*]' COLUMNS(id VARCHAR(64) PATH '$')) AS ended
STRAIGHT_JOIN {OPEN_MEMBER} AS member FORCE INDEX (PRIMARY)
    ON member.job_id = CONVERT(ended.id USING utf8mb4) COLLATE {{collation}}"""

_STARTED = f"{NOW} - INTERVAL ROUND(%s * 1000000) MICROSECOND"
_ATTEMPT_COLUMNS = ATTEMPT_COLUMNS.replace("release", "`release`")  # a word of the language here
_ATTEMPT = f"(%s, %s, %s, {_STARTED}, {NOW}, %s, %s, %s, %s, %s)"

_DONE_STEP = INSERT_DONE_STEP.format(now=NOW, json="%s", began=_STARTED, lock="LOCK IN SHARE MODE")
_STEP = INSERT_STEP.format(
    now=NOW,
    json="%s",
    flag="%s",
    began=_STARTED,
    due=f"{NOW} + INTERVAL ROUND(%s * 1000000) MICROSECOND",
    lock="LOCK IN SHARE MODE",
)


def _quoted(names: Sequence[str]) -> str:
    """Quote the words of the language, `rank` on MySQL and `release`, and leave the rest readable."""
    return ", ".join(f"`{name}`" if name in ("rank", "release") else name for name in names)


_READY_JOBS = _READY_JOBS.replace(", ".join(CLAIMED_COLUMNS), _quoted(CLAIMED_COLUMNS))
_PICK_JOBS = (
    f"SELECT {_quoted(CLAIMED_COLUMNS)} FROM {JOB} FORCE INDEX (PRIMARY) WHERE id IN ({{ids}}) AND {READY}"
    f" AND {LIVE_PROCESS.format(now=NOW)} ORDER BY id FOR UPDATE SKIP LOCKED"
)
_PICK_HELD = _PICK_JOBS.replace(READY, HELD)
_PICK = _READY_JOBS.format(of_rank="")
_PICK_OF_RANK = _READY_JOBS.format(of_rank="AND `rank` = %s")
# One entry a rank ("Using index for group-by"), which takes all columns up to it; of `rank` alone it reads every ready job.
_READY_RANKS = (
    f"SELECT DISTINCT queue, status, pending_dependencies, pending_limits, `rank` FROM {JOB}"
    f" FORCE INDEX (django_jobs_job_ready) WHERE queue = %s AND {READY}"
)
_COLUMNS = f"{_quoted(INSERT_COLUMNS)}, {FIXED_COLUMNS}"
_FENCE = CLAIMED_COLUMNS.index("fence")
_session_numbers = itertools.count()


class MariaDB(Dialect):
    """Pick and lock in index order, then update by primary key, in READ COMMITTED."""

    now = NOW
    later = f"{NOW} + INTERVAL ROUND(%s * 1000000) MICROSECOND"
    share_lock = "LOCK IN SHARE MODE"
    job_lock: ClassVar[str] = "FOR UPDATE"  # in a join of `job` with what is no table
    done_step = _DONE_STEP
    collation: ClassVar[str] = "utf8mb4_nopad_bin"  # of the columns, as models.fields makes them
    least_lock_wait: ClassVar[int] = 0
    # A scan of a tiny table would wait for rows that are none of ours.
    by_primary_key = "FORCE INDEX (PRIMARY)"
    by_open_members = "FORCE INDEX (django_jobs_open_members)"
    union_part = "({part})"  # as a table of its own each took 1 ms
    ready_job = f"{JOB} AS job FORCE INDEX (django_jobs_job_ready)"
    ready_hint = "FORCE INDEX (django_jobs_job_ready)"
    slot_hint = "FORCE INDEX (django_jobs_limitslot_order)"
    groups = True
    aged = "heads.since + INTERVAL heads.place * {step} MICROSECOND"

    def insert_job(self, row: Sequence[Any]) -> datetime | None:
        statement = f"INSERT INTO {JOB} ({_COLUMNS}) VALUES ({self._values()})"
        try:
            with self.connection.cursor() as cursor:
                return self.to_datetime(self._created_at(cursor, statement, row))
        except IntegrityError as error:
            # The failed statement is undone alone; the caller's transaction goes on.
            if error.args and error.args[0] == DUPLICATE_KEY:
                return None
            raise

    def _created_at(self, cursor: Any, statement: str, row: Sequence[Any]) -> datetime:
        """Run the INSERT of a row and return its created_at."""
        cursor.execute(f"{statement} RETURNING created_at", row)
        return cast(datetime, cursor.fetchone()[0])

    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        one = f"({self._values()})"
        with self.connection.cursor() as cursor:
            for start in range(0, len(rows), ROWS_PER_INSERT):
                chunk = rows[start : start + ROWS_PER_INSERT]
                cursor.execute(
                    f"INSERT INTO {JOB} ({_COLUMNS}) VALUES {', '.join([one] * len(chunk))}",
                    [value for row in chunk for value in row],
                )

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Give a column that has one value throughout as that value, and the others as one JSON text.

        The driver writes each value of a multi-row INSERT by itself, which takes twice as long.
        """
        for chunk in _packets([tuple(row) for row in rows]):
            given = dict(zip(columns, zip(*chunk, strict=True), strict=True))
            arrays = {name: column for name, column in given.items() if column.count(column[0]) < len(column)}
            read = [
                f"{_quoted([name])} {_json_type(column)} PATH '$[{place}]'"
                for place, (name, column) in enumerate(arrays.items())
            ]
            selected = (_quoted([name]) if name in arrays else "%s" for name in columns)
            values = list(zip(*arrays.values(), strict=True)) if arrays else [()] * len(chunk)
            with self.connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO {table} ({_quoted(columns)}) SELECT {', '.join(selected)} FROM"
                    f" JSON_TABLE(%s, '$[*]' COLUMNS({', '.join(read or ['place FOR ORDINALITY'])})) AS new",
                    [*(column[0] for name, column in given.items() if name not in arrays), json.dumps(values)],
                )

    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_PICK, (queue, process_id, queue, limit), process_id)

    def claim_of_rank(self, queue: str, rank: int, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_PICK_OF_RANK, (queue, process_id, queue, rank, limit), process_id)

    def claim_jobs(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        pick = _PICK_JOBS.format(ids=", ".join(["%s"] * len(ids)))
        return self._claim(pick, (*ids, process_id, queue), process_id)

    def claim_held(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        pick = _PICK_HELD.format(ids=", ".join(["%s"] * len(ids)))
        return self.take_slots(self._claim(pick, (*ids, process_id, queue), process_id, ", pending_limits = 0"))

    def ready_ranks(self, queue: str) -> list[int]:
        return [row[-1] for row in self.read(_READY_RANKS, (queue,))]

    def _claim(
        self, pick: str, parameters: tuple[Any, ...], process_id: str, besides: str = ""
    ) -> list[tuple[Any, ...]]:
        with (
            transaction.atomic(using=self.connection.alias, savepoint=False),
            self.connection.cursor() as cursor,
        ):
            cursor.execute(pick, parameters)
            rows = cursor.fetchall()
            if not rows:
                return []
            cursor.execute(
                f"UPDATE {JOB} SET status = 'running', fence = fence + 1, worker_id = %s, started_at = {NOW},"
                f" updated_at = {NOW}{besides} WHERE id IN ({', '.join(['%s'] * len(rows))})",
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
            ours = self._lock_with_fence([(row[0], row[1]) for row in chunk])
            if ours:
                self._update(_END, [row for row in chunk if row[0] in ours])
            ended |= ours
        return ended

    def end_members(self, ids: Sequence[str]) -> int:
        return self._update(_END_MEMBERS, ids)

    def _update(self, statement: str, rows: Sequence[Any]) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(statement.format(collation=self.collation), (json.dumps(rows),))
            return int(cursor.rowcount)

    def _with_fence(self, fences: Sequence[tuple[str, int]], rest: str) -> set[str]:
        found = self.read(
            f"SELECT id FROM {JOB} WHERE id IN ({', '.join(['%s'] * len(fences))})"
            f" AND (id, fence) IN ({', '.join(['(%s, %s)'] * len(fences))}) {rest}",
            [job_id for job_id, _ in fences] + [value for one in fences for value in one],
        )
        return {row[0] for row in found}

    def _lock_with_fence(self, fences: Sequence[tuple[str, int]]) -> set[str]:
        """Lock the jobs that have these fences, in the order of their ids, and return which they are."""
        statement = _LOCK_WITH_FENCE.format(collation=self.collation, lock=self.job_lock)
        return {row[0] for row in self.read(statement, (json.dumps(sorted(fences)),))}

    def insert_attempts(self, rows: Sequence[AttemptRow]) -> None:
        with self.connection.cursor() as cursor:
            for chunk in _packets(rows):
                cursor.execute(
                    f"INSERT INTO {ATTEMPT} ({_ATTEMPT_COLUMNS}) VALUES {', '.join([_ATTEMPT] * len(chunk))}",
                    [value for row in chunk for value in row],
                )

    def write_logs(self, rows: Sequence[LogRow]) -> None:
        with self.connection.cursor() as cursor:
            for chunk in _packets(rows):
                cursor.execute(
                    f"INSERT INTO {LOG} (job_id, number, text) VALUES {', '.join(['(%s, %s, %s)'] * len(chunk))}"
                    " ON DUPLICATE KEY UPDATE text = VALUES(text)",
                    [value for row in chunk for value in row],
                )

    def insert_step(self, job_id: str, fence: int, row: StepRow) -> int | None:
        with self.connection.cursor() as cursor:
            cursor.execute(_STEP, row.parameters(job_id, fence))
            return int(cursor.lastrowid) if cursor.rowcount else None

    def promote(self, limit: int) -> list[str]:
        with transaction.atomic(using=self.connection.alias), self.connection.cursor() as cursor:
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

    def queues_with_work(self, besides: Sequence[str] = (), among: Sequence[str] | None = None) -> list[str]:
        return [row[0] for row in self.read(_QUEUES_WITH_WORK)]

    def oldest_ready(self) -> list[tuple[str, datetime]]:
        return [(queue, self.to_datetime(oldest)) for queue, oldest in self.read(_OLDEST_READY)]

    def lock_numbers(self, numbers: Sequence[int]) -> None:
        """Lock rows that stand for them: locks with names would outlast the transaction."""
        locks = list(numbers)
        statement = f"SELECT id FROM {LIMIT_LOCK} WHERE id IN ({', '.join(['%s'] * len(locks))}) ORDER BY id FOR UPDATE"
        while missing := sorted({*locks} - {row[0] for row in self.read(statement, locks)}):
            with self.connection.cursor() as cursor:
                rows = ", ".join(["(%s)"] * len(missing))
                cursor.execute(f"INSERT IGNORE INTO {LIMIT_LOCK} (id) VALUES {rows}", missing)

    def end_sessions(self, process_id: str) -> int:
        """End the sessions that hold a lock with the process's name."""
        return sum(self._kill(session) for session in self._sessions(process_id))

    def count_sessions(self, process_id: str) -> int:
        return len(set(self._sessions(process_id)))

    def _sessions(self, process_id: str) -> Iterator[int]:
        for start in range(0, MOST_SESSIONS, LOCKS_PER_QUESTION):
            names = [_lock_name(process_id, number) for number in range(start, start + LOCKS_PER_QUESTION)]
            holders = self.read(f"SELECT {', '.join(['IS_USED_LOCK(%s)'] * len(names))}", names)[0]
            yield from (session for session in holders if session is not None)

    def _kill(self, session: int) -> bool:
        try:
            with self.connection.cursor() as cursor:
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
        with self.connection.cursor() as cursor:
            for _ in range(MOST_SESSIONS):
                cursor.execute("SELECT GET_LOCK(%s, 0)", (_lock_name(process_id, next(_session_numbers)),))
                if (
                    cursor.fetchone()[0] == 1
                ):  # 0: an older session of this process, which has not ended yet, has the number
                    return

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        """Wait whole seconds."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SET @django_jobs_wait = @@SESSION.innodb_lock_wait_timeout,"
                f" SESSION innodb_lock_wait_timeout = {max(math.ceil(seconds - 0.4), self.least_lock_wait)}"
            )
        try:
            yield
        finally:
            with suppress(Exception):  # a broken connection has nothing to restore
                # The driver's own cursor: Django's refuses to speak in a transaction that is to be rolled back.
                self.connection.connection.cursor().execute("SET SESSION innodb_lock_wait_timeout = @django_jobs_wait")

    @classmethod
    def silence_options(cls, lease: float) -> dict[str, Any]:
        return {"connect_timeout": connect_timeout(lease)}

    @classmethod
    def loop_options(cls, lease: float) -> dict[str, Any]:
        seconds = max(1, int(lease / 2))  # the driver has no keepalives of its own, and waits for an answer without end
        return {"read_timeout": seconds, "write_timeout": seconds}

    def limit_lock_waits(self, seconds: float) -> None:
        """Limit the waits for rows (50 s by default) and for tables and the whole server (a day).

        A statement that waits for a row holds the backup lock meanwhile. `SET GLOBAL read_only`, FLUSH and backups wait for that
        lock, everybody's writes wait behind them, and so may the transaction that has the row.
        """
        chosen = ", ".join(
            f"SESSION {name} = CAST(IF(@@SESSION.{name} = @@GLOBAL.{name},"  # MySQL takes no number of another type
            f" LEAST(@@SESSION.{name}, {max(1, int(seconds))}), @@SESSION.{name}) AS UNSIGNED)"
            for name in ("innodb_lock_wait_timeout", "lock_wait_timeout")
        )
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET {chosen}")

    def prepare_worker(self, lease: float) -> None:
        raw: Any = self.connection.connection
        _watch_for_silence(raw.fileno(), lease)
        with self.connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _watch_for_silence(descriptor: int, lease: float) -> None:
    """Have the system ask a peer that is silent whether it still lives, and give it up before a lease (seconds) is over.

    The driver has no option for that, and a read timeout would end the long queries of handlers.
    """
    idle, interval, user_timeout = silence(lease)
    options = {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": KEEPALIVES,
        "TCP_USER_TIMEOUT": user_timeout,
    }
    # OSError: a Unix socket has no such options
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if number := getattr(socket, name, None):  # not every system has all
                ours.setsockopt(socket.IPPROTO_TCP, number, value)


def _json_type(column: Sequence[Any]) -> str:
    """Return the type with which the values of a column are read out of JSON; the target column makes a time of a text."""
    kind = next(type(value) for value in column if value is not None)
    return {int: "BIGINT", float: "DOUBLE"}.get(kind, "LONGTEXT")


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
