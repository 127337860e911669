"""The interface of a dialect: the few hot statements that are written by hand, one implementation per database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from django_jobs.db.connections import jobs_connection

JOB = "django_jobs_job"
DEPENDENCY = "django_jobs_jobdependency"
PROCESS = "django_jobs_workerprocess"
QUEUE = "django_jobs_queue"
READY = "status = 'pending' AND pending_dependencies = 0"
MOST_COUNTED = 10_000
COUNTS_PER_STATEMENT = 100

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
)


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
_READY_QUEUES = f"""
WITH RECURSIVE found(queue) AS (
    SELECT MIN(queue) FROM {JOB} WHERE {READY}
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM {JOB} AS job WHERE {READY} AND job.queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL)"""

_QUEUES_WITH_WORK = f"{_READY_QUEUES} SELECT queue FROM found WHERE queue IS NOT NULL"

# On to each rank within a queue: of each pair of queue and rank only the first entry is read, which is its oldest job.
_OLDEST_READY = f"""{_READY_QUEUES},
level(queue, place) AS (
    SELECT found.queue, (SELECT MIN(job.rank) FROM {JOB} AS job WHERE {READY} AND job.queue = found.queue)
    FROM found WHERE found.queue IS NOT NULL
    UNION ALL
    SELECT level.queue, (SELECT MIN(job.rank) FROM {JOB} AS job
                         WHERE {READY} AND job.queue = level.queue AND job.rank > level.place)
    FROM level WHERE level.place IS NOT NULL)
SELECT level.queue, (SELECT MIN(job.available_at) FROM {JOB} AS job
                     WHERE {READY} AND job.queue = level.queue AND job.rank = level.place)
