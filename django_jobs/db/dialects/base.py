"""The interface of a dialect: the few hot statements that are written by hand, one implementation per database."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.numbers import RANKS_PER_PRIORITY

JOB = "django_jobs_job"
DEPENDENCY = "django_jobs_jobdependency"
ATTEMPT = "django_jobs_attempt"
PROCESS = "django_jobs_workerprocess"
QUEUE = "django_jobs_queue"
BATCH = "django_jobs_batch"
MEMBER = "django_jobs_batchmember"
OPEN_MEMBER = "django_jobs_openmember"
STEP = "django_jobs_jobstep"
LOG = "django_jobs_joblog"
SLOT = "django_jobs_limitslot"
START = "django_jobs_limitstart"
READY = "status = 'pending' AND pending_dependencies = 0 AND pending_limits = 0"
HELD = "status = 'pending' AND pending_dependencies = 0 AND pending_limits = 1"
# A claim that minds no turns takes of these alone: those with a key have an index of their own, or a part of it.
UNKEYED = f"{READY} AND fair_key IS NULL"
KEYED = f"{READY} AND fair_key IS NOT NULL"
RANK_LIMITS = (-101, 101)  # before the first rank, and after the last one
# So few that they fit into PostgreSQL's table of locks however many scopes there are; two scopes may share one.
LIMIT_LOCKS = 512
TURN_LOCKS = 64  # numbered behind those of limits, and taken before them
MOST_COUNTED = 10_000
COUNTS_PER_STATEMENT = 100
KEEPALIVES = 3
RECENT_SECONDS = 2.5  # who promotes jobs does it within that time after they were due, or says so

CLAIMED_COLUMNS = (
    "id",
    "job_type",
    "queue",
    "payload",
    "fence",
    "retry_count",
    "max_retries",
    "timeout_seconds",
    "crash_count",
    "metadata",
    "rank",
    "available_at",
    "created_at",
    "batch_id",
)

# One row of an INSERT. created_at, updated_at and available_at of None stand for the database's "now"; the counters start at 0.
INSERT_COLUMNS = (
    "id",
    "job_type",
    "queue",
    "payload",
    "rank",
    "status",
    "scheduled_at",
    "available_at",
    "max_retries",
    "timeout_seconds",
    "metadata",
    "unique_key",
    "unique_lock",
    "pending_dependencies",
    "batch_id",
    "limit_key",
    "queue_limit_key",
    "pending_limits",
    "fair_key",
)
SLOT_COLUMNS = ("job_id", "scope", "waits", "starts", "queue", "rank", "available_at", "keyed", "fair_key")


FIXED_COLUMNS = "created_at, updated_at, retry_count, fence, crash_count, progress_message"
LIVE_PROCESS = (
    f"EXISTS (SELECT 1 FROM {PROCESS} WHERE id = %s AND lease_expires_at > {{now}})"
    f" AND NOT EXISTS (SELECT 1 FROM {QUEUE} WHERE name = %s AND paused_at IS NOT NULL)"
)
# The guard of a settle is id and fence, which moves at each change of hands, and not status: with a predicate on that the planner
# may take the index of running rows, 26 times slower behind an old snapshot.
COMPLETED = (
    "status = 'completed', fence = {job}.fence + 1, finished_at = {now}, updated_at = {now},"
    " error = NULL, unique_lock = NULL, cancel_requested_at = NULL"
)
OPEN_EDGES = f"SELECT id, job_id, depends_on_id, on_failure FROM {DEPENDENCY} WHERE state = 'open' AND depends_on_id"

# Hops along the index of ready jobs: the cost is the number of queues, not of jobs.
_HOPS = f"""{{found}}(queue) AS (
    SELECT MIN(queue) FROM {JOB} WHERE {{ready}}
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM {JOB} AS job WHERE {{ready}} AND job.queue > {{found}}.queue)
    FROM {{found}} WHERE {{found}}.queue IS NOT NULL)"""
READY_QUEUES = f"WITH RECURSIVE {_HOPS.format(found='found', ready=UNKEYED)}"
KEYED_QUEUES = _HOPS.format(found="keyed", ready=KEYED)
_QUEUES_WITH_WORK = (
    f"{READY_QUEUES}, {KEYED_QUEUES} SELECT queue FROM found WHERE queue IS NOT NULL"
    " UNION SELECT queue FROM keyed WHERE queue IS NOT NULL"
)

# On to each rank within a queue: of each pair of queue and rank only the first entry is read, which is its oldest job. Jobs with
# fair keys are sorted by those within a rank, and the first entry of each key is read.
_OLDEST_READY = f"""{READY_QUEUES},
level(queue, place) AS (
    SELECT found.queue, (SELECT MIN(job.rank) FROM {JOB} AS job WHERE {UNKEYED} AND job.queue = found.queue)
    FROM found WHERE found.queue IS NOT NULL
    UNION ALL
    SELECT level.queue, (SELECT MIN(job.rank) FROM {JOB} AS job
                         WHERE {UNKEYED} AND job.queue = level.queue AND job.rank > level.place)
    FROM level WHERE level.place IS NOT NULL),
{KEYED_QUEUES},
keyed_level(queue, place) AS (
    SELECT keyed.queue, (SELECT MIN(job.rank) FROM {JOB} AS job WHERE {KEYED} AND job.queue = keyed.queue)
    FROM keyed WHERE keyed.queue IS NOT NULL
    UNION ALL
    SELECT keyed_level.queue, (SELECT MIN(job.rank) FROM {JOB} AS job
                               WHERE {KEYED} AND job.queue = keyed_level.queue AND job.rank > keyed_level.place)
    FROM keyed_level WHERE keyed_level.place IS NOT NULL),
