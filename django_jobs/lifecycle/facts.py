"""What a database says of itself; asked by the system checks only."""

from __future__ import annotations

from django.db import connections

OLDEST = {
    "postgresql": ("PostgreSQL", (15,)),
    "mariadb": ("MariaDB", (10, 6)),
    "mysql": ("MySQL", (8, 0, 11)),
    "sqlite": ("SQLite", (3, 38)),
}


def product_and_version(alias: str) -> tuple[str, tuple[int, ...]]:
    """Return a key of OLDEST (or another vendor's name) and the version."""
    connection = connections[alias]
    vendor = connection.vendor
    connection.ensure_connection()
    if vendor == "postgresql":
        return vendor, divmod(connection.pg_version, 10_000)  # type: ignore[attr-defined]
    if vendor == "mysql":
        return ("mariadb" if connection.mysql_is_mariadb else vendor), connection.mysql_version  # type: ignore[attr-defined]
    if vendor == "sqlite":
        return vendor, connection.Database.sqlite_version_info  # type: ignore[attr-defined]
    return vendor, ()


def journal_mode(alias: str) -> str:
    """Return the journal mode of an SQLite database, `wal` or another."""
    with connections[alias].cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        return str(cursor.fetchone()[0]).lower()


def max_connections(alias: str) -> int | None:
    """Return how many connections the server takes from ordinary users; None where there is no server."""
    statements = {
        "postgresql": "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int",
        "mysql": "SELECT @@max_connections",
    }
    statement = statements.get(connections[alias].vendor)
    if statement is None:
        return None
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0])
