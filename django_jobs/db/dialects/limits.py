"""The statements that limits need: the slots of scopes, most of it for many scopes in one statement."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .speaker import Speaker
from .words import COUNTS_PER_STATEMENT, JOB, SLOT, START, UNKEYED, marks

HELD = "status = 'pending' AND pending_dependencies = 0 AND pending_limits = 1"
# So few that they fit into PostgreSQL's table of locks however many scopes there are; two scopes may share one.
LIMIT_LOCKS = 512
TURN_LOCKS = 64  # numbered behind those of limits, and taken before them
SLOT_COLUMNS = ("job_id", "scope", "waits", "starts", "queue", "rank", "available_at", "keyed", "fair_key")

# By the primary key: of a few rows MariaDB looks at all, and locks them, the stranger's as well.
_LIMIT_KEYS = (
    f"SELECT id, limit_key, queue_limit_key, fair_key FROM {JOB} {{by_primary_key}}"
    " WHERE status = 'running' AND worker_id = %s AND id IN ({ids}) {lock}"
)
_SLOTS_TAKEN = (
    "SELECT slot.scope, slot.queue, COUNT(CASE WHEN job.status = 'running' THEN 1 END),"
    " COUNT(CASE WHEN job.status = 'running' AND slot.starts THEN 1 END),"
    " COUNT(CASE WHEN job.status = 'pending' THEN 1 END), MAX(CASE WHEN job.status = 'pending' THEN slot.rank END),"
    " MAX(CASE WHEN job.status = 'pending' THEN slot.available_at END),"
    " MAX(CASE WHEN job.status = 'pending' THEN slot.job_id END)"
    f" FROM {SLOT} AS slot JOIN {JOB} AS job ON job.id = slot.job_id WHERE slot.waits = FALSE AND slot.scope IN"
)
QUEUES_OF_WAITERS = (
    f"(SELECT MIN(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = FALSE),"
    f" (SELECT MAX(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = FALSE),"
    f" (SELECT MIN(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = TRUE),"
    f" (SELECT MAX(queue) FROM {SLOT} WHERE scope = {{scope}} AND waits = TRUE AND keyed = TRUE)"
)
# In the order of the index, to the letter: that `fair_key` is empty goes without saying, and said as a condition it has SQLite
# sort all who wait.
FIRST_THAT_WAIT = (
    f"SELECT {{number}}slot.rank AS in_order, slot.{{moment}} AS since, slot.job_id, job.job_type, job.limit_key,"
    " job.queue_limit_key"
    f" FROM {SLOT} AS slot JOIN {JOB} AS job ON job.id = slot.job_id"
    " WHERE slot.scope = {scope} AND slot.waits = TRUE AND slot.keyed = FALSE AND slot.queue = {queue}"
    " AND job.pending_limits = 1 ORDER BY slot.rank, slot.fair_key, slot.available_at, slot.job_id LIMIT {most}"
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


class LimitStatements(Speaker):
    """Read and write slots. Whoever writes a job's slots has locked its row."""

    def limit_keys(self, ids: Sequence[str], process_id: str) -> list[tuple[str, str | None, str | None, str | None]]:
        """Lock those of the jobs that a process runs, and return (id, limit_key, queue_limit_key, fair_key) of each."""
        given = {"by_primary_key": self.by_primary_key, "ids": marks(ids), "lock": self.write_lock}
        return self.read(_LIMIT_KEYS.format(**given), (process_id, *ids))

    def running_of(self, types: Sequence[str], queues: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return (id, job_type, queue, limit_key, queue_limit_key) of the jobs of these types or queues that run."""
        parts = [f"{column} IN ({marks(some)})" for column, some in (("job_type", types), ("queue", queues)) if some]
        # The status as a word in the statement: with a parameter, SQLite would not know the index of those that run.
        where = f"WHERE status = 'running' AND ({' OR '.join(parts)})"
        return self.read(
            f"SELECT id, job_type, queue, limit_key, queue_limit_key FROM {JOB} {where}", (*types, *queues)
        )

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
        rows = self.read(f"SELECT job_id, scope, waits, starts FROM {SLOT} WHERE job_id IN ({marks(ids)})", ids)
        return [(job_id, scope, bool(waits), bool(starts)) for job_id, scope, waits, starts in rows]

    def slots_taken(self, scopes: Sequence[str]) -> list[tuple[str, str, int, int, int, int | None, Any, str | None]]:
        """Return (scope, queue, jobs that run, those of them that have yet to start, jobs that were let in and are ready, and of
        these the highest rank, available_at and id).

        Scopes without such jobs are left out.
        """
        return self.read(f"{_SLOTS_TAKEN} ({marks(scopes)}) GROUP BY slot.scope, slot.queue", scopes)

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

    def next_in_one_queue(self, scopes: Sequence[tuple[str, int]], most: int) -> list[tuple[Any, ...]] | None:
        """Return who is next in scopes, each given with how many may run at once; None where that takes several looks.

        A row is (number of the scope, queue, whether there is another queue, or a fair key, how many there is room for, whether
        the job comes before one that was let in, rank, available_at, id, job_type, limit_key, queue_limit_key, whether a ready
        job comes before that was not let in). Scopes where nobody waits have none, and of those where nobody is next the columns
        of the job are None. Where jobs were let in, there may be one more than there is room for.

        Args:
            most: how many of each scope are returned at most.
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

    def let_in(self, ids: Sequence[str]) -> set[str]:
        """Make jobs ready that wait for a slot, as far as nobody else has locked them; return their ids."""
        lock = f"ORDER BY id {self.write_lock} SKIP LOCKED" if self.write_lock else ""
        waiting = f"FROM {JOB} {self.by_primary_key} WHERE id IN ({marks(ids)}) AND pending_limits = 1"
        free = [job_id for (job_id,) in self.read(f"SELECT id {waiting} {lock}", ids)]
        if free:
            with self.connection.cursor() as cursor:
                those = f"IN ({marks(free)})"
                cursor.execute(f"UPDATE {JOB} SET pending_limits = 0, updated_at = {self.now} WHERE id {those}", free)
                cursor.execute(f"UPDATE {SLOT} SET waits = FALSE WHERE job_id {those}", free)
        return set(free)

    def take_slots(self, claimed: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Let the slots be taken for which claimed jobs, given as CLAIMED_COLUMNS and returned, have waited."""
        if claimed:
            ids = [row[0] for row in claimed]
            with self.connection.cursor() as cursor:
                cursor.execute(f"UPDATE {SLOT} SET waits = FALSE, starts = FALSE WHERE job_id IN ({marks(ids)})", ids)
        return claimed

    def undo_claim(self, ids: Sequence[str], pending_limits: int) -> None:
        """Make claimed jobs, which nobody has seen yet, pending again, as ready ones (0) or held back (1)."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {JOB} SET status = 'pending', pending_limits = %s, started_at = NULL,"
                f" worker_id = CASE WHEN retry_count > 0 THEN worker_id END WHERE id IN ({marks(ids)})",
                (pending_limits, *ids),
            )

    def delete_slots(self, ids: Sequence[str]) -> set[tuple[str, bool]]:
        """Delete the slots of jobs and return their scopes, each with whether a start was still to come there."""
        deleted = {(scope, starts) for _, scope, _, starts in self.slots_of(ids)}
        if deleted:
            with self.connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM {SLOT} WHERE job_id IN ({marks(ids)})", ids)
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
