"""The jobs' database: which alias it is, this thread's connection to it, and when that connection is of no more use.

The alias is context and travels through no parameter: `jobs_alias()` answers with what `use_database()` chose, else with the
routers' answer. Managers, dialects and transactions ask it. Only a submit may choose another one, by the caller's word or by the
caller's open transaction (`database_of_submit`), and only among the site's DATABASES.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from django.apps import apps
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.text import shown

_AS_IT_IS = nullcontext()
_chosen: ContextVar[str | None] = ContextVar("django_jobs_database", default=None)
# Connections that the threads of a worker process share, one at a time, with the name of the process.
shared: WeakKeyDictionary[BaseDatabaseWrapper, str] = WeakKeyDictionary()
MOST_SHARED = 4  # that a process keeps of them


@cache
def _job_model() -> type[Model]:
    return apps.get_model("django_jobs", "Job", require_ready=False)  # a JobQueue may be made where models are defined


def jobs_alias() -> str:
    """Return the alias of the jobs' database: as chosen by `use_database`, else as the site's routers say."""
    return _chosen.get() or router.db_for_write(_job_model())  # and not by a further call: each statement asks


def usual_alias() -> str:
    """Return the alias of the jobs' database as the site's routers say, whatever is chosen."""
    return router.db_for_write(_job_model())


def jobs_connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to the jobs' database."""
    return connections[jobs_alias()]


@contextmanager
def use_database(alias: str | None) -> Iterator[None]:
    """Work on the jobs of another database alias (None: the routers' own) until the block ends."""
    token = _chosen.set(alias)
    try:
        yield
    finally:
        _chosen.reset(token)


def on_database(alias: str | None) -> AbstractContextManager[None]:
    """Work on a database alias until the block ends; None leaves the choice as it is."""
    return nullcontext() if alias is None else use_database(alias)


def databases_to_read() -> tuple[str | None, ...]:
    """Return the aliases of a look at everything: the chosen one, else the site's DATABASES; None stands for the one in use."""
    return (None,) if _chosen.get() is not None else get_settings().DATABASES or (None,)


def work_on(alias: str | None) -> None:
    """Work on the jobs of a database alias (None: the routers' own) for as long as this thread lives."""
    _chosen.set(alias)


@contextmanager
def database_of(row: Model) -> Iterator[None]:
    """Work on the database that a row is written to until the block ends; it may have been read from a replica of that."""
    own = row._state.db
    is_written_there = own == _chosen.get() or own in (get_settings().DATABASES or ())
    with use_database(own if is_written_there else router.db_for_write(type(row), instance=row)):
        yield


def jobs_databases() -> tuple[str, ...]:
    """Return the aliases that may hold jobs: the site's DATABASES, else that of this context."""
    return get_settings().DATABASES or (jobs_alias(),)


def database_of_submit(using: Any = None) -> AbstractContextManager[None]:
    """Work on the database that a submit writes to until the block ends.

    That is `using`; without it the one on which the caller has a transaction open, if it is one of the site's DATABASES; else
    that of the context, such as the job's whose handler runs. Raises InvalidJob for a `using` that holds no jobs.
    """
    if using is None:
        databases = get_settings().DATABASES
        return _AS_IT_IS if databases is None else use_database(_of_open_transaction(databases))
    check_holds_jobs(using)
    return use_database(using)


def check_holds_jobs(database: Any) -> None:
    """Raise InvalidJob for what is no alias of a database that may hold jobs."""
    if database not in jobs_databases():
        raise InvalidJob(f"using={shown(database)}: give an alias that holds jobs ({', '.join(jobs_databases())})")


def _of_open_transaction(databases: tuple[str, ...]) -> str:
    begun = {one.alias for one in connections.all(initialized_only=True) if is_in_real_transaction(one)}
    if not begun.intersection(databases):
        return jobs_alias()
    return next(alias for alias in (usual_alias(), *databases) if alias in begun and alias in databases)


