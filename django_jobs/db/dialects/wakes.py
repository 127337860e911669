"""The statements that the end of a job needs: its edges, those who wait for it, its place in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .speaker import Speaker
from .words import BATCH, DEPENDENCY, JOB, OPEN_EDGES, OPEN_MEMBER, marks


class WakeStatements(Speaker):
    """Wake who waited for jobs: composed by the ORM that was more than half of a thread's time for a link of a chain."""

    def open_edges(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return (id, job_id, depends_on_id, on_failure) of the open edges to jobs."""
        return self.read(f"{OPEN_EDGES} IN ({marks(ids)})", ids)

    def lock_jobs(self, ids: Sequence[str]) -> list[tuple[str, str, str, int]]:
        """Lock jobs in the order of their ids and return (id, queue, status, pending_dependencies) of each."""
        columns = "id, queue, status, pending_dependencies"
        return self.read(f"SELECT {columns} FROM {JOB} WHERE id IN ({marks(ids)}) ORDER BY id {self.write_lock}", ids)

    def share_jobs(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Lock jobs against change, in the order of their ids, and return (id, status) of each."""
        return self.read(f"SELECT id, status FROM {JOB} WHERE id IN ({marks(ids)}) ORDER BY id {self.share_lock}", ids)

    def set_edges(self, keys: Sequence[int], state: str) -> None:
        """Set the state of edges given by primary key."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {DEPENDENCY} SET state = %s WHERE id IN ({marks(keys)})", [state, *keys])

    def count_down(self, ids: Sequence[str], number: int) -> None:
        """Take a number off the open dependencies of jobs; those that were pending and reach zero become available now."""
        with self.connection.cursor() as cursor:
            # MariaDB assigns from left to right, so the count is the last to change.
            cursor.execute(
                f"UPDATE {JOB} SET available_at = CASE WHEN pending_dependencies = %s AND status = 'pending'"
                f" THEN {self.now} ELSE available_at END, pending_dependencies = pending_dependencies - %s"
                f" WHERE id IN ({marks(ids)})",
                [number, number, *ids],
            )

    def satisfy(self, edges: Sequence[int], counts: Mapping[str, int]) -> list[tuple[str, str]]:
        """Close edges and take their numbers off the open dependencies of jobs; return (id, queue) of those that became ready.

        The jobs are locked first, in the order of their ids, so that settles that share dependents do not deadlock.
        """
        jobs = self.lock_jobs(sorted(counts))
        self.set_edges(edges, "satisfied")
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

    def end_members(self, ids: Sequence[str]) -> int:
        """Let those of the jobs that are open members of a batch no longer be; return how many these are."""
        return self._end_members(f"IN ({marks(ids)})", ids)

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
