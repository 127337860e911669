"""The hot statements for PostgreSQL 15+."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from operator import itemgetter
from typing import Any

from django.db import transaction

from .base import Dialect
from .limits import HELD
from .postgresql_limits import PostgreSQLLimits, array
from .words import (
    ATTEMPT,
    ATTEMPT_COLUMNS,
    CLAIMED_COLUMNS,
    COMPLETED,
    DEPENDENCY,
    ENDED,
    FIXED_COLUMNS,
    INSERT_COLUMNS,
    INSERT_DONE_STEP,
    INSERT_STEP,
    JOB,
    KEEPALIVES,
    KEYED,
    KEYED_QUEUES,
    LIVE_PROCESS,
    LOG,
    OPEN_EDGES,
    QUEUE,
    READY,
    READY_QUEUES,
    RECENT_SECONDS,
    SLOT,
    UNKEYED,
    AttemptRow,
    ClaimLook,
    EndedRow,
    LogRow,
    Place,
    PromotionLook,
    Snapshot,
    StepRow,
    Stretch,
    connect_timeout,
    silence,
)

NOW = "STATEMENT_TIMESTAMP()"
MOST_UNLISTED = 10_000  # numbers, most of them of savepoints: a transaction has the first of its own
LOCK_SPACE = 1_785_688_691  # the first key of our advisory locks, "jobs" in ASCII

_TYPES = {
    "payload": "jsonb",
    "metadata": "jsonb",
    "rank": "smallint",
    "scheduled_at": "timestamptz",
    "available_at": "timestamptz",
    "max_retries": "integer",
    "timeout_seconds": "double precision",
    "pending_dependencies": "integer",
    "pending_limits": "smallint",
}

# Text sorts as the times do, and is not parsed for jobs whose handler never asks.
_CLAIMED_CASTS = {"available_at": "::text", "created_at": "::text"}

# A job starts when its row is taken: the statement may have arrived, and waited for the processor, before the dependency ended.
# `= ANY(ARRAY(…))` takes each row by its primary key. Joined to what was picked, the planner reads the whole table for a batch as
# long as it has some ten thousand rows, and a nested loop once claimed 200 rows for LIMIT 1 (docs/decisions.md).
_TAKE = f"""
UPDATE {JOB} AS job SET status = 'running', fence = fence + 1, worker_id = %s, started_at = CLOCK_TIMESTAMP(), updated_at = {NOW}
WHERE id = ANY(ARRAY({{picked}}))
RETURNING {", ".join(f"job.{name}{_CLAIMED_CASTS.get(name, '')}" for name in CLAIMED_COLUMNS)}"""

_READY_JOBS = f"""
    SELECT id FROM {JOB}
    WHERE {UNKEYED} AND queue = %s AND {LIVE_PROCESS.format(now=NOW)}
    {{of_rank}} ORDER BY rank, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED"""
_CLAIM = _TAKE.format(picked=_READY_JOBS.format(of_rank=""))
_CLAIM_OF_RANK = _TAKE.format(picked=_READY_JOBS.format(of_rank="AND rank = %s"))

# By primary key, and looked at behind that: with their conditions in one place the planner may read an index of ready jobs.
_GIVEN_JOBS = f"""
    SELECT id FROM (
        SELECT id, status, pending_dependencies, pending_limits FROM {JOB} WHERE id = ANY(%s::text[]) FOR UPDATE SKIP LOCKED
    ) AS given WHERE {{are}} AND {LIVE_PROCESS.format(now=NOW)}"""
_CLAIM_JOBS = _TAKE.format(picked=_GIVEN_JOBS.format(are=READY))
_TAKE_HELD = _TAKE.replace("fence = fence + 1", "fence = fence + 1, pending_limits = 0")
_CLAIM_HELD = f"""
WITH claimed AS ({_TAKE_HELD.format(picked=_GIVEN_JOBS.format(are=HELD))}),
slots AS (UPDATE {SLOT} SET waits = FALSE, starts = FALSE WHERE job_id = ANY(ARRAY(SELECT id FROM claimed)))
SELECT * FROM claimed"""

# How many entries of an index this transaction has read: those that are dead and kept count. Those that an earlier scan has
# marked as removed do not, but until the next VACUUM their pages are read, and a page takes as long as some entries.
_PAGE = 3
_READ = f"""(SELECT pg_stat_get_xact_tuples_returned(relation) + {_PAGE} * pg_stat_get_xact_blocks_fetched(relation)
    FROM to_regclass('django_jobs_job_{{index}}') AS relation)"""
_DESCENT = 4 * _PAGE  # from the root to where a stretch begins, in an index of a million entries
_READ_READY, _READ_DUE = _READ.format(index="ready"), _READ.format(index="due")
_MOMENT = f"{NOW} - INTERVAL '0.25 seconds'"
# The transactions that go on: a snapshot lists those below the last one that has ended, and the others have the numbers from
# there up to the next one to be given, which is how old number 3 is. Of later ones a row has the time of the statement that
# writes it, which begins a little before the transaction gets its number.
_NEXT = "age('3'::xid)"
_BEFORE = f"{NOW} - INTERVAL '0.05 seconds'"
_RECENT = f"{NOW} - INTERVAL '{RECENT_SECONDS} seconds'"

# The stretches in their order, one after the other and only as far as the limit goes.
_READY_JOBS_ON_STRETCHES = f"""
    SELECT ready.id
    FROM unnest(%s::smallint[], %s::timestamptz[], %s::text[], %s::smallint[]) AS stretch(rank, available_at, id, until)
    CROSS JOIN LATERAL (
        SELECT id FROM {JOB} AS job
        WHERE {UNKEYED} AND queue = %s AND job.rank < stretch.until
            AND (job.rank, job.available_at, job.id) >= (stretch.rank, stretch.available_at, stretch.id)
        ORDER BY job.rank, job.available_at, job.id LIMIT %s FOR UPDATE SKIP LOCKED) AS ready
    WHERE {LIVE_PROCESS.format(now=NOW)}
    LIMIT %s"""
# What is told once stands in rows of its own, the first and the last one, in the last column: in each row it took a tenth of the
# claim's time. The parts of a UNION ALL are run in their order.
_NOTHING = ", ".join(["NULL"] * len(CLAIMED_COLUMNS))
_CLAIM_FROM = f"""
WITH claimed AS ({_TAKE.format(picked=_READY_JOBS_ON_STRETCHES)})
SELECT {_NOTHING}, concat_ws('|', COALESCE({_READ_READY}, 0), {_MOMENT}, {_RECENT}, pg_current_snapshot(), {_NEXT}, {_BEFORE})
UNION ALL SELECT claimed.*, NULL FROM claimed
UNION ALL SELECT {_NOTHING}, COALESCE({_READ_READY}, 0)::text"""

# From gap to gap between queues that are left out, and within a gap from one queue to the next.
_OTHER_QUEUES_WITH_WORK = f"""
WITH RECURSIVE found(queue, until) AS (
    SELECT (SELECT MIN(job.queue) FROM {JOB} AS job WHERE {UNKEYED} AND job.queue > gap.start AND job.queue < gap.until),
        gap.until
    FROM unnest(%s::text[], %s::text[]) AS gap(start, until)
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM {JOB} AS job WHERE {UNKEYED} AND job.queue > found.queue AND job.queue < found.until),
        found.until
    FROM found WHERE found.queue IS NOT NULL),
{KEYED_QUEUES}
SELECT queue FROM found WHERE queue IS NOT NULL UNION ALL SELECT queue FROM keyed WHERE queue IS NOT NULL"""
# Of queues that are named only these are read, and not what an old snapshot keeps of others.
_NAMED_QUEUES_WITH_WORK = f"""
SELECT given.queue FROM unnest(%s::text[]) AS given(queue) CROSS JOIN LATERAL (
    (SELECT 1 FROM {JOB} AS job WHERE {UNKEYED} AND job.queue = given.queue LIMIT 1)
    UNION ALL (SELECT 1 FROM {JOB} AS job WHERE {KEYED} AND job.queue = given.queue LIMIT 1)
    LIMIT 1) AS first"""
_AFTER_ALL = "\U0010ffff"

# Of jobs with a fair key the first of the first key stands for all of the queue: the cost is the number of queues here too.
_FIRST_SINCE = f"""
SELECT queues.queue, EXTRACT(EPOCH FROM CLOCK_TIMESTAMP() - first.available_at)::float8
FROM {{queues}} AS queues CROSS JOIN LATERAL (
    SELECT job.available_at FROM {JOB} AS job WHERE {{ready}} AND job.queue = queues.queue
    ORDER BY {{order}} LIMIT 1) AS first
