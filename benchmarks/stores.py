"""The databases and brokers the benchmark runs on: where they are, how to empty them and what they count."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

DEFAULTS = {
    "postgresql": "postgresql://postgres@127.0.0.1:5432/jobs_bench",
    "mariadb": "mysql://root@127.0.0.1:3306/jobs_bench",
    "redis": "redis://127.0.0.1:6379/15",
    "sqlite": "sqlite:///{run_dir}/jobs_bench.sqlite3",
}
KINDS = tuple(DEFAULTS)


@dataclass(frozen=True)
class Store:
    """A database or broker that belongs to the benchmark alone: everything in it is deleted."""

    kind: str
    url: str

    @property
    def name(self) -> str:
        return urlsplit(self.url).path[1:]

    def admin_url(self, database: str = "postgres") -> str:
        """Return the URL of another database of the same server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))


def store(kind: str) -> Store:
    """Return the store of this kind: BENCH_POSTGRESQL, BENCH_MARIADB, BENCH_REDIS or the default on this machine."""
    url = os.environ.get(f"BENCH_{kind.upper()}", DEFAULTS[kind])
    return Store(kind, url.format(run_dir=run_dir()))


def run_dir() -> Path:
    """Return the directory of this one run, which the harness names in BENCH_DIR."""
    return Path(os.environ.get("BENCH_DIR", "."))


def current() -> Store:
    """Return the store of this one run, which the harness names in BENCH_STORE."""
    return store(os.environ["BENCH_STORE"])


def recreate(place: Store) -> None:
    """Make the store empty: a database is dropped and created anew, a broker's database is flushed."""
    drop(place)
    if place.kind == "postgresql":
        with postgresql(place.admin_url()) as connection:
            connection.execute(f'CREATE DATABASE "{place.name}"')
    elif place.kind == "mariadb":
        with mariadb(place, database=None) as cursor:
            cursor.execute(f"CREATE DATABASE `{place.name}` CHARACTER SET utf8mb4")


def drop(place: Store) -> None:
    """Remove whatever the benchmark put there."""
    if place.kind == "postgresql":
        with postgresql(place.admin_url()) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{place.name}" WITH (FORCE)')
    elif place.kind == "mariadb":
        with mariadb(place, database=None) as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS `{place.name}`")
    elif place.kind == "redis":
        redis_client(place).flushdb()
    else:
        for suffix in ("", "-wal", "-shm"):
            Path(f"/{place.name.lstrip('/')}{suffix}").unlink(missing_ok=True)


def settle(place: Store) -> None:
    """Give every peer the same start: fresh statistics, nothing left to flush from the inserts."""
    if place.kind == "postgresql":
        with postgresql(place.url) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
    elif place.kind == "mariadb":
        with mariadb(place) as cursor:
            cursor.execute("SHOW TABLES")
            names = [row[0] for row in cursor.fetchall()]
            for name in names:
                cursor.execute(f"ANALYZE TABLE `{name}`")
                cursor.fetchall()


def statements(place: Store) -> int:
    """Return how many statements (Redis: commands) the server has been sent since it started.

    On PostgreSQL a transaction is counted instead when pg_stat_statements is not loaded: see `statements_unit`.
    """
    if place.kind == "postgresql":
        with postgresql(place.url) as connection:
            if statements_unit(place) == "statements":
                sql = "SELECT COALESCE(SUM(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
            else:
                sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database d"
            row = connection.execute(f"{sql} WHERE datname = %s", [place.name]).fetchone()
            return int(row[0])
    if place.kind == "mariadb":
        with mariadb(place) as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
            return int(cursor.fetchone()[1])
    if place.kind == "redis":
        return int(redis_client(place).info("stats")["total_commands_processed"])
    raise ValueError("SQLite counts no statements")


def session_pids(place: Store) -> list[int]:
    """Return the server processes that serve the store's sessions: PostgreSQL on this machine, otherwise none."""
    if place.kind != "postgresql":
        return []
    with postgresql(place.admin_url()) as connection:
        sql = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        return [row[0] for row in connection.execute(sql, [place.name])]


def statements_unit(place: Store) -> str:
    """Return what `statements` counts here."""
    if place.kind == "redis":
        return "commands"
    if place.kind != "postgresql":
        return "statements"
    if not counts_statements():
        return "transactions"
    with postgresql(place.url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        return "statements"


def counts_statements() -> bool:
    """Say whether the PostgreSQL server has pg_stat_statements loaded."""
    with postgresql(store("postgresql").admin_url()) as connection:
        loaded = connection.execute("SELECT current_setting('shared_preload_libraries')").fetchone()[0]
        return "pg_stat_statements" in loaded


@contextlib.contextmanager
def postgresql(url: str) -> Iterator[Any]:
    """Open an autocommit connection."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@contextlib.contextmanager
def mariadb(place: Store, database: str | None = "") -> Iterator[Any]:
    """Open an autocommit cursor; `database=None` chooses no database."""
    import MySQLdb

    parts = urlsplit(place.url)
    options = {"host": parts.hostname, "port": parts.port or 3306, "user": parts.username, "autocommit": True}
    if parts.password:
        options["password"] = parts.password
    if database is not None:
        options["database"] = database or place.name
    connection = MySQLdb.connect(**options)
    try:
        yield connection.cursor()
    finally:
        connection.close()


@contextlib.contextmanager
def old_snapshot(place: Store) -> Iterator[None]:
    """Hold a transaction with a snapshot open, as a forgotten shell or a long report does."""
    if place.kind == "postgresql":
        with postgresql(place.url) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
            yield
            connection.execute("ROLLBACK")
    elif place.kind == "mariadb":
        with mariadb(place) as cursor:
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            yield
            cursor.execute("ROLLBACK")
    else:
        import sqlite3

        with contextlib.closing(sqlite3.connect(f"/{place.name.lstrip('/')}", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            yield


def redis_client(place: Store) -> Any:
    """Return a client of the broker's database."""
    import redis

    return redis.Redis.from_url(place.url)


def versions() -> dict[str, str]:
    """Return the servers' versions, for those that answer."""
    found = {}
    with contextlib.suppress(Exception), postgresql(store("postgresql").admin_url()) as connection:
        found["postgresql"] = connection.execute("SHOW server_version").fetchone()[0]
        for name in ("fsync", "synchronous_commit", "shared_buffers"):
            found[f"postgresql {name}"] = connection.execute(f"SHOW {name}").fetchone()[0]
    with contextlib.suppress(Exception), mariadb(store("mariadb"), database=None) as cursor:
        cursor.execute("SELECT VERSION(), @@innodb_flush_log_at_trx_commit")
        version, flush = cursor.fetchone()
        found |= {"mariadb": version, "mariadb innodb_flush_log_at_trx_commit": str(flush)}
    with contextlib.suppress(Exception):
        client = redis_client(store("redis"))
        found["redis"] = client.info("server")["redis_version"]
        found["redis appendonly"] = client.config_get("appendonly")["appendonly"]
    with contextlib.suppress(Exception):
        import sqlite3

        found["sqlite"] = sqlite3.sqlite_version
    return found


def commit_of(root: Path) -> str:
    """Return the checked-out commit, or an empty string outside a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()
