"""What differs between databases, behind one small interface: `dialect(connection)` returns the right one."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import NotSupportedError

from .base import INSERT_COLUMNS, Dialect
from .mariadb import MariaDB
from .postgresql import PostgreSQL
from .sqlite import SQLite

_DIALECTS: dict[str, Dialect] = {"postgresql": PostgreSQL(), "mysql": MariaDB(), "sqlite": SQLite()}

__all__ = ["INSERT_COLUMNS", "Dialect", "dialect"]


def dialect(connection: BaseDatabaseWrapper) -> Dialect:
    """Return the dialect of a connection; raise NotSupportedError for an engine we were not built for."""
    try:
        return _DIALECTS[connection.vendor]
    except KeyError:
        raise NotSupportedError(
            f"django_jobs runs on PostgreSQL, MariaDB, MySQL and SQLite, not on {connection.vendor}"
        ) from None
