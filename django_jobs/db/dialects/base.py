"""The interface of a dialect: the few hot statements that are written by hand, one implementation per database."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from .limits import LimitStatements
from .wakes import WakeStatements
from .words import (
    CLAIMED_COLUMNS,
    COUNTS_PER_STATEMENT,
    FIXED_COLUMNS,
    INSERT_COLUMNS,
    JOB,
    KEYED,
    KEYED_QUEUES,
    LOG,
    MOST_COUNTED,
    PROCESS,
    READY_QUEUES,
    UNKEYED,
    AttemptRow,
    ClaimLook,
    EndedRow,
    LogRow,
    PromotionLook,
    StepRow,
    Stretch,
    aged_place,
    microseconds_of_rank,
)

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


class Dialect(LimitStatements, WakeStatements):
    """Write the hot path on one connection."""

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

    def count_processes(self) -> int:
        """Return how many worker processes live."""
        return int(self.read(f"SELECT count(*) FROM {PROCESS} WHERE lease_expires_at > {self.now}")[0][0])

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

    def name_session(self, process_id: str) -> None:
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

    def limit_lock_waits(self, seconds: float) -> None:
        """Let this session wait for no lock longer than that (whole seconds), where the site has not chosen a time itself."""

    @abstractmethod
    def prepare_worker(self, lease: float) -> None:
        """Set up a connection that belongs to a worker: isolation and waiting as our moves and the lease (seconds) want."""
