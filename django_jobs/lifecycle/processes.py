"""The lease of a worker process: register, beat, leave. One statement a beat, whatever the process runs."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F

from django_jobs.conf import get_settings
from django_jobs.models import Job, JobStatus, Queue, WorkerProcess

from .notify import tell_process
from .sql import dialect
from .transactions import DbNow, jobs_alias, retry_transient, run_transaction

MAX_HOST = 80
HELD = ("pk", "fence", "cancel_requested_at")


def new_process_id() -> str:
    """Return a name that no process had before: host, process number and a random part."""
    return f"{socket.gethostname()[:MAX_HOST]}:{os.getpid()}:{secrets.token_hex(4)}"


def register(process_id: str, *, queues: Sequence[str], threads: int, alias: str | None = None) -> None:
    """Write the row of a new worker process with its first lease; again, when the answer to the first time was lost."""
    using = alias or jobs_alias()

    def move() -> None:
        WorkerProcess.objects.using(using).filter(pk=process_id).delete()
        WorkerProcess.objects.using(using).create(
            id=process_id,
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            queues=list(queues),
            threads=threads,
            started_at=DbNow(),
            heartbeat_at=DbNow(),
            lease_expires_at=DbNow() + timedelta(seconds=get_settings().LEASE_SECONDS),
        )

    run_transaction(move, using)


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    acknowledged: bool
    asked_to_stop: bool = False


def beat(process_id: str, alias: str | None = None) -> Beat:
    """Renew the lease of a process; the answer is unacknowledged when it was declared dead.

    A lease that ran out is renewed as long as nobody declared the process dead: a jump of the database's clock kills nobody.
    """
    using = alias or jobs_alias()
    mine = WorkerProcess.objects.using(using).filter(pk=process_id, lease_expires_at__isnull=False)
    renewed = retry_transient(
        lambda: mine.update(
            beat=F("beat") + 1,
            heartbeat_at=DbNow(),
            lease_expires_at=DbNow() + timedelta(seconds=get_settings().LEASE_SECONDS),
        )
    )
    return Beat(acknowledged=bool(renewed))


def ask_to_stop(process_id: str, alias: str | None = None) -> bool:
    """Ask a process to finish what it runs and leave; return False when it is gone."""
    using = alias or jobs_alias()
    rows = WorkerProcess.objects.using(using).filter(pk=process_id)
    asked = retry_transient(lambda: rows.update(stopping_at=DbNow()))
    if asked:
        tell_process(process_id, using)
    return bool(asked)


def leave(process_id: str, alias: str | None = None) -> bool:
    """Delete the row of a process that holds no job; return False when it still does."""
    using = alias or jobs_alias()

    def move() -> bool:
        if Job.objects.using(using).filter(worker_id=process_id, status=JobStatus.RUNNING).exists():
            return False
        WorkerProcess.objects.using(using).filter(pk=process_id).delete()
        return True

    return run_transaction(move, using)


def is_registered(process_id: str, alias: str | None = None) -> bool:
    """Say whether a process has a row and was not declared dead."""
    rows = WorkerProcess.objects.using(alias or jobs_alias())
    return rows.filter(pk=process_id, lease_expires_at__isnull=False).exists()


class Held(NamedTuple):
    """A running job, as its row names the process that holds it."""

    id: str
    fence: int
    asked_to_stop: bool


def held_by(process_id: str, alias: str | None = None) -> list[Held]:
    """Return the running jobs that name a process."""
    running = Job.objects.using(alias or jobs_alias()).filter(worker_id=process_id, status=JobStatus.RUNNING)
    return [Held(pk, fence, asked is not None) for pk, fence, asked in running.values_list(*HELD)]


def limit_silence(alias: str | None = None) -> None:
    """Let the connections that this process opens from now on give up a silent server before the lease is over.

    What the site says in its OPTIONS stays.
    """
    using = alias or jobs_alias()
    settings = connections.settings[using]  # one for the connections of all threads
    defaults = dialect(connections[using]).silence_options(get_settings().LEASE_SECONDS)
    settings["OPTIONS"] = {**defaults, **(settings.get("OPTIONS") or {})}
    discard_connection(using)


def prepare_connection(process_id: str, alias: str | None = None) -> None:
    """Set up this thread's connection for a worker, and mark it as the process's so that a rescuer can end it."""
    using = alias or jobs_alias()
    connection = connections[using]
    connection.ensure_connection()
    dialect(connection).prepare_worker(connection, get_settings().LEASE_SECONDS)
    session = dialect(connection).name_session(connection, process_id)
    if session is not None:
        retry_transient(lambda: _record_session(process_id, session, using))


def _record_session(process_id: str, session: int, using: str) -> None:
    def move() -> None:
        row = WorkerProcess.objects.using(using).select_for_update().filter(pk=process_id).first()
        if row is not None and session not in row.sessions:
            WorkerProcess.objects.using(using).filter(pk=process_id).update(sessions=[*row.sessions[-200:], session])

    run_transaction(move, using)


def pause(queue: str, alias: str | None = None) -> None:
    """Stop claims from a queue until it is resumed; what runs goes on."""
    using = alias or jobs_alias()

    def move() -> None:
        Queue.objects.using(using).get_or_create(name=queue)
        Queue.objects.using(using).filter(name=queue, paused_at__isnull=True).update(paused_at=DbNow())

    run_transaction(move, using)


def resume(queue: str, alias: str | None = None) -> None:
    """Let workers claim from a queue again."""
    using = alias or jobs_alias()
    run_transaction(lambda: Queue.objects.using(using).filter(name=queue).update(paused_at=None), using)


_READY_QUEUES = """
WITH RECURSIVE found(queue) AS (
    SELECT MIN(queue) FROM django_jobs_job WHERE status = 'pending' AND pending_dependencies = 0
    UNION ALL
    SELECT (SELECT MIN(job.queue) FROM django_jobs_job AS job
            WHERE job.status = 'pending' AND job.pending_dependencies = 0 AND job.queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL)
SELECT queue FROM found WHERE queue IS NOT NULL"""


def queues_with_work(alias: str | None = None) -> list[str]:
    """Return the queues that have a ready job, by hops along the index: its cost is the number of queues, not of jobs."""
    connection = connections[alias or jobs_alias()]
    with connection.cursor() as cursor:
        cursor.execute(_READY_QUEUES)
        return [row[0] for row in cursor.fetchall()]


def known_queues(alias: str | None = None) -> set[str]:
    """Return every queue that a row or a job names."""
    using = alias or jobs_alias()
    rows = Queue.objects.using(using).values_list("name", flat=True)
    named = Job.objects.using(using).order_by().values_list("queue", flat=True).distinct()
    return {*rows, *named}


def paused_queues(alias: str | None = None) -> set[str]:
    """Return the queues that are paused."""
    paused = Queue.objects.using(alias or jobs_alias()).filter(paused_at__isnull=False)
    return set(paused.values_list("name", flat=True))


def check_connection(alias: str | None = None) -> BaseDatabaseWrapper:
    """Return this thread's connection, closed when it was broken or stuck in a transaction that a handler left."""
    connection = connections[alias or jobs_alias()]
    if connection.connection is not None and is_stuck(connection):
        discard_connection(alias)
    return connection


def is_stuck(connection: BaseDatabaseWrapper) -> bool:
    """Say whether a connection is broken, or in a transaction that a handler left; asks no server."""
    if connection.in_atomic_block or connection.errors_occurred or connection.needs_rollback:
        return True
    raw = connection.connection
    if connection.vendor == "postgresql":
        return bool(raw.pgconn.transaction_status)  # 0: idle; a closed one has no status
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    return not connection.get_autocommit()


def discard_connection(alias: str | None = None) -> None:
    """Throw this thread's connection away, with whatever a handler left in it, so that the next use makes a new one."""
    connection = connections[alias or jobs_alias()]
    connection.in_atomic_block = False
    connection.atomic_blocks = []
    connection.savepoint_ids = []
    connection.run_on_commit = []
    connection.needs_rollback = False
    connection.closed_in_transaction = False
    with suppress(Error):  # a driver may refuse to close what a handler closed underneath; it is forgotten all the same
        connection.close()
