"""What differs between databases, behind one small interface: `dialect()` returns that of the jobs' database."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import NotSupportedError

from django_jobs.db.connections import jobs_connection

from .base import Dialect
from .mariadb import MariaDB
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite
from .words import INSERT_COLUMNS

__all__ = ["INSERT_COLUMNS", "Dialect", "dialect", "driver"]

_DRIVERS: dict[str, type[Dialect]] = {"postgresql": PostgreSQL, "mysql": MariaDB, "sqlite": SQLite}


def dialect() -> Dialect:
    """Return the dialect that speaks on this thread's connection to the jobs' database.

    The first one on MariaDB or MySQL connects, to learn which of them it is. Raises NotSupportedError for an engine we were not
    built for.
    """
    connection: Any = jobs_connection()
    kind = _of(connection)
    if kind is MariaDB:
        if connection.connection is None:
            connection.ensure_connection()  # else Django connects for the question, and closes the connection after it
        if not connection.mysql_is_mariadb:
            kind = MySQL
    return kind(connection)


def driver() -> type[Dialect]:
    """Return the dialect of the driver, whose options do not depend on the server: nobody is asked."""
    return _of(jobs_connection())


def _of(connection: BaseDatabaseWrapper) -> type[Dialect]:
    try:
        return _DRIVERS[connection.vendor]
    except KeyError:
        raise NotSupportedError(
            f"django_jobs runs on PostgreSQL, MariaDB, MySQL and SQLite, not on {connection.vendor}"
        ) from None
