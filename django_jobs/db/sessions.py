"""Sessions lent to handlers: see whether something may have been left in one, and reset it or never use it again.

Nobody asks the server, which would cost each job a round trip. A session is known to be as it was when the handler did nothing
but run statements that leave nothing, through Django's cursors. All else counts as a change: any other statement, any hold of the
driver's own connection or cursor, another value of an attribute of Django's connection (django-tenants keeps its schema in one).
"""

from __future__ import annotations

import re
import sys
import threading
import time
from functools import cache, lru_cache
from types import CodeType, FrameType
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from .connections import discard, is_pooled, is_stuck, shared

# Django uses the driver's objects all the time; our own moves, which a handler may call, leave a session as it was.
TRUSTED = ("django.db.", "django.contrib.", "django.test.", "django_jobs.")
RESULTS = {
    *("fetchone", "fetchmany", "fetchall", "nextset", "close", "closed", "description", "rowcount", "rownumber"),
    *("lastrowid", "arraysize", "itersize", "statusmessage"),
}
WATCH = "handler_watch"
UNSET = object()


class Watch:
    """Whether a handler has the session just now, whether it may have changed it, and what its attributes were before."""

    __slots__ = ("attributes", "changed", "is_on", "owner", "used_at", "was_held")

    def __init__(self, owner: HandlerSessions, is_on: bool = False) -> None:
        self.owner = owner
        self.is_on = is_on
        self.changed = False
        self.used_at = 0.0  # `time.monotonic()` of the last cursor
        self.was_held = False  # the driver's own object was in the handler's hands, which may keep it
        self.attributes: dict[str, Any] = {}

    def may_have_changed(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether something may have been left in the session of this connection, or on Django's object."""
        return self.changed or self.has_other_attributes(connection)

    def has_other_attributes(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether an attribute of Django's object has another value than before the handler."""
        now = vars(connection)
        return any(now.get(name, UNSET) != before for name, before in self.attributes.items())


class HandlerSessions:
    """The sessions of one thread that runs handlers, on all its databases. Use it in that thread only."""

    def __init__(self) -> None:
        self._watched: list[tuple[BaseDatabaseWrapper, Watch]] = []
        # The others are those of a handler that runs us, or of an earlier process of this thread.
        self._own: list[Watch] = []
        self._is_lent = False
        self._before: HandlerSessions | None = None

    def begin(self) -> None:
        """Watch this thread's connections, and those that it opens, until `end`."""
        self._before, _threads.sessions = getattr(_threads, "sessions", None), self
        connection_created.connect(_watch_new_connection)  # once, however often it is called
        for connection in connections.all(initialized_only=True):
            self.watch(connection)

    def end(self) -> None:
        """Leave the connections to whoever uses this thread from now on."""
        _threads.sessions = self._before
        for connection, watch in self._watched:
            if watch.owner is self:
                _unwatch(connection)
        self._watched, self._own = [], []

    def lend(self) -> None:
        """Look at what is done from now on; called right before a handler."""
        self._is_lent = True
        for watch in self._own:
            watch.is_on, watch.changed = True, False
            if watch.attributes:
                watch.attributes = {}

    def take_back(self) -> None:
        """Look no more; called right after the handler."""
        self._is_lent = False
        for watch in self._own:
            watch.is_on = False

    @property
    def are_clean(self) -> bool:
        """Whether nothing was left in any of them, and none is stuck in a transaction; asks no server.

        A thread with one connection, which is the one to the jobs, asks `is_stuck` itself.
        """
        for connection, watch in self._watched:
            if watch.changed or (watch.attributes and watch.may_have_changed(connection)):
                return False
        return len(self._watched) == 1 or not any(_may_have_changed(entry) for entry in self._watched)

    @property
    def changed(self) -> bool:
        """Whether something may have been left in one of them; may be read in any thread."""
        return any(watch.may_have_changed(connection) for connection, watch in self._watched)

    def clean(self) -> None:
        """Reset the sessions in which something may have been left; throw away the connections that cannot be reset."""
        for entry in [entry for entry in self._watched if _may_have_changed(entry)]:
            if not _reset(*entry):
                self._throw_away(*entry)

    def discard_all(self) -> None:
        """Throw away all connections of this thread, whatever they are doing."""
        for connection in connections.all(initialized_only=True):
            self.watch(connection)
        for entry in [*self._watched]:
            self._throw_away(*entry)

    def watch(self, connection: BaseDatabaseWrapper) -> None:
        """Watch a connection of this thread, open or not; those that it opens are watched from then on by themselves."""
        if any(known is connection for known, _ in self._watched):
            return
        watch = vars(connection).get(WATCH)
        if watch is None:
            watch = vars(connection)[WATCH] = Watch(self, self._is_lent)
            connection.__class__ = _watched(type(connection), _WatchedConnection)
            self._own.append(watch)
        self._watched.append((connection, watch))

    def _throw_away(self, connection: BaseDatabaseWrapper, watch: Watch) -> None:
        watch.changed, watch.was_held, watch.attributes = False, False, {}
        if connection.vendor == "sqlite" and connection.is_in_memory_db():  # type: ignore[attr-defined]
            return  # the database would be gone
        self._watched.remove((connection, watch))
        if watch in self._own:
            self._own.remove(watch)
        _unwatch(connection)
        discard(connection)
        if _is_of_this_thread(connection):
            del connections[connection.alias]  # what was set on Django's object goes with it


_threads = threading.local()


def _watch_new_connection(connection: BaseDatabaseWrapper, **rest: Any) -> None:
    sessions: HandlerSessions | None = getattr(_threads, "sessions", None)
    # A copy belongs to who made it; one that threads share is no handler's.
    if sessions is not None and connection not in shared and _is_of_this_thread(connection):
        sessions.watch(connection)


def last_used(connection: BaseDatabaseWrapper) -> float:
    """Return when a cursor was asked of a connection that is watched (`time.monotonic()`), 0 when never."""
    watch: Watch | None = vars(connection).get(WATCH)
    return 0.0 if watch is None else watch.used_at


def _is_of_this_thread(connection: BaseDatabaseWrapper) -> bool:
    return any(known is connection for known in connections.all(initialized_only=True))


def _may_have_changed(entry: tuple[BaseDatabaseWrapper, Watch]) -> bool:
    connection, watch = entry
    return watch.may_have_changed(connection) or (connection.connection is not None and is_stuck(connection))


def _reset(connection: BaseDatabaseWrapper, watch: Watch) -> bool:
    """Make a session as new where the server can, at a fraction of the price of a new one; say whether that was done.

    What a handler did to the driver's object, or to Django's, the server does not know. A pool, statements that the driver has
    prepared, and a database backend that sets up its sessions elsewhere than Django does are left to a new session.
    """
    raw = connection.connection
    if (
        connection.vendor != "postgresql"
        or watch.was_held
        or watch.has_other_attributes(connection)
        or raw is None
        or is_stuck(connection)
        or getattr(raw, "prepare_threshold", 0) is not None
        or is_pooled(connection)
        or not all(way.__module__.startswith("django.") for way in _ways_to_connect(connection))
    ):
        return False
    try:
        raw.execute("DISCARD ALL")
        connection.init_connection_state()
        # A site may set up its sessions there.
        connection_created.send(sender=_backend_of(connection), connection=connection)
    except Exception:  # the server's, or one of a receiver: a new session has it too, and says so where it is opened
        return False
    watch.changed, watch.attributes = False, {}
    return True


def _ways_to_connect(connection: BaseDatabaseWrapper) -> tuple[Any, ...]:
    kind = _backend_of(connection)
    return kind.connect, kind.get_new_connection


def _unwatch(connection: BaseDatabaseWrapper) -> None:
    if vars(connection).pop(WATCH, None) is not None:
        connection.__class__ = _backend_of(connection)


def _backend_of(connection: Any) -> Any:
    """Return the class of the site's database backend, of which that of a watched connection is made."""
    return type(connection).__bases__[1]


def _watched(base: Any, mixin: type) -> Any:  # type checkers take a cached function for no class
    return _class_of(base, mixin)


@cache
def _class_of(base: type, mixin: type) -> type:
    # The site's database backend and what it is made of know what they do.
    trusted = tuple({one.__module__ for one in base.__mro__})
    return type(base.__name__, (mixin, base), {"__module__": base.__module__, "trusted_modules": trusted})


# Functions of Django's and ours that asked before: an ORM query asks twenty times, and a look at names each time would be felt.
# By their ids, because the hash of a function's code is made of all its bytes; the code is kept so that no id is used again.
_trusted_code: dict[int, CodeType] = {}


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_trusted(frame: FrameType) -> bool:
    code = frame.f_code
    if id(code) in _trusted_code:
        return True
    if not _module(frame).startswith(TRUSTED):
        return False
    _trusted_code[id(code)] = code
    return True


class _WatchedConnection:
    """Mixed into the class of Django's connection: the only ways to the driver's objects lead through here."""

    trusted_modules: tuple[str, ...]

    @property
    def connection(self) -> Any:
        """The driver's connection, with which anything can be done."""
        own = self.__dict__  # each statement looks here several times
        watch = own.get(WATCH)
        if watch is not None and watch.is_on and id(sys._getframe(1).f_code) not in _trusted_code:
            _note(self, sys._getframe(1))
        return own["connection"]

    @connection.setter
    def connection(self, value: Any) -> None:
        vars(self)["connection"] = value

    def __setattr__(self, name: str, value: Any) -> None:
        watch = self.__dict__.get(WATCH)  # a copy has none
        if watch is not None and watch.is_on and not _is_trusted(sys._getframe(1)):
            watch.attributes.setdefault(name, vars(self).get(name, UNSET))
        super().__setattr__(name, value)

    def connect(self) -> None:
        """Connect as what Django made: receivers of `connection_created` may ask for that class, and set up the session.

        What sets up a new session is no handler's doing.
        """
        watched = type(self)
        self.__class__ = _backend_of(self)
        try:
            self.connect()
        finally:
            if WATCH in self.__dict__:
                self.__class__ = watched

    def create_cursor(self, name: str | None = None) -> Any:
        """Make a cursor of the driver."""
        if id(sys._getframe(1).f_code) not in _trusted_code:
            _note(self, sys._getframe(1))
        return super().create_cursor(name)  # type: ignore[misc]

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        """Wrap a cursor of the driver."""
        return self._watched_cursor(super().make_cursor(cursor))  # type: ignore[misc]

    def make_debug_cursor(self, cursor: Any) -> CursorWrapper:
        """Wrap a cursor of the driver in one that keeps its statements."""
        return self._watched_cursor(super().make_debug_cursor(cursor))  # type: ignore[misc]

    def _watched_cursor(self, cursor: CursorWrapper) -> CursorWrapper:
        watch = self.__dict__.get(WATCH)
        if watch is not None:
            watch.used_at = time.monotonic()
        if watch is not None and watch.is_on:
            cursor.__dict__[WATCH] = watch
            cursor.__class__ = _watched(type(cursor), _WatchedCursor)
        return cursor


class _WatchedCursor:
    """Mixed into the class of Django's cursors that a handler uses."""

    db: Any
    trusted_modules: tuple[str, ...]

    @property
    def cursor(self) -> Any:
        """The driver's cursor, with which anything can be done."""
        if id(sys._getframe(1).f_code) not in _trusted_code:
            _note(self, sys._getframe(1))
        return self.__dict__["cursor"]

    @cursor.setter
    def cursor(self, value: Any) -> None:
        vars(self)["cursor"] = value

    def execute(self, sql: Any, params: Any = None) -> Any:
        """Look at a statement and run it."""
        return self._run(super().execute, sql, params)  # type: ignore[misc]

    def executemany(self, sql: Any, param_list: Any) -> Any:
        """Look at a statement and run it for each of a list of parameters."""
        return self._run(super().executemany, sql, param_list)  # type: ignore[misc]

    def callproc(self, *arguments: Any, **options: Any) -> Any:
        """Call a procedure, which may do anything."""
        vars(self)[WATCH].changed = True
        return super().callproc(*arguments, **options)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        if name not in RESULTS:
            _note(self, sys._getframe(1))
        return super().__getattr__(name)  # type: ignore[misc]

    def _run(self, execute: Any, sql: Any, params: Any) -> Any:
        watch: Watch = self.__dict__[WATCH]
        was_on = watch.is_on
        if was_on and not watch.changed and not leaves_nothing(sql, self.db.vendor):
            watch.changed = True
        watch.is_on = False  # tracers read the driver's objects around a statement
        try:
            return execute(sql, params)
        finally:
            watch.is_on = was_on


def _note(watched: Any, frame: FrameType) -> None:
    watch = vars(watched).get(WATCH)
    if watch is None or not watch.is_on or _is_trusted(frame):
        return
    if not _module(frame).startswith(watched.trusted_modules):
        watch.changed = watch.was_held = True


# Statements.

FIRST_WORDS = {"SELECT", "INSERT", "UPDATE", "DELETE", "VALUES", "WITH", "SAVEPOINT", "RELEASE"}
# Django's own on SQLite. Elsewhere a handler says them, and on MySQL and MariaDB only the server knows of what it began.
ENDS_AND_BEGINNINGS = {"BEGIN", "COMMIT", "END", "ROLLBACK"}
# What may stand before a bracket: words of SQL, types, and functions that change nothing in a session. One that is not here, such
# as `set_config`, `get_lock` or a function of the site's, may change something.
_BEFORE_BRACKETS = """
    ALL AND ANY ARRAY AS BETWEEN BY CASE CONFLICT DISTINCT ELSE EXCEPT EXISTS FILTER FROM GROUP HAVING IN INSERT
    INTERSECT IS JOIN KEY LATERAL LIKE LIMIT MATERIALIZED NOT OFFSET ON OR OVER RECURSIVE RETURNING ROW SELECT SET
    SOME THEN UNION UPDATE USING VALUE VALUES WHEN WHERE WITHIN

    BIGINT BINARY BIT BLOB CHAR CHARACTER DATE DATETIME DECIMAL DOUBLE FLOAT INT INTEGER INTERVAL NUMERIC REAL SIGNED
    SMALLINT TEXT TIME TIMESTAMP TIMESTAMPTZ TIMETZ UNSIGNED VARBINARY VARBIT VARCHAR VARYING

    ABS ACOS ADDTIME AGE AKEYS ANY_VALUE ASCII ASIN ATAN ATAN2 AVALS AVG BITXOR BIT_AND BIT_LENGTH BIT_OR BIT_XOR
    BOOL_AND BOOL_OR BTRIM CARDINALITY CAST CBRT CEIL CEILING CHANGES CHARACTER_LENGTH CHARINDEX CHAR_LENGTH CHR
    CLOCK_TIMESTAMP COALESCE COLLATE CONCAT CONCAT_WS CONVERT CONVERT_TZ CORR COS COT COUNT COVAR_POP COVAR_SAMP CRC32
    CONNECTION_ID CUME_DIST CURDATE CURRENT_DATABASE CURRENT_DATE CURRENT_SETTING CURRENT_TIME CURRENT_USER DATABASE
    CURRENT_TIMESTAMP CURTIME DATEDIFF DATE_ADD DATE_BIN DATE_FORMAT
    DATE_PART DATE_SUB DATE_TRUNC DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR DECODE DEGREES DENSE_RANK DIGEST DIV
    ENCODE EVERY EXP EXTRACT FIELD FIND_IN_SET FIRST_VALUE FLOOR FORMAT FROM_UNIXTIME GENERATE_SERIES
    GENERATE_SUBSCRIPTS GEN_RANDOM_UUID GLOB GREATEST GROUPING GROUP_CONCAT HEX HOST HOUR IF IFNULL IIF INITCAP INSTR
    ISEMPTY ISFINITE ISNULL ISODOW JULIANDAY JUSTIFY_INTERVAL LAG LAST_DAY LAST_VALUE LCASE LEAD LEAST LEFT LENGTH LN
    LOCALTIME LOCALTIMESTAMP LOCATE LOG LOG10 LOG2 LOWER LOWER_INC LOWER_INF LPAD LTRIM MAKE_DATE MAKE_INTERVAL
    MAKE_TIME MAKE_TIMESTAMP MAKE_TIMESTAMPTZ MATCH MAX MD5 MICROSECOND MID MIN MINUTE MOD MODE MONTH MONTHNAME NOW
    NTH_VALUE NTILE NULLIF NUM_NONNULLS NUM_NULLS OCTET_LENGTH ORD OVERLAY PERCENTILE_CONT PERCENTILE_DISC
    PERCENT_RANK PG_NOTIFY PHRASETO_TSQUERY PI PLAINTO_TSQUERY POSITION POW POWER PRINTF QUARTER QUERYTREE QUOTE
    RADIANS RAND RANDOM RANGE_AGG RANK REGEXP REGEXP_COUNT REGEXP_INSTR REGEXP_LIKE REGEXP_MATCH REGEXP_MATCHES
    REGEXP_REPLACE REGEXP_SUBSTR REGR_AVGX REGR_AVGY REGR_COUNT REGR_INTERCEPT REGR_R2 REGR_SLOPE REGR_SXX REGR_SXY
    REGR_SYY REPEAT REPLACE REVERSE RIGHT ROUND ROW_NUMBER ROW_TO_JSON RPAD RTRIM SECOND SEC_TO_TIME SETWEIGHT SHA1
    SHA2 SHA224 SHA256 SHA384 SHA512 SIGN SIMILARITY SIN SPLIT_PART SQRT STARTS_WITH STATEMENT_TIMESTAMP STDDEV
    STDDEV_POP STDDEV_SAMP STRCMP STRFTIME STRICT_WORD_SIMILARITY STRING_AGG STRING_TO_ARRAY STRPOS STR_TO_DATE
    ST_POLYGON SUBSTR SUBSTRING SUBSTRING_INDEX SUBTIME SUM SYSDATE TAN TIMEDIFF TIMESTAMPADD TIMESTAMPDIFF
    TIME_FORMAT TIME_TO_SEC TOTAL TO_CHAR TO_DATE TO_DAYS TO_JSON TO_JSONB TO_NUMBER TO_SECONDS TO_TIMESTAMP
    TO_TSQUERY TO_TSVECTOR TRANSACTION_TIMESTAMP TRANSLATE TRIM TRUNC TRUNCATE TS_HEADLINE TS_RANK TS_RANK_CD TYPEOF
    UCASE UNACCENT UNHEX UNICODE UNISTR UNIXEPOCH UNIX_TIMESTAMP UNNEST UPPER UPPER_INC UPPER_INF UTC_DATE UTC_TIME
    UTC_TIMESTAMP UUID VARIANCE VAR_POP VAR_SAMP VERSION WEBSEARCH_TO_TSQUERY WEEK WEEKDAY WEEKOFYEAR WIDTH_BUCKET
    WORD_SIMILARITY YEAR YEARWEEK
"""
BEFORE_BRACKETS = frozenset(_BEFORE_BRACKETS.split())
FAMILIES = ("ARRAY_", "JSON_", "JSONB_", "DJANGO_DATE", "DJANGO_TIME", "DJANGO_FORMAT_DTDELTA")
LONGEST_KEPT = 4000

_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`""")
_INSERTED_INTO = re.compile(r"\b(INSERT|IGNORE)\s+INTO\s+[\w.$¤]+", re.IGNORECASE)
_INTO = re.compile(r"\bINTO\b", re.IGNORECASE)
# `name(column) AS (SELECT`: a query of a WITH, where a function could have no SELECT.
_NAMED_QUERY = re.compile(
    r"[\w$¤]+\s*\([\w\s,$¤]*\)(?=\s+AS\s+(?:(?:NOT\s+)?MATERIALIZED\s+)?\(\s*(?:SELECT|WITH)\b)", re.IGNORECASE
)
_INDEX_HINT = re.compile(r"\b(?:FORCE|USE|IGNORE)\s+INDEX\s*\([^()]*\)", re.IGNORECASE)
_CALL = re.compile(r"(\.\s*)?([\w$¤\]]+)\s*\(")
# What is not looked into: comments (MySQL has some that are run), several statements, backslashes and other ways to quote, and
# assignments to variables.
_OPAQUE = re.compile(r"--|/\*|;|'|\$\$|\$\w+\$|:=")


def leaves_nothing(sql: Any, vendor: str) -> bool:
    """Say whether a statement is sure to leave nothing in the session; what only looks as if it might counts as if it did.

    What the schema itself runs at a statement, such as a trigger or a view's function, is not seen.
    """
    if not isinstance(sql, str):
        return False
    # Each savepoint has a name of its own, and would only put others out of the cache.
    is_kept = len(sql) <= LONGEST_KEPT and "SAVEPOINT" not in sql
    return _known(sql, vendor) if is_kept else _leaves_nothing(sql, vendor)


def _leaves_nothing(sql: str, vendor: str) -> bool:
    text = sql.strip().removesuffix(";").replace(r"ESCAPE '\'", "")
    if "\\" in text:
        return False
    text = _QUOTED.sub(lambda found: "" if found[0][0] == "'" else "¤", text)
    words = text.lstrip("( ").split(None, 1)
    if not words or _OPAQUE.search(text) or (vendor == "mysql" and "#" in text):
        return False
    first = words[0].partition("(")[0].upper()
    if vendor == "postgresql" and text.upper().startswith("SET LOCAL "):
        return not _CALL.search(text)
    if first in ENDS_AND_BEGINNINGS:
        return vendor == "sqlite" or text.upper().startswith("ROLLBACK TO")
    text = _INDEX_HINT.sub("", _NAMED_QUERY.sub("", _INSERTED_INTO.sub("INSERT ", text)))
    if first not in FIRST_WORDS or _INTO.search(text):
        return False
    return all(_is_known(dot, word.upper()) for dot, word in _CALL.findall(text))


_known = lru_cache(maxsize=1024)(_leaves_nothing)


def _is_known(dot: str, word: str) -> bool:
    return not dot and (word in BEFORE_BRACKETS or word.startswith(FAMILIES))
