"""What the jobs' server says of itself: product, version, settings, and which migrations it has."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from .connections import jobs_connection

OLDEST = {
    "postgresql": ("PostgreSQL", (15,)),
    "mariadb": ("MariaDB", (10, 6)),
    "mysql": ("MySQL", (8, 0, 11)),
    "sqlite": ("SQLite", (3, 38)),
}
_MAX_CONNECTIONS = {
    "postgresql": "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int",
    "mysql": "SELECT @@max_connections",
}


def product_and_version() -> tuple[str, tuple[int, ...]]:
    """Return a key of OLDEST (or another vendor's name) and the version."""
    connection: Any = jobs_connection()
    connection.ensure_connection()
    match connection.vendor:
        case "postgresql":
            return "postgresql", divmod(connection.pg_version, 10_000)
        case "mysql":
            return ("mariadb" if connection.mysql_is_mariadb else "mysql"), connection.mysql_version
        case "sqlite":
            return "sqlite", connection.Database.sqlite_version_info
        case other:
            return other, ()


def journal_mode() -> str:
    """Return the journal mode of an SQLite database, `wal` or another."""
    return str(_value("PRAGMA journal_mode")).lower()


def max_connections() -> int | None:
    """Return how many connections the server takes from ordinary users; None where there is no server."""
    statement = _MAX_CONNECTIONS.get(jobs_connection().vendor)
    return None if statement is None else int(_value(statement))


def missing_migrations() -> list[str]:
    """Return the migrations of this app that the database lacks, by their names alone: no app's migrations are imported."""
    where, _ = MigrationLoader.migrations_module("django_jobs")
    if where is None:  # the site has switched them off
        return []
    names = {found.name for found in iter_modules(import_module(where).__path__) if found.name[0] not in "_~"}
    applied = MigrationRecorder(jobs_connection()).applied_migrations()
    return [f"django_jobs.{name}" for name in sorted(names) if ("django_jobs", name) not in applied]


def _value(statement: str) -> Any:
    with jobs_connection().cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]
