"""The lease of a worker process: register, beat, ask it to stop, leave. One statement a beat, whatever the process runs."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db.models import F

from django_jobs.conf import get_settings
from django_jobs.db.connections import add_default_options, jobs_connection
from django_jobs.db.dialects import dialect
from django_jobs.db.notify import notify_process
from django_jobs.db.transactions import retried, transactional
from django_jobs.models import Job, WorkerProcess
from django_jobs.models.fields import DbNow

MAX_HOST = 80


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
        queues=list(queues),
        threads=threads,
        started_at=DbNow(),
        heartbeat_at=DbNow(),
        lease_expires_at=_lease_end(),
    )


@retried
def beat(process_id: str) -> bool:
    """Renew the lease of a process; return False when it was declared dead.

    A lease that ran out is renewed as long as nobody declared the process dead: a jump of the database's clock kills nobody.
    """
    mine = WorkerProcess.objects.registered().filter(pk=process_id)
    return bool(mine.update(beat=F("beat") + 1, heartbeat_at=DbNow(), lease_expires_at=_lease_end()))


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


@transactional
def leave(process_id: str) -> bool:
    """Delete the row of a process that holds no job; return False when it still does."""
    if Job.objects.held_by(process_id).exists():
        return False
    WorkerProcess.objects.filter(pk=process_id).delete()
    return True


def limit_silence() -> None:
    """Let the connections that this process opens from now on give up a silent server before the lease is over."""
    # Of this process only: the site's requests may be as patient as they like.
    add_default_options(dialect().silence_options(get_settings().LEASE_SECONDS))


def limit_silence_of_loop() -> None:
    """Let this thread's connection, which runs short statements only, give up a server that does not answer any more."""
    connection = jobs_connection()
    given = connection.settings_dict.get("OPTIONS") or {}
    options = {**dialect().loop_options(get_settings().LEASE_SECONDS), **given}
    connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}


def prepare_connection(process_id: str) -> None:
    """Set up this thread's connection for a worker, and mark it as the process's so that a rescuer can end it."""
    jobs_connection().ensure_connection()
    dialect().prepare_worker(get_settings().LEASE_SECONDS)
    dialect().name_session(process_id)
