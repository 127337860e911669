"""What MySQL 8 and 9 do differently from MariaDB."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from .mariadb import MariaDB
from .words import JOB


class MySQL(MariaDB):
    """Ask for what an INSERT does not return, and wait for a lock a second at least."""

    share_lock = "FOR SHARE"
    job_lock = "FOR UPDATE OF job"
    collation = "utf8mb4_0900_bin"
    least_lock_wait = 1

    def _created_at(self, cursor: Any, statement: str, row: Sequence[Any]) -> datetime:
        cursor.execute(statement, row)
        cursor.execute(f"SELECT created_at FROM {JOB} WHERE id = %s", (row[0],))
        return cast(datetime, cursor.fetchone()[0])