def in_transaction() -> bool:
    """Say whether this thread has a transaction open on the jobs' database."""
    return jobs_connection().in_atomic_block


def open_blocks() -> int:
    """Return how many atomic blocks this thread has open on the jobs' database; one for a transaction without a block."""
    connection = jobs_connection()
    return len(connection.atomic_blocks) or int(connection.connection is not None and not connection.autocommit)


def in_real_transaction() -> bool:
    """Say whether a transaction is open that others cannot see into; the blocks around a Django `TestCase` do not count."""
    return is_in_real_transaction(jobs_connection())


def is_in_real_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Say the same of one connection."""
    if connection.in_atomic_block:
        return not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)
    return not connection.get_autocommit()


def usable_connection() -> BaseDatabaseWrapper:
    """Return this thread's connection, closed first when it was broken or stuck in a transaction that a handler left."""
    connection = jobs_connection()
    if connection.connection is not None and is_stuck(connection):
        discard_connection()
    return connection


def is_stuck(connection: BaseDatabaseWrapper) -> bool:
    """Say whether a connection is broken, or in a transaction that a handler left; asks no server."""
    if connection.in_atomic_block or connection.errors_occurred or connection.needs_rollback:
        return True
    if connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
        return True
    raw = connection.connection
    if connection.vendor == "postgresql":
        return bool(raw.pgconn.transaction_status)  # 0: idle; a closed one has no status
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    return not connection.get_autocommit()


def is_cut(connection: BaseDatabaseWrapper) -> bool:
    """Say whether the server has ended a session in which nothing is on its way; asks the system and no server.

    Whatever has come of itself, such as a notice, counts as its end: a new session is cheap, and a broken one fails a job.
    """
    raw: Any = connection.connection
    if raw is None or connection.vendor == "sqlite":
        return False
    try:
        with connection.wrap_database_errors:
            poll = select.poll()
            poll.register(raw.fileno(), select.POLLIN)
            return bool(poll.poll(0))
    except (Error, OSError, ValueError):  # it is closed
        return True


IN_ERROR = 3  # libpq's PQTRANS_INERROR


def refuses_all(connection: BaseDatabaseWrapper) -> bool:
    """Say whether a database error has left the open transaction refusing every further statement; asks no server."""
    in_error = connection.vendor == "postgresql" and connection.connection.info.transaction_status == IN_ERROR
    return bool(in_error or connection.needs_rollback)


def discard_connection() -> None:
    """Throw this thread's connection away, with whatever a handler left in it, so that the next use makes a new one."""
    discard(jobs_connection())


def discard(connection: BaseDatabaseWrapper) -> None:
    """Throw a connection away, whatever it is in the middle of; a pool gets it back closed, and makes a new one."""
    connection.in_atomic_block = False
    connection.atomic_blocks = []
    connection.savepoint_ids = []
    connection.run_on_commit = []
    connection.needs_rollback = False
    connection.closed_in_transaction = False
    with suppress(Error):  # a driver may refuse to close what a handler closed underneath; it is forgotten all the same
        if connection.connection is not None and connection.vendor == "postgresql":
            connection.connection.close()
        connection.close()


def discard_all() -> None:
    """Throw away all connections of this thread, so that a pool has none of our sessions to give to others."""
    for connection in connections.all(initialized_only=True):
        discard(connection)


def is_pooled(connection: BaseDatabaseWrapper) -> bool:
    """Say whether a connection goes back to a pool when it is closed."""
    return bool((connection.settings_dict.get("OPTIONS") or {}).get("pool"))


def discard_pooled() -> None:
    """Throw this thread's connection away if it would go back to a pool."""
    if is_pooled(jobs_connection()):
        discard_connection()


def add_default_options(options: dict[str, Any]) -> None:
    """Give the connections that this process opens from now on options of the driver; what the site's OPTIONS say stays."""
    settings = connections.settings[jobs_alias()]  # one for the connections of all threads
    settings["OPTIONS"] = {**options, **(settings.get("OPTIONS") or {})}
    discard_connection()