WHERE NOT EXISTS (SELECT 1 FROM {QUEUE} AS queue WHERE queue.name = queues.queue AND queue.paused_at IS NOT NULL)"""
_UNKEYED_SINCE = _FIRST_SINCE.format(queues="found", ready=UNKEYED, order="job.rank, job.available_at, job.id")
_KEYED_SINCE = _FIRST_SINCE.format(
    queues="keyed", ready=KEYED, order="job.rank, job.fair_key, job.available_at, job.id"
)
_READY_SINCE = f"{READY_QUEUES}, {KEYED_QUEUES} {_UNKEYED_SINCE} UNION ALL {_KEYED_SINCE}"

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

_INSERT_ATTEMPTS = f"""
INSERT INTO {ATTEMPT} ({ATTEMPT_COLUMNS})
SELECT job_id, number, worker_id, {NOW} - seconds * INTERVAL '1 second', {NOW}, outcome, exception_class, error, traceback,
    release
FROM unnest(%s::text[], %s::int[], %s::text[], %s::float8[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
    AS new(job_id, number, worker_id, seconds, outcome, exception_class, error, traceback, release)"""

# One statement for all: each costs a link of a chain a tenth of its time. An UPDATE that waited for the lock counts from what the
# row is then. The edges come last, as all parts of a statement that nobody reads.
_SATISFY = f"""
WITH locked AS MATERIALIZED (SELECT id FROM {JOB} WHERE id = ANY(%s::text[]) ORDER BY id FOR UPDATE),
closed AS (UPDATE {DEPENDENCY} SET state = 'satisfied' WHERE id = ANY(%s::bigint[]))
UPDATE {JOB} AS job SET pending_dependencies = job.pending_dependencies - given.number,
    available_at = CASE WHEN job.pending_dependencies = given.number AND job.status = 'pending' THEN CLOCK_TIMESTAMP()
        ELSE job.available_at END
FROM unnest(%s::text[], %s::int[]) AS given(id, number)
WHERE job.id = ANY(ARRAY(SELECT id FROM locked)) AND job.id = given.id
RETURNING job.id, job.queue, job.status = 'pending' AND job.pending_dependencies = 0"""

_DONE_STEP = INSERT_DONE_STEP.format(
    now=NOW, json="%s::jsonb", began=f"{NOW} - %s::float8 * INTERVAL '1 second'", lock="FOR SHARE"
)
_STEP = INSERT_STEP.format(
    now=NOW,
    json="%s::jsonb",
    flag="%s::boolean",
    began=f"{NOW} - %s::float8 * INTERVAL '1 second'",
    due=f"{NOW} + %s::float8 * INTERVAL '1 second'",
    lock="FOR SHARE RETURNING id",
)

_TAKE_DUE = f"""
UPDATE {JOB} AS job SET status = 'pending', updated_at = {NOW}
WHERE id = ANY(ARRAY(
    SELECT id FROM {JOB} WHERE status = 'scheduled' AND available_at <= {NOW} {{start}}
    ORDER BY available_at LIMIT %s FOR UPDATE SKIP LOCKED))
RETURNING queue"""

_PROMOTE = _TAKE_DUE.format(start="")

_PROMOTE_FROM = f"""
WITH before AS MATERIALIZED (SELECT {_READ_DUE} AS entries, {_NEXT} AS next),
promoted AS ({_TAKE_DUE.format(start="AND available_at >= %s::timestamptz")}, available_at)
SELECT promoted.*, {_READ_DUE} - before.entries, {_MOMENT}, pg_current_snapshot()::text, before.next, {_BEFORE}
FROM before LEFT JOIN promoted ON TRUE"""

_RANK, _AVAILABLE, _ID = (CLAIMED_COLUMNS.index(name) for name in ("rank", "available_at", "id"))
_in_order = itemgetter(_RANK, _AVAILABLE, _ID)  # a row of a claim, as a key that makes no named tuple of each


class PostgreSQL(PostgreSQLLimits, Dialect):
    """One statement per move; RETURNING gives back what was moved."""

    now = NOW
    later = f"{NOW} + %s * INTERVAL '1 second'"
    counts_reads = True
    moment = "available_at::text"
    done_step = _DONE_STEP
    has_lateral = True
    aged = "heads.since + heads.place * {step}::bigint * INTERVAL '1 microsecond'"

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
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {JOB} ({', '.join(INSERT_COLUMNS)}, {FIXED_COLUMNS})"
                f" SELECT {', '.join(selected.values())}, {NOW}, {NOW}, 0, 0, 0, '' {source if arrays else ''}",
                given,
            )

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Copy them in: arrays take twice as long. The session's zone is UTC, as Django sets it."""
        with self.connection.cursor() as cursor, self.connection.wrap_database_errors:
            statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
            with cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)

    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM, (process_id, queue, process_id, queue, limit))

    def claim_of_rank(self, queue: str, rank: int, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM_OF_RANK, (process_id, queue, process_id, queue, rank, limit))

    def claim_jobs(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM_JOBS, (process_id, array(ids), process_id, queue))

    def claim_held(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        return self._claim(_CLAIM_HELD, (process_id, array(ids), process_id, queue))

    def _claim(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        if len(rows) > 1:  # an UPDATE returns its rows in no order
            rows.sort(key=_in_order)
        return rows

    def claim_from(self, stretches: Sequence[Stretch], queue: str, limit: int, process_id: str) -> ClaimLook:
        ranks, times, ids = zip(*(stretch.start for stretch in stretches), strict=True)
        ends = [stretch.end for stretch in stretches]
        bounds = (array(ranks), array(times), array(ids), array(ends))
        found = self.read(_CLAIM_FROM, (process_id, *bounds, queue, limit, process_id, queue, limit))
        before, moment, recent, *seen = found[0][-1].split("|")
        rows = sorted((row[:-1] for row in found[1:-1]), key=_in_order)
        ranks_taken = {row[_RANK] for row in rows}
        last = _place(rows[-1]) if rows else None
        in_vain = max(0, int(found[-1][-1]) - int(before) - len(rows) - _DESCENT * len(stretches))
        return ClaimLook(rows, ranks_taken, last, in_vain, moment, recent, _snapshot(*seen))

    def queues_with_work(self, besides: Sequence[str] = (), among: Sequence[str] | None = None) -> list[str]:
        if among is not None:
            wanted = [queue for queue in among if queue not in besides]
            return [queue for (queue,) in self.read(_NAMED_QUEUES_WITH_WORK, (array(wanted),))] if wanted else []
        if not besides:
            return super().queues_with_work()
        names = sorted(besides)
        gaps = (array(["", *names]), array([*names, _AFTER_ALL]))
        found = dict.fromkeys(queue for (queue,) in self.read(_OTHER_QUEUES_WITH_WORK, gaps))
        return [queue for queue in found if queue not in names]

    def ready_queues(self) -> list[tuple[str, float]]:
        """Return (queue, seconds for which the first of its ready jobs has been due), of queues that have one and may run it."""
        return [(queue, seconds) for queue, seconds in self.read(_READY_SINCE)]

    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        ids, fences, results = zip(*rows, strict=True)
        with self.connection.cursor() as cursor:
            cursor.execute(_COMPLETE, (array(ids), array(fences), array(results)))
            return {row[0] for row in cursor.fetchall()}

    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        return {row[0] for row in self.read(_END, [array(column) for column in zip(*rows, strict=True)])}

    def insert_attempts(self, rows: Sequence[AttemptRow]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(_INSERT_ATTEMPTS, [array(column) for column in zip(*rows, strict=True)])

    def write_logs(self, rows: Sequence[LogRow]) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {LOG} (job_id, number, text) SELECT * FROM unnest(%s::text[], %s::int[], %s::text[])"
                " ON CONFLICT (job_id, number) DO UPDATE SET text = EXCLUDED.text",
                [array(column) for column in zip(*rows, strict=True)],
            )

    def insert_step(self, job_id: str, fence: int, row: StepRow) -> int | None:
        return next((key for (key,) in self.read(_STEP, row.parameters(job_id, fence))), None)

    def open_edges(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        return self.read(f"{OPEN_EDGES} = ANY(%s::text[])", (array(ids),))

    def satisfy(self, edges: Sequence[int], counts: Mapping[str, int]) -> list[tuple[str, str]]:
        ids = array(list(counts))
        rows = self.read(_SATISFY, (ids, array(edges), ids, array(list(counts.values()))))
        return [(job_id, queue) for job_id, queue, is_ready in rows if is_ready]

    def end_members(self, ids: Sequence[str]) -> int:
        # Of a list the planner knows the length, and reads the whole table as long as it has no statistics of it.
        return self._end_members("= ANY(ARRAY(SELECT unnest(%s::text[])))", (array(ids),))

    def promote(self, limit: int) -> list[str]:
        return [row[0] for row in self.read(_PROMOTE, (limit,))]

    def promote_from(self, start: datetime | None, limit: int) -> PromotionLook:
        found = self.read(_PROMOTE_FROM, (start or "-infinity", limit))
        entries, moment, *seen = found[0][-5:]
        due = [row for row in found if row[0] is not None]
        last, snapshot = max((row[1] for row in due), default=None), _snapshot(*seen)
        return PromotionLook([row[0] for row in due], last, (entries or 0) - len(due), moment, snapshot)

    def lock_numbers(self, numbers: Sequence[int]) -> None:
        # The function locks one after the other, in the order of the array.
        self.read(
            f"SELECT count(pg_advisory_xact_lock({LOCK_SPACE}, id)) FROM unnest(%s::int[]) AS given(id)",
            (array(numbers),),
        )

    def oldest_ready(self) -> list[tuple[str, datetime]]:
        with self._uncompiled():
            return super().oldest_ready()

    @contextmanager
    def _uncompiled(self) -> Iterator[None]:
        """Keep the server from compiling the statements of the block: hops seem dear to it, 800 ms before one that takes 4."""
        # The end of a transaction of its own brings the setting back; the caller's goes on with what it had.
        before = self.read("SELECT current_setting('jit')")[0][0] if self.connection.in_atomic_block else None
        with transaction.atomic(using=self.connection.alias, savepoint=False), self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL jit = off")
            yield
            if before is not None:
                cursor.execute(f"SET LOCAL jit = {before}")

    def end_sessions(self, process_id: str) -> int:
        ended = self.read(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()",
            (session_name(process_id),),
        )
        return int(ended[0][0])

    def count_sessions(self, process_id: str) -> int:
        return int(
            self.read(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()",
                (session_name(process_id),),
            )[0][0]
        )

    def name_session(self, process_id: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", (session_name(process_id),))

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {max(1, int(seconds * 1000))}")
        yield

    @classmethod
    def silence_options(cls, lease: float) -> dict[str, Any]:
        idle, interval, user_timeout = silence(lease)
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
        idle, interval, user_timeout = silence(lease)
        with self.connection.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(
                "SELECT set_config(name, chosen.value, false) FROM pg_settings JOIN (VALUES ('tcp_keepalives_idle', %s),"
                " ('tcp_keepalives_interval', %s), ('tcp_keepalives_count', %s), ('tcp_user_timeout', %s)) AS chosen(name, value)"
                " USING (name) WHERE source = 'default'",
                (str(idle), str(interval), str(KEEPALIVES), str(user_timeout)),
            )
        self.connection.connection.isolation_level = None


def _place(row: tuple[Any, ...]) -> Place:
    return Place._make(_in_order(row))


def _snapshot(text: str, age_of_3: int | str, before: Any) -> Snapshot:
    _, end, listed = text.split(":")
    number_of = (int(age_of_3) + 3 - int(end)) % 2**32  # the age is counted in 32 bits
    unlisted = range(int(end), int(end) + min(number_of, MOST_UNLISTED))
    return Snapshot(frozenset([*map(int, filter(None, listed.split(","))), *unlisted]), before)


def session_name(process_id: str) -> str:
    """Return the application_name of a process's sessions; PostgreSQL keeps 63 bytes of ASCII."""
    return f"jobs {process_id[-58:]}".encode("ascii", "replace").decode()