turn(queue, place, fair_key) AS (
    SELECT keyed_level.queue, keyed_level.place, (SELECT MIN(job.fair_key) FROM {JOB} AS job
        WHERE {KEYED} AND job.queue = keyed_level.queue AND job.rank = keyed_level.place)
    FROM keyed_level WHERE keyed_level.place IS NOT NULL
    UNION ALL
    SELECT turn.queue, turn.place, (SELECT MIN(job.fair_key) FROM {JOB} AS job
        WHERE {KEYED} AND job.queue = turn.queue AND job.rank = turn.place AND job.fair_key > turn.fair_key)
    FROM turn WHERE turn.fair_key IS NOT NULL)
SELECT level.queue, (SELECT MIN(job.available_at) FROM {JOB} AS job
                     WHERE {UNKEYED} AND job.queue = level.queue AND job.rank = level.place)
FROM level WHERE level.place IS NOT NULL
UNION ALL
SELECT first.queue, MIN(first.since) FROM (
    SELECT turn.queue, (SELECT MIN(job.available_at) FROM {JOB} AS job WHERE {KEYED} AND job.queue = turn.queue
                            AND job.rank = turn.place AND job.fair_key = turn.fair_key) AS since
    FROM turn WHERE turn.fair_key IS NOT NULL) AS first
GROUP BY first.queue"""

_READY_RANKS = f"""
WITH RECURSIVE found(place) AS (
    SELECT MIN(job.rank) FROM {JOB} AS job WHERE {UNKEYED} AND job.queue = %s
    UNION ALL
    SELECT (SELECT MIN(job.rank) FROM {JOB} AS job WHERE {UNKEYED} AND job.queue = %s AND job.rank > found.place)
    FROM found WHERE found.place IS NOT NULL)
SELECT place FROM found WHERE place IS NOT NULL"""
_READY_OF_RANK = (
    "SELECT job.rank AS place, job.available_at AS since, job.id AS job_id FROM {job} WHERE job.queue = %s"
    f" AND {UNKEYED} AND job.rank = %s ORDER BY job.available_at, job.id LIMIT %s"
)
_SHARES = (
    "SELECT picked.place, COUNT(*) FROM (SELECT heads.place AS place FROM ({heads}) AS heads"
    " ORDER BY {key}, heads.since, heads.job_id LIMIT %s) AS picked GROUP BY picked.place ORDER BY picked.place"
)

_COUNT_READY = (
    "SELECT %s AS place, (SELECT COUNT(*) FROM (SELECT 1 AS one FROM"
    f" {JOB} WHERE queue = %s AND {UNKEYED} LIMIT %s) AS capped)"
    f" + (SELECT COUNT(*) FROM (SELECT 1 AS one FROM {JOB} WHERE queue = %s AND {KEYED} LIMIT %s) AS capped) AS number"
)

_LIMIT_KEYS = (
    f"SELECT id, limit_key, queue_limit_key, fair_key FROM {JOB} WHERE status = 'running' AND worker_id = %s AND id IN"
)
_SLOTS_TAKEN = (
    "SELECT slot.scope, slot.queue, COUNT(CASE WHEN job.status = 'running' THEN 1 END),"
    " COUNT(CASE WHEN job.status = 'pending' THEN 1 END), COUNT(CASE WHEN job.status = 'running' AND slot.starts THEN 1 END)"
    f" FROM {SLOT} AS slot JOIN {JOB} AS job ON job.id = slot.job_id WHERE slot.waits = FALSE AND slot.scope IN"
)
QUEUES_OF_WAITERS = (
    f"(SELECT MIN(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = FALSE),"
    f" (SELECT MAX(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = FALSE),"
    f" (SELECT MIN(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = TRUE),"
    f" (SELECT MAX(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = TRUE)"
)
FIRST_THAT_WAIT = (
    f"SELECT {{number}}slot.rank AS in_order, slot.{{moment}} AS since, slot.job_id, job.job_type, job.limit_key,"
    " job.queue_limit_key"
    f" FROM {SLOT} AS slot JOIN {JOB} AS job ON job.id = slot.job_id"
    " WHERE slot.scope = {scope} AND slot.waits = TRUE AND slot.keyed = FALSE AND slot.queue = {queue}"
    " AND slot.fair_key = '' AND job.pending_limits = 1 ORDER BY slot.rank, slot.available_at, slot.job_id LIMIT {most}"
)
_READY_AHEAD = (
    f"SELECT job.id, job.job_type, job.limit_key, job.queue_limit_key, job.rank AS in_order, job.{{moment}} AS since"
    f" FROM {JOB} AS job WHERE job.queue = %s AND {UNKEYED} AND {{ahead}} ORDER BY job.rank, job.available_at, job.id LIMIT %s"
)
# Jobs that were let in have their slots, and those that come after them do not take these.
IS_OVERTAKEN = (
    f"EXISTS (SELECT 1 FROM {{jobs}} WHERE job.queue = {{queue}} AND {UNKEYED} AND {{ahead}}"
    f" AND NOT EXISTS (SELECT 1 FROM {SLOT} AS slot WHERE slot.job_id = job.id AND slot.scope = {{scope}}))"
)
_NEXT_QUEUE = f"SELECT MIN(queue) FROM {SLOT} WHERE scope = %s AND waits = TRUE AND keyed = %s AND queue > %s"
_COUNT_HELD_BACK = (
    f"SELECT scope, COUNT(*) FROM (SELECT scope FROM {SLOT} WHERE waits = TRUE LIMIT %s) AS capped GROUP BY scope"
)
_COUNT_HELD_BACK_IN = (
    "SELECT %s AS place, COUNT(*) FROM"
    f" (SELECT 1 AS one FROM {SLOT} WHERE scope = %s AND waits = TRUE LIMIT %s) AS part"
)
_WAITED_FOR = f"""
WITH RECURSIVE found(scope, number) AS (
    SELECT (SELECT MIN(slot.scope) FROM {SLOT} AS slot WHERE slot.waits = TRUE), 1
    UNION ALL
    SELECT (SELECT MIN(slot.scope) FROM {SLOT} AS slot WHERE slot.waits = TRUE AND slot.scope > found.scope), found.number + 1
    FROM found WHERE found.scope IS NOT NULL AND found.number < %s)
