"""What a database error means: run the transaction again, wait for the database, or give up."""

from __future__ import annotations

from django.db import IntegrityError, InterfaceError, OperationalError

# PostgreSQL: serialization failure, deadlock, lock not available. MariaDB/MySQL: changed since read, lock wait, deadlock.
LOCK_NOT_AVAILABLE = "55P03"
RETRY_SQLSTATES = frozenset({"40001", "40P01", LOCK_NOT_AVAILABLE})
LOCK_WAIT_TIMEOUT = 1205
RETRY_ERRNOS = frozenset({1020, LOCK_WAIT_TIMEOUT, 1213})
# What a server says while it goes down, comes up or refuses writes: the loops are to wait then, not to give up.
AWAY_SQLSTATES = ("08", "57P", "25006", "53")
# 1044, 1045 and 1049: no such user or database yet, which PostgreSQL's driver does not tell from a server that is away.
# 1021 and 1114: the disk is full, which for a table that cannot grow reads "the table is full".
AWAY_ERRNOS = frozenset(
    {1021, 1040, 1044, 1045, 1049, 1053, 1114, 1129, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055, 4031}
)
# SQLite's own: no memory, read-only, an I/O error, full, cannot open, a locking protocol error.
AWAY_SQLITE = frozenset({7, 8, 10, 13, 14, 15})


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of a PostgreSQL error, or an empty string."""
    return getattr(error.__cause__, "sqlstate", None) or ""


def errno(error: BaseException) -> int:
    """Return the error number of a MariaDB or MySQL error, or 0."""
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def is_lock_timeout(error: BaseException) -> bool:
    """Say whether a lock was not to be had in the time that the server was told to wait."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE or errno(error) == LOCK_WAIT_TIMEOUT


def is_busy(error: BaseException) -> bool:
    """Say whether SQLite's one writer was somebody else for longer than the site's `timeout`."""
    text = str(error)
    return isinstance(error, OperationalError) and ("database is locked" in text or "database table is locked" in text)


def is_transient(error: BaseException) -> bool:
    """Say whether the same transaction may well succeed when it is run again at once."""
    return sqlstate(error) in RETRY_SQLSTATES or errno(error) in RETRY_ERRNOS or is_busy(error)


def is_away(error: BaseException) -> bool:
    """Say whether an error means that the database cannot be used now, rather than that the statement is wrong."""
    if is_transient(error) or isinstance(error, InterfaceError):
        return True
    if errno(error) in AWAY_ERRNOS or sqlstate(error).startswith(AWAY_SQLSTATES):
        return True
    if isinstance(error, IntegrityError) or not isinstance(error, OperationalError):
        return False
    if (code := getattr(error.__cause__, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in AWAY_SQLITE
    # A broken connection has no SQLSTATE in psycopg.
    return not sqlstate(error) and not 1000 <= errno(error) < 2000
