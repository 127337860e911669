"""The databases the tests run on: reach, create, point `default` at, empty and drop them."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from asgiref.sync import SyncToAsync
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import ConnectionHandler, DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from testproject.database import database_from_url

VENDORS = ("sqlite", "postgresql", "mariadb")
SERVERS = {
    "postgresql": ("JOBS_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/"),
    "mariadb": ("JOBS_TEST_MARIADB", "mysql://root@127.0.0.1:3306/"),
}
DRIVERS = {
    "postgresql": ("psycopg", "psycopg is not installed: pip install '.[postgres]'"),
    "mariadb": ("MySQLdb", "mysqlclient is not installed: pip install '.[mysql]'"),
}
KEPT_TABLES = {
    "django_migrations",
    "django_content_type",
    "auth_permission",
}  # written by migrate, wanted by every test
MANY_ROWS = 5_000  # above it a TRUNCATE is cheaper than a DELETE, below it far dearer


@dataclass(frozen=True)
class Database:
    """What the `database` fixture gives: the vendor under test and the URL that subprocesses get as DATABASE_URL."""

    vendor: str
    url: str


def server_url(vendor: str) -> str:
    """Return the URL, without a database name, of the server that the tests of `vendor` use."""
    variable, default = SERVERS[vendor]
    return os.environ.get(variable, default)


def why_unreachable(vendor: str) -> str | None:
    """Return why the tests cannot run on `vendor`, or None when they can."""
    if vendor == "sqlite":
        return None
    module, hint = DRIVERS[vendor]
    if find_spec(module) is None:
        return hint
    where = urlsplit(server_url(vendor))
    try:
        connect_once(server_url(vendor))
    except Exception as error:  # a driver may raise anything, and all of it means "not reachable"
        return f"{SERVERS[vendor][0]} at {where.hostname}:{where.port}: {' '.join(str(error).split())[:160]}"
    return None


def connect_once(url: str) -> None:
    """Connect to the server and close again; raise the driver's error when it cannot be done.

    It uses the driver's connection, since pytest-django forbids Django's outside of database tests.
    """
    connection = _maintenance_connection(url)
    connection.get_new_connection(connection.get_connection_params()).close()


def _maintenance_connection(url: str) -> BaseDatabaseWrapper:
    """Return a connection to no particular database of the server, for CREATE and DROP DATABASE."""
    setting: dict[str, Any] = database_from_url(url)
    setting["NAME"] = "postgres" if setting["ENGINE"].endswith("postgresql") else ""
    setting["OPTIONS"] = {**setting.get("OPTIONS", {}), "connect_timeout": 5}
    return ConnectionHandler({"default": setting})["default"]


@contextmanager
def _maintenance_cursor(url: str) -> Iterator[Any]:
    connection = _maintenance_connection(url)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


# --- names: one per process, so that runs side by side never meet, and a dead run's leftovers are known as such


def _name_prefix() -> str:
    """Return what all test databases made on this machine (in this pid namespace) begin with."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"test_jobs_{hashlib.sha256((socket.gethostname() + namespace).encode()).hexdigest()[:6]}_"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def drop_leftovers(base_url: str) -> list[str]:
    """Drop the databases that test runs of this machine left behind when they were killed; return their names."""
    prefix = _name_prefix()
    with _maintenance_cursor(base_url) as cursor:
        catalogue = (
            "datname FROM pg_database" if _is_postgresql(base_url) else "schema_name FROM information_schema.schemata"
        )
        cursor.execute(f"SELECT {catalogue}")
        names = [name for (name,) in cursor.fetchall() if name.startswith(prefix)]
    pids = {name: int(name.removeprefix(prefix).split("_")[0]) for name in names}
    dead = [name for name in names if not _is_alive(pids[name])]
    for name in dead:
        drop_database(_with_name(base_url, name))
    return dead


def _is_postgresql(url: str) -> bool:
    return urlsplit(url).scheme.startswith("postgres")


def _with_name(base_url: str, name: str) -> str:
    return urlunsplit(urlsplit(base_url)._replace(path=f"/{name}"))


# --- create and drop


def new_url(vendor: str, directory: Path, base_url: str | None = None, suffix: str = "") -> str:
    """Return the URL for a test database of this process: a file in `directory`, or a name on the vendor's server."""
    if vendor == "sqlite":
        return f"sqlite:///{directory / f'test{suffix}.sqlite3'}"
    return _with_name(base_url or server_url(vendor), f"{_name_prefix()}{os.getpid()}{suffix}")


