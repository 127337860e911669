"""What differs between databases, behind one small interface: `dialect()` returns that of the jobs' database."""

from __future__ import annotations

from django.db.utils import NotSupportedError

from django_jobs.db.connections import jobs_connection

from .base import INSERT_COLUMNS, Dialect
from .mariadb import MariaDB
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["INSERT_COLUMNS", "Dialect", "dialect"]

_DIALECTS: dict[str, Dialect] = {"postgresql": PostgreSQL(), "mysql": MariaDB(), "sqlite": SQLite()}


def dialect() -> Dialect:
    """Return the dialect of the jobs' database; raise NotSupportedError for an engine we were not built for."""
    vendor = jobs_connection().vendor
    try:
        return _DIALECTS[vendor]
    except KeyError:
        raise NotSupportedError(f"django_jobs runs on PostgreSQL, MariaDB, MySQL and SQLite, not on {vendor}") from None