FROM level WHERE level.place IS NOT NULL"""

_COUNT_READY = (
    "SELECT %s AS place, (SELECT COUNT(*) FROM (SELECT 1 AS one FROM"
    f" {JOB} WHERE queue = %s AND {READY} LIMIT %s) AS capped) AS number"
)

EndedRow = tuple[str, int, str, float, int, int, str | None]
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


def connect_timeout(lease: float) -> int:
    """Return how long (seconds) a worker waits for a connection: several tries fit in a lease."""
    return min(10, max(2, int(lease / 4)))


class Dialect(ABC):
    """Write the hot path for one database. Statements take the database's clock, never the host's."""

    now: ClassVar[str]
    share_lock: ClassVar[str] = "FOR SHARE"
    write_lock: ClassVar[str] = "FOR UPDATE"
    ignore_conflict: ClassVar[str] = "ON CONFLICT DO NOTHING"

    def insert_job(self, row: Sequence[Any]) -> datetime | None:
        """Insert one row (INSERT_COLUMNS) and return its created_at, or None when a unique column is taken."""
        statement = (
            f"INSERT INTO {JOB} ({', '.join(INSERT_COLUMNS)}, {FIXED_COLUMNS})"
            f" VALUES ({self._values()}) {self.ignore_conflict} RETURNING created_at"
        )
        with jobs_connection().cursor() as cursor:
            cursor.execute(statement, row)
            returned = cursor.fetchall()
        return self.to_datetime(returned[0][0]) if returned else None

    def _values(self) -> str:
        marks = ["%s"] * len(INSERT_COLUMNS)
        marks[INSERT_COLUMNS.index("available_at")] = f"COALESCE(%s, {self.now})"
        return f"{', '.join(marks)}, {self.now}, {self.now}, 0, 0, 0, ''"

    @abstractmethod
    def insert_jobs(self, rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows (INSERT_COLUMNS) in as few statements as the database likes; raise IntegrityError on a clash."""

    @abstractmethod
    def claim(self, queue: str, limit: int, process_id: str) -> list[tuple[Any, ...]]:
        """Mark up to `limit` ready jobs of a queue as running and return their CLAIMED_COLUMNS in claim order.

        Nothing is claimed for a paused queue, or for a process whose lease has run out.
        """

    @abstractmethod
    def complete(self, rows: Sequence[tuple[str, int, str | None]]) -> set[str]:
        """Complete jobs given as (id, fence, result JSON) and return the ids that still had that fence."""

    @abstractmethod
    def end(self, rows: Sequence[EndedRow]) -> set[str]:
        """Move jobs whose run did not complete, and return the ids that still had their fence.

        A row is (id, fence, status, delay in seconds, retries spent, crashes counted, error or None).
        """

    @abstractmethod
    def promote(self, limit: int) -> list[str]:
        """Make up to `limit` due jobs pending and return their queues."""

    # What a wake needs (open_edges, lock_jobs, close_edges, count_down) is written by hand as well: the ORM spent more than half
    # of the thread's time for a link of a chain on composing it.

    def open_edges(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return (id, job_id, depends_on_id, on_failure) of the open edges to jobs."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(f"{OPEN_EDGES} IN ({_marks(ids)})", ids)
            return list(cursor.fetchall())

    def lock_jobs(self, ids: Sequence[str]) -> list[tuple[str, str, str, int]]:
        """Lock jobs in the order of their ids and return (id, queue, status, pending_dependencies) of each."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                f"SELECT id, queue, status, pending_dependencies FROM {JOB} WHERE id IN ({_marks(ids)})"
                f" ORDER BY id {self.write_lock}",
                ids,
            )
            return list(cursor.fetchall())

    def share_jobs(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Lock jobs against change, in the order of their ids, and return (id, status) of each."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                f"SELECT id, status FROM {JOB} WHERE id IN ({_marks(ids)}) ORDER BY id {self.share_lock}", ids
            )
            return list(cursor.fetchall())

    def lock_free_jobs(self, ids: Sequence[str]) -> set[str]:
        """Lock those of the jobs that nobody else has locked, without waiting, and return their ids."""
        if not self.write_lock:
            return set(ids)
        with jobs_connection().cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM {JOB} WHERE id IN ({_marks(ids)}) ORDER BY id {self.write_lock} SKIP LOCKED", ids
            )
            return {row[0] for row in cursor.fetchall()}

    def close_edges(self, keys: Sequence[int], state: str) -> None:
        """Set the state of edges given by primary key."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(f"UPDATE {DEPENDENCY} SET state = %s WHERE id IN ({_marks(keys)})", [state, *keys])

    def count_down(self, ids: Sequence[str], number: int) -> None:
        """Take a number off the open dependencies of jobs; those that were pending and reach zero become available now."""
        with jobs_connection().cursor() as cursor:
            # MariaDB assigns from left to right, so the count is the last to change.
            cursor.execute(
                f"UPDATE {JOB} SET available_at = CASE WHEN pending_dependencies = %s AND status = 'pending'"
                f" THEN {self.now} ELSE available_at END, pending_dependencies = pending_dependencies - %s"
                f" WHERE id IN ({_marks(ids)})",
                [number, number, *ids],
            )

    def queues_with_work(self) -> list[str]:
        """Return the queues that have a ready job."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(_QUEUES_WITH_WORK)
            return [row[0] for row in cursor.fetchall()]

    def oldest_ready(self) -> list[tuple[str, datetime]]:
        """Return (queue, when its oldest ready job became available) for each queue and rank that has one."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(_OLDEST_READY)
            return [(queue, self.to_datetime(oldest)) for queue, oldest in cursor.fetchall() if oldest is not None]

    def count_ready(self, queues: Sequence[str]) -> list[int]:
        """Return the number of ready jobs of each queue, counted up to MOST_COUNTED + 1."""
        counts: list[int] = []
        for start in range(0, len(queues), COUNTS_PER_STATEMENT):
            chunk = queues[start : start + COUNTS_PER_STATEMENT]
            values = [value for place, name in enumerate(chunk) for value in (place, name, MOST_COUNTED + 1)]
            with jobs_connection().cursor() as cursor:
                cursor.execute(" UNION ALL ".join([_COUNT_READY] * len(chunk)) + " ORDER BY place", values)
                counts += [number for _, number in cursor.fetchall()]
        return counts

    def read_now(self) -> datetime:
        """Read the database's clock (aware, UTC)."""
        with jobs_connection().cursor() as cursor:
            cursor.execute(f"SELECT {self.now}")
            row = cursor.fetchone()
        return self.to_datetime(row[0])

    def to_datetime(self, value: Any) -> datetime:
        """Turn what the driver returns for a time into an aware datetime in UTC."""
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment

    def end_sessions(self, process_id: str) -> int:
        """End the database sessions of a dead process and return how many there were; 0 where that cannot be."""
        return 0

    def name_session(self, process_id: str) -> None:  # noqa: B027  for SQLite there is nothing to do
        """Mark this session as one of the process's, so that a rescuer can end it; nothing where sessions cannot be ended."""

    @contextmanager
    def limited_lock_wait(self, seconds: float) -> Iterator[None]:
        """Have statements of the open transaction wait for a row's lock no longer than so many seconds, where rows are locked."""
        yield

    def silence_options(self, lease: float) -> dict[str, Any]:
        """Return the driver's options by which a connection gives up a silent server before a lease (seconds) is over."""
        return {}

    def loop_options(self, lease: float) -> dict[str, Any]:
        """Return the driver's options by which a session that runs short statements gives up a silent server in time."""
        return {}

    @abstractmethod
    def prepare_worker(self, lease: float) -> None:
        """Set up a connection that belongs to a worker: isolation and waiting as our moves and the lease (seconds) want."""


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))