SELECT scope FROM found WHERE scope IS NOT NULL"""
_NEXT_WAITED_FOR = f"SELECT MIN(scope) FROM {SLOT} WHERE waits = TRUE AND scope > %s"

EndedRow = tuple[str, int, str, float, int, int, str | None]
LogRow = tuple[str, int, str]
AttemptRow = tuple[str, int, str, float, str, str, str, str, str]
ATTEMPT_COLUMNS = "job_id, number, worker_id, started_at, ended_at, outcome, exception_class, error, traceback, release"
# Written once for all; {due}, {now} and {prefix} differ. Only a job that runs again has a time to run at.
ENDED = """{prefix}status = ended.status, {prefix}fence = {job}.fence + 1, {prefix}updated_at = {now},
{prefix}retry_count = {job}.retry_count + ended.spent, {prefix}crash_count = {job}.crash_count + ended.crashes,
{prefix}error = COALESCE(ended.error, {job}.error),
{prefix}cancel_requested_at = CASE WHEN ended.status IN ('scheduled', 'pending', 'cancelled')
    THEN {job}.cancel_requested_at END,
{prefix}scheduled_at = CASE WHEN ended.status = 'scheduled' THEN {due} ELSE {job}.scheduled_at END,
{prefix}available_at = CASE WHEN ended.status = 'scheduled' THEN {due} ELSE {job}.available_at END,
{prefix}finished_at = CASE WHEN ended.status IN ('scheduled', 'pending') THEN NULL ELSE {now} END,
{prefix}unique_lock = CASE WHEN ended.status IN ('scheduled', 'pending') THEN {job}.unique_lock END"""

# One statement, which commits by itself, is all that a step costs: the row is written only while the run holds its job, and the
# lock keeps a rescue from taking the job away between that look and the commit. Not by status, as a settle.
INSERT_STEP = f"""
INSERT INTO {STEP} (job_id, position, name, kind, result, started_at, ended_at, due_at, event_name, event_key)
SELECT id, %s, %s, %s, {{json}}, {{began}}, CASE WHEN {{flag}} THEN {{now}} END, CASE WHEN {{flag}} THEN {{due}} END, %s, %s
FROM {JOB} WHERE id = %s AND fence = %s {{lock}}"""
# The same for a step that is done, which has no wait, and of which nobody needs the key: four fifths of its time on PostgreSQL.
INSERT_DONE_STEP = f"""
INSERT INTO {STEP} (job_id, position, name, kind, result, started_at, ended_at)
SELECT id, %s, %s, 'step', {{json}}, {{began}}, {{now}} FROM {JOB} WHERE id = %s AND fence = %s {{lock}}"""


class StepRow(NamedTuple):
    """A step to record: `seconds` is how long it took, `due` in how many seconds its wait is over (None: it has no such time)."""

    position: int
    name: str
    kind: str
    result: str | None = None  # JSON text
    seconds: float = 0.0
    has_ended: bool = True
    due: float | None = None
    event_name: str | None = None
    event_key: str | None = None

    def parameters(self, job_id: str, fence: int) -> tuple[Any, ...]:
        """Return the parameters of INSERT_STEP."""
        return (
            self.position, self.name, str(self.kind), self.result, self.seconds, self.has_ended,
            self.due is not None, self.due or 0.0, self.event_name, self.event_key, job_id, fence,
        )  # fmt: skip


def connect_timeout(lease: float) -> int:
    """Return how long (seconds) a worker waits for a connection: several tries fit in a lease."""
    return min(10, max(2, int(lease / 4)))


def silence(lease: float) -> tuple[int, int, int]:
    """Return after how many seconds of silence a peer is asked, how often again, and the milliseconds after which it is gone.

    Together they stay below a lease: 1/4, then three times 1/8; and 3/4 for what was sent and not acknowledged.
    """
    return max(1, int(lease / 4)), max(1, int(lease / 8)), max(1000, int(lease * 750))


class Place(NamedTuple):
    """A place in the index of a queue's ready jobs, which is in claim order; the time is text as the database writes it."""

    rank: int
    available_at: str
    id: str


class Stretch(NamedTuple):
    """A part of that index: from a place on, and before a rank."""

    start: Place
    end: int


