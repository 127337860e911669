"""What the statements of a dialect stand on: a connection, and what differs in a word."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from django.db.backends.base.base import BaseDatabaseWrapper

from .words import JOB, marks


@dataclass(frozen=True)
class Speaker(ABC):
    """Speak on one connection. Statements take the database's clock, never the host's."""

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

    @abstractmethod
    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows of any table, the fastest way there is; raise IntegrityError on a clash.

        A value is a text, a number or None: JSON is text, and a time is text in UTC without its zone.
        """

    def lock_free_jobs(self, ids: Sequence[str]) -> set[str]:
        """Lock those of the jobs that nobody else has locked, without waiting, and return their ids."""
        if not self.write_lock:
            return set(ids)
        free = self.read(
            f"SELECT id FROM {JOB} WHERE id IN ({marks(ids)}) ORDER BY id {self.write_lock} SKIP LOCKED", ids
        )
        return {row[0] for row in free}