def create_database(url: str) -> None:
    """Create an empty database at `url`, in place of one that is there."""
    drop_database(url)
    name = urlsplit(url).path[1:]
    if urlsplit(url).scheme == "sqlite":
        return
    with _maintenance_cursor(url) as cursor:
        if _is_postgresql(url):
            cursor.execute(f"""CREATE DATABASE "{name}" ENCODING 'UTF8' TEMPLATE template0""")
        else:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")


def drop_database(url: str) -> None:
    """Drop the database at `url` if it exists, with whatever sessions a test left in it."""
    name = urlsplit(url).path[1:]
    if urlsplit(url).scheme == "sqlite":
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(name + suffix).unlink(missing_ok=True)
        return
    with _maintenance_cursor(url) as cursor:
        if _is_postgresql(url):
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            return
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", [name])
        for (session,) in cursor.fetchall():
            with suppress(DatabaseError):  # it may have ended by itself
                cursor.execute(f"KILL {session:d}")
        cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


# --- point `default` at a database


@contextmanager
def default_database_at(url: str) -> Iterator[None]:
    """Make `url` the `default` database of this process, of its new threads, and of its subprocesses (DATABASE_URL).

    Threads that already have a connection keep it: point before you start them.
    """
    before, before_url = connections.settings["default"], os.environ.get("DATABASE_URL")
    _point(connections.configure_settings({"default": database_from_url(url)})["default"])
    os.environ["DATABASE_URL"] = url
    try:
        yield
    finally:
        _point(before)
        if before_url is None:
            del os.environ["DATABASE_URL"]
        else:
            os.environ["DATABASE_URL"] = before_url


def _forget() -> None:
    connections.close_all()
    with suppress(AttributeError):  # this thread has not used it yet
        del connections["default"]


def _point(setting: dict[str, Any]) -> None:
    _forget()
    connections.settings["default"] = setting
    SyncToAsync.single_thread_executor.submit(_forget).result()  # the thread of all coroutines' database work
    ContentType.objects.clear_cache()  # it remembers ids by alias, and the alias stays


def migrate() -> None:
    """Make the tables of all installed apps in the `default` database."""
    call_command("migrate", verbosity=0, interactive=False, run_syncdb=True)


@contextmanager
def created_database(url: str) -> Iterator[None]:
    """Create the database at `url`, point `default` at it, migrate it; drop it in the end.

    Commits need not survive the server here, only the client: on PostgreSQL they do not wait for the disk.
    """
    create_database(url)
    try:
        if _is_postgresql(url):
            with _maintenance_cursor(url) as cursor:
                cursor.execute(f'ALTER DATABASE "{urlsplit(url).path[1:]}" SET synchronous_commit = off')
        with default_database_at(url):
            migrate()
            yield
    finally:
        drop_database(url)


# --- empty


def empty_tables(connection: BaseDatabaseWrapper) -> None:
    """Delete the rows of all tables except content types and permissions; touch only tables that have rows."""
    connection.close()  # a test may have broken it, or left it in a transaction
    tables = sorted(set(connection.introspection.django_table_names(include_views=False)) - KEPT_TABLES)
    quote = connection.ops.quote_name
    counts = (f"SELECT '{t}', (SELECT COUNT(*) FROM (SELECT 1 FROM {quote(t)} LIMIT {MANY_ROWS}) AS r)" for t in tables)
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SET SESSION lock_wait_timeout = 15, innodb_lock_wait_timeout = 15")
        elif connection.vendor == "postgresql":
            cursor.execute("SET lock_timeout = '15s'")  # a session that a test forgot shall be an error, not a hang
        cursor.execute(" UNION ALL ".join(counts))
        rows = dict(cursor.fetchall())
        filled = [table for table in tables if rows[table]]
        large = [table for table in filled if rows[table] == MANY_ROWS and connection.vendor != "sqlite"]
        cascade = " CASCADE" if connection.vendor == "postgresql" else ""
        with connection.constraint_checks_disabled(), transaction.atomic():  # PostgreSQL checks at the commit instead
            for table in large:
                cursor.execute(f"TRUNCATE TABLE {quote(table)}{cascade}")
            for table in set(filled) - set(large):
                cursor.execute(f"DELETE FROM {quote(table)}")