class Snapshot(NamedTuple):
    """What a look could not see: the writing transactions that went on, and from which moment on later ones may write."""

    running: frozenset[int]
    before: Any  # as the look has its other moments


class ClaimLook(NamedTuple):
    """What a claim found on its stretches of the index."""

    rows: list[tuple[Any, ...]]
    ranks: set[int]  # of the jobs taken
    last: Place | None  # of the jobs taken
    read_in_vain: int  # entries of the index that led to no job
    moment: str  # a moment before it began: who commits within that long is not late
    recent: str  # RECENT_SECONDS before it began
    snapshot: Snapshot


class PromotionLook(NamedTuple):
    """What a promotion found in the index of scheduled jobs, as `ClaimLook`."""

    queues: list[str]
    last: datetime | None
    read_in_vain: int
    moment: datetime
    snapshot: Snapshot


@dataclass(frozen=True)
class Dialect(ABC):
    """Write the hot path on one connection. Statements take the database's clock, never the host's."""

    connection: BaseDatabaseWrapper
    now: ClassVar[str]
    share_lock: ClassVar[str] = "FOR SHARE"
    write_lock: ClassVar[str] = "FOR UPDATE"
    ignore_conflict: ClassVar[str] = "ON CONFLICT DO NOTHING"
    counts_reads: ClassVar[bool] = False  # whether `claim_from` and `promote_from` are there
    by_primary_key: ClassVar[str] = ""
    by_open_members: ClassVar[str] = ""
    done_step: ClassVar[str]
    moment: ClassVar[str] = "available_at"  # as a claim returns it
    later: ClassVar[str]  # so many seconds from now
    union_part: ClassVar[str] = "SELECT * FROM ({part}) AS part"
    ready_job: ClassVar[str] = f"{JOB} AS job"
    # What `lines` needs to know: how to name the index to go by, whether DISTINCT hops along it, and whether there is LATERAL.
    ready_hint: ClassVar[str] = ""
    slot_hint: ClassVar[str] = ""
    groups: ClassVar[bool] = False
    has_lateral: ClassVar[bool] = False
    aged: ClassVar[str]  # the time heads.since, moved by heads.place · {step} microseconds

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)  # parameters even if none: SQLite's `now` has a %% that is read as %
            return list(cursor.fetchall())

    def insert_job(self, row: Sequence[Any]) -> datetime | None:
        """Insert one row (INSERT_COLUMNS) and return its created_at, or None when a unique column is taken."""
        # A column that stays NULL is left out: these are nearly half of them, and each is to be written out and parsed.
        given = {name: value for name, value in zip(INSERT_COLUMNS, row, strict=True) if value is not None}
        columns, marks = ", ".join(given), ", ".join(["%s"] * len(given))
        if "available_at" not in given:
            columns, marks = f"{columns}, available_at", f"{marks}, {self.now}"
        statement = (
            f"INSERT INTO {JOB} ({columns}, {FIXED_COLUMNS}) VALUES ({marks}, {self.now}, {self.now}, 0, 0, 0, '')"
            f" {self.ignore_conflict} RETURNING created_at"
        )
        returned = self.read(statement, list(given.values()))
        return self.to_datetime(returned[0][0]) if returned else None

    def _values(self) -> str:
        marks = ["%s"] * len(INSERT_COLUMNS)
        marks[INSERT_COLUMNS.index("available_at")] = f"COALESCE(%s, {self.now})"
        return f"{', '.join(marks)}, {self.now}, {self.now}, 0, 0, 0, ''"

    @abstractmethod
    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows (INSERT_COLUMNS) in as few statements as the database likes; raise IntegrityError on a clash."""

    @abstractmethod
    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows of any table, the fastest way there is; raise IntegrityError on a clash.

        A value is a text, a number or None: JSON is text, and a time is text in UTC without its zone.
        """

    @abstractmethod
    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        """Mark up to `limit` ready jobs of a queue as running and return their CLAIMED_COLUMNS in claim order.

        Nothing is claimed for a paused queue, or for a process whose lease has run out.
        """

    @abstractmethod
    def claim_of_rank(self, queue: str, rank: int, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        """Claim as `claim` does, from the jobs of one rank."""

    def claim_aged(self, queue: str, limit: int, process_id: str, ageing: float) -> list[tuple[Any, ...]]:
        """Claim as `claim` does, where so many seconds of waiting weigh as much as one step of priority.

        The order of two jobs stays the same as time goes by: both gain as much. Within a rank it is that of the index, so the
        first jobs of each rank are merged, which says how many to claim of each. Call it in a transaction.
        """
        ranks = self.ready_ranks(queue)
        if len(ranks) < 2:
            return self.claim(queue, limit, process_id)
        step = microseconds_of_rank(ageing)
        part = self.union_part.format(part=_READY_OF_RANK.format(job=self.ready_job))
        statement = _SHARES.format(heads=" UNION ALL ".join([part] * len(ranks)), key=self.aged.format(step=step))
        shares = self.read(statement, [*(value for rank in ranks for value in (queue, rank, limit)), limit])
        rows = [row for rank, number in shares for row in self.claim_of_rank(queue, rank, number, process_id)]
        rank, since, job_id = (CLAIMED_COLUMNS.index(name) for name in ("rank", "available_at", "id"))
        return sorted(rows, key=lambda row: aged_place(row[rank], self.to_datetime(row[since]), row[job_id], ageing))

    @abstractmethod
    def claim_jobs(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        """Claim, as `claim` does, those of these jobs of a queue that are ready and that nobody else has locked; in no order."""

    @abstractmethod
    def claim_held(self, queue: str, ids: Sequence[str], process_id: str) -> list[tuple[Any, ...]]:
        """Claim, as `claim_jobs` does, those of these jobs of a queue that wait for a slot, and let their slots be taken."""

    def ready_ranks(self, queue: str) -> list[int]:
        """Return the ranks of a queue's ready jobs."""
        return [rank for (rank,) in self.read(_READY_RANKS, (queue, queue))]

    def claim_from(self, stretches: Sequence[Stretch], queue: str, limit: int, process_id: str) -> ClaimLook:
        """Claim as `claim` does, on these stretches of the index alone, and count what is read."""
        raise NotImplementedError

    def promote_from(self, start: datetime | None, limit: int) -> PromotionLook:
        """Promote as `promote` does, what is due since `start` alone, and count what is read."""
        raise NotImplementedError

    @abstractmethod
    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        """Complete jobs given as (id, fence, result JSON) and return the ids that still had that fence."""

    @abstractmethod
    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        """Move jobs whose run did not complete, and return the ids that still had their fence.

        A row is (id, fence, status, delay in seconds, retries spent, crashes counted, error or None).
        """

    @abstractmethod
    def insert_attempts(self, rows: Sequence[AttemptRow]) -> None:
        """Record runs that end now.

        A row is (job id, number, worker process, seconds that the run took, outcome, exception class, error, traceback,
        release).
        """

    @abstractmethod
    def insert_step(self, job_id: str, fence: int, row: StepRow) -> int | None:
        """Record a step of a run and return its primary key; None, with nothing written, when the run lost its job."""

    def insert_done_step(self, job_id: str, fence: int, row: StepRow) -> bool:
        """Record a step of the kind `step`, which is done; return False, with nothing written, when the run lost its job."""
        with self.connection.cursor() as cursor:
            cursor.execute(self.done_step, (row.position, row.name, row.result, row.seconds, job_id, fence))
            return bool(cursor.rowcount)

    def write_logs(self, rows: Sequence[LogRow]) -> None:
        """Write the logs of attempts, given as (job id, number, text), in the place of what is on record of them."""
        with self.connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {LOG} (job_id, number, text) VALUES (%s, %s, %s)"
                " ON CONFLICT (job_id, number) DO UPDATE SET text = excluded.text",
                rows,
            )

    @abstractmethod
    def promote(self, limit: int) -> list[str]:
        """Make up to `limit` due jobs pending and return their queues."""

    # What a wake needs (open_edges, satisfy and what that calls) is written by hand as well: the ORM spent more than half
    # of the thread's time for a link of a chain on composing it.

    def open_edges(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return (id, job_id, depends_on_id, on_failure) of the open edges to jobs."""
        return self.read(f"{OPEN_EDGES} IN ({_marks(ids)})", ids)

    def lock_jobs(self, ids: Sequence[str]) -> list[tuple[str, str, str, int]]:
        """Lock jobs in the order of their ids and return (id, queue, status, pending_dependencies) of each."""
        columns = "id, queue, status, pending_dependencies"
        return self.read(f"SELECT {columns} FROM {JOB} WHERE id IN ({_marks(ids)}) ORDER BY id {self.write_lock}", ids)

    def share_jobs(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Lock jobs against change, in the order of their ids, and return (id, status) of each."""
        return self.read(f"SELECT id, status FROM {JOB} WHERE id IN ({_marks(ids)}) ORDER BY id {self.share_lock}", ids)

    def lock_free_jobs(self, ids: Sequence[str]) -> set[str]:
        """Lock those of the jobs that nobody else has locked, without waiting, and return their ids."""
        if not self.write_lock:
            return set(ids)
        free = self.read(
            f"SELECT id FROM {JOB} WHERE id IN ({_marks(ids)}) ORDER BY id {self.write_lock} SKIP LOCKED", ids
        )
        return {row[0] for row in free}

    # What limits need: the slots of scopes, most of it for many scopes in one statement. Whoever writes a job's slots has
    # locked its row.

    def limit_keys(self, ids: Sequence[str], process_id: str) -> list[tuple[str, str | None, str | None, str | None]]:
        """Lock those of the jobs that a process runs, and return (id, limit_key, queue_limit_key, fair_key) of each."""
        return self.read(f"{_LIMIT_KEYS} ({_marks(ids)}) {self.write_lock}", (process_id, *ids))

    def lock_scopes(self, scopes: Iterable[str]) -> None:
        """Lock scopes until the transaction ends, in one order for all: who has one decides who gets its slots."""
        self.lock_numbers(lock_numbers(scopes))

    def lock_turns(self, queue: str) -> None:
        """Lock the turns of a queue's keys until the transaction ends; before any scope."""
        self.lock_numbers([LIMIT_LOCKS + zlib.crc32(queue.encode()) % TURN_LOCKS])

    @abstractmethod
    def lock_numbers(self, numbers: Sequence[int]) -> None:
        """Take our own locks of these numbers until the transaction ends, one after the other."""

    def slots_of(self, ids: Sequence[str]) -> list[tuple[str, str, bool, bool]]:
        """Return (job id, scope, waits, starts) of the jobs' slots."""
        rows = self.read(f"SELECT job_id, scope, waits, starts FROM {SLOT} WHERE job_id IN ({_marks(ids)})", ids)
        return [(job_id, scope, bool(waits), bool(starts)) for job_id, scope, waits, starts in rows]

    def slots_taken(self, scopes: Sequence[str]) -> list[tuple[str, str, int, int, int]]:
        """Return (scope, queue, jobs that run, jobs that were let in and are ready, jobs that run and have yet to start).

        Scopes without such jobs are left out.
        """
        return self.read(f"{_SLOTS_TAKEN} ({_marks(scopes)}) GROUP BY slot.scope, slot.queue", scopes)

    def queues_of_waiters(self, scopes: Sequence[str]) -> list[tuple[str | None, ...]]:
        """Return for each scope the first and the last queue, by name, in which a job without a fair key waits for a slot of it,
        and the first and the last in which one with a key does.
        """
        part = f"SELECT {{number}} AS number, {QUEUES_OF_WAITERS.format(scope='%s')}"
        statement = " UNION ALL ".join(part.format(number=number) for number in range(len(scopes)))
        rows = self.read(statement, [value for scope in scopes for value in [scope] * 4])
        return [row[1:] for row in sorted(rows, key=lambda row: int(row[0]))]

    def next_queue_of_waiters(self, scope: str, queue: str, *, keyed: bool) -> str | None:
        """Return the next queue behind one in which a job, with or without a fair key, waits for a slot of a scope."""
        next_queue: str | None = self.read(_NEXT_QUEUE, (scope, keyed, queue))[0][0]
        return next_queue

    def next_waited_for(self, scope: str) -> str | None:
        """Return the next scope behind one in which jobs wait for a slot."""
        next_scope: str | None = self.read(_NEXT_WAITED_FOR, (scope,))[0][0]
        return next_scope

    def count_held_back(self, most: int) -> dict[str, int]:
        """Count the jobs that wait for a slot by scope, as far as the first `most` of them."""
        return {scope: int(number) for scope, number in self.read(_COUNT_HELD_BACK, (most,))}

    def count_held_back_in(self, scopes: Sequence[str], most: int) -> dict[str, int]:
        """Count the jobs that wait for a slot of scopes, up to `most` of each."""
        found: dict[str, int] = {}
        for start in range(0, len(scopes), COUNTS_PER_STATEMENT):
            chunk = scopes[start : start + COUNTS_PER_STATEMENT]
            values = [value for place, scope in enumerate(chunk) for value in (place, scope, most)]
            rows = self.read(" UNION ALL ".join([_COUNT_HELD_BACK_IN] * len(chunk)), values)
            found |= {chunk[int(place)]: int(number) for place, number in rows}
        return found

    def waited_for(self, most: int) -> list[str]:
        """Return the first `most` scopes in which jobs wait for a slot."""
        if self.groups:
            statement = f"SELECT DISTINCT scope FROM {SLOT} {self.slot_hint} WHERE waits = TRUE LIMIT %s"
            return [scope for (scope,) in self.read(statement, (most,))]
        return [scope for (scope,) in self.read(_WAITED_FOR, (most,))]

    def first_that_wait(self, wanted: Sequence[tuple[str, str, int]]) -> list[tuple[Any, ...]]:
        """Return (number in `wanted`, rank, available_at, id, job_type, limit_key, queue_limit_key) of the first jobs that wait
        for slots, in no order.

        Args:
            wanted: scope, queue and how many of them.
        """
        given = {"scope": "%s", "queue": "%s", "most": "%s", "moment": self.moment}
        parts = (FIRST_THAT_WAIT.format(number=f"{number} AS number, ", **given) for number in range(len(wanted)))
        statement = " UNION ALL ".join(self.union_part.format(part=part) for part in parts)
        return self.read(statement, [value for one in wanted for value in one])

    def next_in_one_queue(self, scopes: Sequence[tuple[str, int]]) -> list[tuple[Any, ...]] | None:
        """Return who is next in scopes, each given with how many may run at once; None where that takes several looks.

        A row is (number of the scope, queue, whether there is another queue, or a fair key, rank, available_at, id, job_type,
        limit_key, queue_limit_key, whether a ready job comes before that was not let in). Scopes where nobody waits have none,
        and of those where nobody is next the columns of the job are None.
        """
        return None

    def overtaken(self, places: Sequence[tuple[str, str, int, Any, str]]) -> set[int]:
        """Return the numbers of those places, each a scope and a place in a queue's order, before which a ready job comes that
        was not let in to the scope.

        Args:
            places: scope, queue, rank, available_at, id.
        """
        parts: list[str] = []
        values: list[Any] = []
        for number, (scope, queue, rank, available_at, job_id) in enumerate(places):
            before = _before(rank, available_at, job_id)
            looks = (IS_OVERTAKEN.format(jobs=self.ready_job, queue="%s", ahead=ahead, scope="%s") for ahead in before)
            parts.append(f"SELECT {number} AS number, {' OR '.join(looks)} AS is_overtaken")
            values += [value for some in before.values() for value in (queue, *some, scope)]
        return {int(number) for number, is_overtaken in self.read(" UNION ALL ".join(parts), values) if is_overtaken}

    def ready_ahead(self, queue: str, order: tuple[int, Any, str], limit: int) -> list[tuple[Any, ...]]:
        """Return (id, job_type, limit_key, queue_limit_key, rank, available_at) of ready jobs before a place in a queue's order.

        A claim that is open shows here as well: what it has taken is ready for all others until it commits.
        """
        if not self.write_lock:
            return []
        before = _before(*order)
        parts = (f"({_READY_AHEAD.format(ahead=ahead, moment=self.moment)})" for ahead in before)
        return self.read(
            " UNION ALL ".join(parts), [value for values in before.values() for value in (queue, *values, limit)]
        )

    def let_in(self, ids: Sequence[str]) -> int:
        """Make jobs ready that wait for a slot, as far as nobody else has locked them; return how many."""
        free = sorted(self.lock_free_jobs(ids))
        number = 0
        if free:
            with self.connection.cursor() as cursor:
                # What was read before the lock may be old by now.
                waiting = f"WHERE id IN ({_marks(free)}) AND pending_limits = 1"
                cursor.execute(f"UPDATE {JOB} SET pending_limits = 0, updated_at = {self.now} {waiting}", free)
                number = int(cursor.rowcount)
                cursor.execute(f"UPDATE {SLOT} SET waits = FALSE WHERE job_id IN ({_marks(free)})", free)
        return number

    def take_slots(self, claimed: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Let the slots be taken for which claimed jobs, given as CLAIMED_COLUMNS and returned, have waited."""
        if claimed:
            ids = [row[0] for row in claimed]
            with self.connection.cursor() as cursor:
                cursor.execute(f"UPDATE {SLOT} SET waits = FALSE, starts = FALSE WHERE job_id IN ({_marks(ids)})", ids)
        return claimed

    def undo_claim(self, ids: Sequence[str], pending_limits: int) -> None:
        """Make claimed jobs, which nobody has seen yet, pending again, as ready ones (0) or held back (1)."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {JOB} SET status = 'pending', pending_limits = %s, started_at = NULL,"
                f" worker_id = CASE WHEN retry_count > 0 THEN worker_id END WHERE id IN ({_marks(ids)})",
                (pending_limits, *ids),
            )

    def delete_slots(self, ids: Sequence[str]) -> set[tuple[str, bool]]:
        """Delete the slots of jobs and return their scopes, each with whether a start was still to come there."""
        deleted = {(scope, starts) for _, scope, _, starts in self.slots_of(ids)}
        if deleted:
            with self.connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM {SLOT} WHERE job_id IN ({_marks(ids)})", ids)
        return deleted

    def record_start(self, job_id: str, fence: int, run: str, scopes: Mapping[str, tuple[float, float]]) -> bool:
        """Record the start of a run in scopes; return False, with nothing written, if it lost its job.

        The start is the last thing to be written, so that little time goes by between it and the handler.

        Args:
            run: what names it in the log.
            scopes: in how many seconds the handler has begun at the latest, and for how many the record is kept.
        """
        held = f"EXISTS (SELECT 1 FROM {JOB} WHERE id = %s AND fence = %s AND status = 'running')"
        with self.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {SLOT} SET starts = FALSE WHERE job_id = %s AND {held}", (job_id, job_id, fence))
            if not cursor.rowcount:
                return False
            if scopes:
                rows = ", ".join([f"(%s, %s, {self.later}, {self.later})"] * len(scopes))
                values = [value for scope, times in scopes.items() for value in (scope, run, *times)]
                cursor.execute(f"INSERT INTO {START} (scope, run, started_at, expires_at) VALUES {rows}", values)
        return True

    def close_edges(self, keys: Sequence[int], state: str) -> None:
        """Set the state of edges given by primary key."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {DEPENDENCY} SET state = %s WHERE id IN ({_marks(keys)})", [state, *keys])

    def count_down(self, ids: Sequence[str], number: int) -> None:
        """Take a number off the open dependencies of jobs; those that were pending and reach zero become available now."""
        with self.connection.cursor() as cursor:
            # MariaDB assigns from left to right, so the count is the last to change.
            cursor.execute(
                f"UPDATE {JOB} SET available_at = CASE WHEN pending_dependencies = %s AND status = 'pending'"
                f" THEN {self.now} ELSE available_at END, pending_dependencies = pending_dependencies - %s"
                f" WHERE id IN ({_marks(ids)})",
                [number, number, *ids],
            )

    def satisfy(self, edges: Sequence[int], counts: Mapping[str, int]) -> list[tuple[str, str]]:
        """Close edges and take their numbers off the open dependencies of jobs; return (id, queue) of those that became ready.

        The jobs are locked first, in the order of their ids, so that settles that share dependents do not deadlock.
        """
        jobs = self.lock_jobs(sorted(counts))
        self.close_edges(edges, "satisfied")
        by_number: dict[int, list[str]] = {}
        for job_id, *_ in jobs:
            by_number.setdefault(counts[job_id], []).append(job_id)
        for number, ids in by_number.items():
            self.count_down(ids, number)
        return [(one, queue) for one, queue, status, pending in jobs if status == "pending" and pending == counts[one]]

    def share_batch(self, batch_id: str) -> tuple[bool, int] | None:
        """Lock a batch against change, as `share_jobs` does, and return (whether it takes members, its depth), if it exists."""
        rows = self.read(
            f"SELECT finished_at IS NULL AND cancel_requested_at IS NULL, depth FROM {BATCH} WHERE id = %s {self.share_lock}",
            (batch_id,),
        )
        return (bool(rows[0][0]), rows[0][1]) if rows else None

    # What the members of a batch cost at their end: these two, whatever the size of the batch.

    def end_members(self, ids: Sequence[str]) -> int:
        """Let those of the jobs that are open members of a batch no longer be; return how many these are."""
        return self._end_members(f"IN ({_marks(ids)})", ids)

    def _end_members(self, which: str, parameters: Sequence[Any]) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {OPEN_MEMBER} WHERE job_id {which}", parameters)
            return int(cursor.rowcount)

    def hold_open(self, batch_ids: Sequence[str]) -> set[str]:
        """Lock in each batch an open member that nobody else has locked, without waiting; return the batches that have one.

        The last one submitted, whose end is far off in most batches. Its settle waits for this transaction, so nobody who
        settles it can miss what this transaction has settled.
        """
        return {row[0] for row in self.read(self._each_batch(len(batch_ids)), batch_ids)}

    def _each_batch(self, number: int) -> str:
        lock = f"{self.write_lock} SKIP LOCKED" if self.write_lock else ""
        one = (
            f"SELECT batch_id FROM {OPEN_MEMBER} {self.by_open_members} WHERE batch_id = %s"
            f" ORDER BY place DESC LIMIT 1 {lock}"
        )
        return " UNION ALL ".join(f"SELECT batch_id FROM ({one}) AS open{index}" for index in range(number))

    def queues_with_work(self, besides: Sequence[str] = (), among: Sequence[str] | None = None) -> list[str]:
        """Return the queues that have a ready job, perhaps without those of `besides`, and those that are not of `among`."""
        return [row[0] for row in self.read(_QUEUES_WITH_WORK)]

    def oldest_ready(self) -> list[tuple[str, datetime]]:
        """Return (queue, when its oldest ready job became available) for each queue and rank that has one."""
        return [(queue, self.to_datetime(oldest)) for queue, oldest in self.read(_OLDEST_READY) if oldest is not None]

    def count_ready(self, queues: Sequence[str]) -> list[int]:
        """Return the number of ready jobs of each queue, counted up to MOST_COUNTED + 1."""
        counts: list[int] = []
        for start in range(0, len(queues), COUNTS_PER_STATEMENT):
            chunk = queues[start : start + COUNTS_PER_STATEMENT]
            most = MOST_COUNTED + 1
            values = [value for place, name in enumerate(chunk) for value in (place, name, most, name, most)]
            statement = " UNION ALL ".join([_COUNT_READY] * len(chunk)) + " ORDER BY place"
            counts += [min(number, most) for _, number in self.read(statement, values)]
        return counts

    def read_now(self) -> datetime:
        """Read the database's clock (aware, UTC)."""
        return self.to_datetime(self.read(f"SELECT {self.now}")[0][0])

    def to_datetime(self, value: Any) -> datetime:
        """Turn what the driver returns for a time into an aware datetime in UTC."""
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment

    def version_of_data(self) -> int | None:
        """Return a number that another one follows once another session has committed; None where nothing cheap says so."""
        return None

    def end_sessions(self, process_id: str) -> int:
        """End the database sessions of a dead process and return how many there were; 0 where that cannot be."""
        return 0

    def count_sessions(self, process_id: str) -> int:
        """Return how many database sessions a process has; 0 where the server does not tell, or there is none."""
        return 0

    def name_session(self, process_id: str) -> None:  # noqa: B027  for SQLite there is nothing to do
        """Mark this session as one of the process's, so that a rescuer can end it; nothing where sessions cannot be ended."""

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        """Have statements of the open transaction wait for a row's lock no longer than so many seconds, where rows are locked."""
        yield

    @classmethod
    def silence_options(cls, lease: float) -> dict[str, Any]:
        """Return the driver's options by which a connection gives up a silent server before a lease (seconds) is over."""
        return {}

    @classmethod
    def loop_options(cls, lease: float) -> dict[str, Any]:
        """Return the driver's options by which a session that runs short statements gives up a silent server in time."""
        return {}

    def limit_lock_waits(self, seconds: float) -> None:  # noqa: B027  where a wait for locks holds up nobody else
        """Let this session wait for no lock longer than that (whole seconds), where the site has not chosen a time itself."""

    @abstractmethod
    def prepare_worker(self, lease: float) -> None:
        """Set up a connection that belongs to a worker: isolation and waiting as our moves and the lease (seconds) want."""


def microseconds_of_rank(ageing: float) -> int:
    """Return what one rank, a twentieth of a step of priority, weighs where so many seconds weigh as much as a step."""
    return round(ageing * 1_000_000 / RANKS_PER_PRIORITY)


def aged_place(rank: int, since: datetime, job_id: str, ageing: float) -> tuple[datetime, datetime, str]:
    """Return a job's place in the aged order of its queue; of two that weigh the same the older one is first."""
    return since + rank * timedelta(microseconds=microseconds_of_rank(ageing)), since, job_id


def lock_numbers(scopes: Iterable[str]) -> list[int]:
    """Return the numbers of the locks of scopes, in the order in which they are taken."""
    return sorted({zlib.crc32(scope.encode()) % LIMIT_LOCKS for scope in scopes})


def _before(rank: int, available_at: Any, job_id: str) -> dict[str, tuple[Any, ...]]:
    """Return the conditions, with their parameters, of which a job meets one that comes before a place in its queue's order."""
    return {
        "job.rank < %s": (rank,),
        "job.rank = %s AND job.available_at < %s": (rank, available_at),
        "job.rank = %s AND job.available_at = %s AND job.id < %s": (rank, available_at, job_id),
    }


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))
