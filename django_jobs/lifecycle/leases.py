"""The lease of a worker process: register, beat, ask it to stop, leave. One statement a beat, whatever the process runs."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from weakref import WeakSet

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models import F
from django.dispatch import receiver

from django_jobs.conf import get_settings, this_release, this_site
from django_jobs.db.connections import add_default_options, jobs_alias, jobs_connection, shared, use_database
from django_jobs.db.dialects import dialect, driver
from django_jobs.db.notify import notify_process
from django_jobs.db.transactions import retried, transactional
from django_jobs.models import Ending, WorkerProcess
from django_jobs.models.fields import DbNow

from .farewell import say_farewell

MAX_HOST = 80
LOCK_WAITS_OF_LOOP = 8  # in a lease: a beat that waits in vain is tried again while there is time
LOCK_WAITS_OF_WORKER = 4
LEAST_LOCK_WAIT = 5.0  # seconds, for handlers run in these sessions, too
# The shortest lease by which shared connections go: they wait for an answer for half of it, which is longer than for a lock.
LEAST_SILENCE = 4 * LEAST_LOCK_WAIT

_of_loops: WeakSet[BaseDatabaseWrapper] = WeakSet()  # connections of threads that run short statements only
_of_threads = threading.local()  # `worker`: the alias and the process of a worker thread's own connection


def new_process_id() -> str:
    """Return a name that no process had before: host, process number and a random part."""
    return f"{socket.gethostname()[:MAX_HOST]}:{os.getpid()}:{secrets.token_hex(4)}"


@transactional
def register(process_id: str, *, queues: Sequence[str], threads: int) -> None:
    """Write the row of a new worker process with its first lease; again, when the answer to the first time was lost."""
    WorkerProcess.objects.filter(pk=process_id).delete()
    WorkerProcess.objects.create(
        id=process_id,
        host=socket.gethostname()[:255],
        pid=os.getpid(),
        site=this_site(),
        release=this_release(),
        queues=list(queues),
        threads=threads,
        started_at=DbNow(),
        heartbeat_at=DbNow(),
        lease_expires_at=_lease_end(),
    )


class Vitals(NamedTuple):
    """What a process measures of itself for each beat.

    Args:
        silent_threads: how many of its worker threads neither run a job nor look for one.
        jobs_done: how many runs it has ended since it started.
        jobs_per_second: how many a second since the beat before.
        memory_mb: its resident memory (MB).
    """

    silent_threads: int = 0
    jobs_done: int = 0
    jobs_per_second: float = 0.0
    memory_mb: int | None = None


NO_VITALS = Vitals()


@retried
def beat(process_id: str, vitals: Vitals = NO_VITALS) -> bool:
    """Renew the lease of a process; return False when it was declared dead.

    A lease that ran out is renewed as long as nobody declared the process dead: a jump of the database's clock kills nobody.
    """
    mine = WorkerProcess.objects.registered().filter(pk=process_id)
    return bool(
        mine.update(beat=F("beat") + 1, heartbeat_at=DbNow(), lease_expires_at=_lease_end(), **vitals._asdict())
    )


def _lease_end() -> Any:
    return DbNow() + timedelta(seconds=get_settings().LEASE_SECONDS)


def ask_to_stop(process_id: str) -> bool:
    """Ask a process to finish what it runs and leave; return False when it is gone."""
    asked = _ask_to_stop(process_id)
    if asked:
        notify_process(process_id)
    return asked


@retried
def _ask_to_stop(process_id: str) -> bool:
    return bool(WorkerProcess.objects.filter(pk=process_id).update(stopping_at=DbNow()))


def leave(process_id: str, jobs_done: int = 0) -> bool:
    """Delete the row of a process that holds no job, and keep that it left; return False when it still holds one."""
    return say_farewell(process_id, Ending.LEFT, jobs_done=jobs_done)


def limit_silence() -> None:
    """Let the connections that this process opens from now on give up a silent server before the lease is over."""
    # Of this process only: the site's requests may be as patient as they like.
    add_default_options(driver().silence_options(get_settings().LEASE_SECONDS))


@contextmanager
def limited_silence() -> Iterator[None]:
    """Let a connection that this thread opens in the block give up a silent server, for a probe that is to say so."""
    connection, lease = jobs_connection(), get_settings().LEASE_SECONDS
    before = connection.settings_dict
    options = {**driver().silence_options(lease), **driver().loop_options(lease), **(before.get("OPTIONS") or {})}
    connection.settings_dict = {**before, "OPTIONS": options}
    try:
        yield
    finally:
        connection.settings_dict = before


def limit_waits_of_loop() -> None:
    """Let this thread's connection, which runs short statements only, wait neither for a silent server nor for locks for long."""
    connection = jobs_connection()
    given = connection.settings_dict.get("OPTIONS") or {}
    options = {**driver().loop_options(get_settings().LEASE_SECONDS), **given}
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
    _of_loops.add(connection)


@receiver(connection_created, dispatch_uid="django_jobs.lifecycle.leases")
def _set_up_session(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    if connection in _of_loops:
        with use_database(connection.alias):
            dialect().limit_lock_waits(get_settings().LEASE_SECONDS / LOCK_WAITS_OF_LOOP)
    elif (process_id := _process_of(connection)) is not None:
        with use_database(connection.alias):
            prepare_connection(process_id)


def _process_of(connection: BaseDatabaseWrapper) -> str | None:
    """Return the process whose sessions those of a connection of this thread are; a copy of one is its maker's."""
    if connection in shared:
        return shared[connection]
    alias, process_id = getattr(_of_threads, "worker", (None, None))
    return process_id if alias == connection.alias and connections[alias] is connection else None


def new_shared_connection(process_id: str) -> BaseDatabaseWrapper:
    """Return a connection, not opened yet, that the threads of a process share: for short statements of ours, no handler's."""
    connection: BaseDatabaseWrapper = connections.create_connection(jobs_alias())
    connection.inc_thread_sharing()
    given = connection.settings_dict.get("OPTIONS") or {}
    options = driver().loop_options(max(get_settings().LEASE_SECONDS, LEAST_SILENCE))
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": {**options, **given}}
    shared[connection] = process_id
    return connection


def prepare_when_opened(process_id: str) -> None:
    """Set up this thread's connection as `prepare_connection` does whenever one is opened, as long as the thread lives."""
    _of_threads.worker = jobs_alias(), process_id


def prepare_connection(process_id: str) -> None:
    """Set up this thread's connection for a worker, and mark it as the process's so that a rescuer can end it."""
    jobs_connection().ensure_connection()
    lease = get_settings().LEASE_SECONDS
    dialect().prepare_worker(lease)
    dialect().limit_lock_waits(max(LEAST_LOCK_WAIT, lease / LOCK_WAITS_OF_WORKER))
    dialect().name_session(process_id)
