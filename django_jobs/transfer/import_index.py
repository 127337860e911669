"""An index of what an import has seen, so that a million jobs are checked against each other in constant memory."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

from .rows import DEPENDS_ON, ID, STATUS, UNIQUE_LOCK, Rows

_SCHEMA = """
CREATE TABLE job (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, place TEXT NOT NULL, status TEXT NOT NULL, unique_lock TEXT,
    is_known INTEGER NOT NULL DEFAULT 0);
CREATE TABLE edge (job INTEGER NOT NULL, depends_on TEXT NOT NULL);
CREATE TABLE outside (id TEXT PRIMARY KEY);
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -4000;
"""


class ImportIndex:
    """An index of records by id, in a temporary file of SQLite's that vanishes when it is closed."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.executescript(_SCHEMA)
        self._file.execute("BEGIN")
        self.count = 0
        self.edges = 0

    def close(self) -> None:
        """Close the index, which deletes its file."""
        self._file.close()

    def add(self, page: Sequence[tuple[str, Rows]]) -> Iterator[tuple[str, str]]:
        """Add a page of records, each with its place; yield (place, problem) of those whose id another one has."""
        added = self._file.executemany(
            "INSERT OR IGNORE INTO job (number, id, place, status, unique_lock) VALUES (?, ?, ?, ?, ?)",
            [
                (number, rows.job[ID], place, rows.job[STATUS], rows.job[UNIQUE_LOCK])
                for number, (place, rows) in enumerate(page, self.count + 1)
            ],
        ).rowcount
        if added < len(page):
            for place, rows in page:
                (first,) = self._file.execute("SELECT place FROM job WHERE id = ?", (rows.job[ID],)).fetchone()
                if first != place:
                    yield place, f"job_id {rows.job[ID]!r} is taken by {first}"
        edges = [
            (number, edge[DEPENDS_ON]) for number, (_, rows) in enumerate(page, self.count + 1) for edge in rows.edges
        ]
        self._file.executemany("INSERT INTO edge VALUES (?, ?)", edges)
        self.edges += len(edges)
        self.count += len(page)

    def know(self, ids: Sequence[str]) -> None:
        """Note that the database has these jobs already, with equal content."""
        self._file.executemany("UPDATE job SET is_known = 1 WHERE id = ?", [(job_id,) for job_id in ids])

    def statuses(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the status that each of the ids has in the records."""
        statuses = "SELECT id, status FROM job WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self._file.execute(statuses, (json.dumps(ids),)))

    def add_edge_indexes(self) -> None:
        """Index the edges, once every record has been added; the questions below need it."""
        self._file.execute("CREATE INDEX edge_job ON edge (job)")
        self._file.execute("CREATE INDEX edge_depends_on ON edge (depends_on)")

    def outside(self, size: int) -> Iterator[list[tuple[str, str]]]:
        """Yield pages of (place, id) of the dependencies that are not among the records."""
        found = self._file.execute(
            "SELECT MIN(job.place), edge.depends_on FROM edge JOIN job ON job.number = edge.job"
            " WHERE NOT EXISTS (SELECT 1 FROM job WHERE id = edge.depends_on) GROUP BY edge.depends_on"
        )
        while page := found.fetchmany(size):
            yield page

    def locks(self, size: int) -> Iterator[list[tuple[str, str, str]]]:
        """Yield pages of (place, id, unique key) of the live records that would hold a key."""
        found = self._file.execute(
            "SELECT place, id, unique_lock FROM job WHERE unique_lock IS NOT NULL AND NOT is_known"
        )
        while page := found.fetchmany(size):
            yield page

    def double_locks(self) -> list[tuple[str, str]]:
        """Return (place, unique key) of the keys that more than one live record would hold."""
        return self._file.execute(
            "SELECT MAX(place), unique_lock FROM job WHERE unique_lock IS NOT NULL GROUP BY unique_lock HAVING COUNT(*) > 1"
        ).fetchall()

    def circle(self) -> list[str] | None:
        """Return the ids of records that depend on each other in a circle, the first one again at the end; or None."""
        waits_for = array("q", [0]) * (self.count + 1)
        for job, number in self._file.execute(
            "SELECT job, COUNT(*) FROM edge WHERE EXISTS (SELECT 1 FROM job WHERE id = edge.depends_on) GROUP BY job"
        ):
            waits_for[job] = number
        free = deque(
            row[0]
            for row in self._file.execute("SELECT number FROM job WHERE id IN (SELECT depends_on FROM edge)")
            if not waits_for[row[0]]
        )
        dependents = "SELECT edge.job FROM edge JOIN job ON job.id = edge.depends_on WHERE job.number = ?"
        while free:
            for (job,) in self._file.execute(dependents, (free.popleft(),)).fetchall():
                waits_for[job] -= 1
                if not waits_for[job]:
                    free.append(job)
        stuck = next((job for job, number in enumerate(waits_for) if number), None)
        return None if stuck is None else self._walk(stuck, waits_for)

    def _walk(self, job: int, waits_for: array[int]) -> list[str]:
        """Follow the edges from a job that a circle holds back until a job comes again; return the ids of the circle."""
        path: list[int] = []
        seen: dict[int, int] = {}
        while job not in seen:
            seen[job] = len(path)
            path.append(job)
            nexts = self._file.execute(
                "SELECT job.number FROM edge JOIN job ON job.id = edge.depends_on WHERE edge.job = ? ORDER BY 1", (job,)
            )
            job = next(number for (number,) in nexts.fetchall() if waits_for[number])
        circle = [*path[seen[job] :], job]
        return [self._file.execute("SELECT id FROM job WHERE number = ?", (number,)).fetchone()[0] for number in circle]
