"""Handlers that do what no handler should: ignore their end, raise what is no error, leave a mess behind."""

import asyncio
import builtins
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from django.db import connection

from django_jobs import job

from .models import Effect, leave_effect


@job("effects.loop", takes_context=True)
def loop(context: Any, payload: dict[str, Any]) -> None:
    """Compute for `seconds`, and go on after each exception that the first half second brings."""
    leave_effect(context.job_id, context.fence, "start")
    end = time.monotonic() + payload["seconds"]
    while time.monotonic() < end:
        sum(range(1000))


@job("effects.stubborn_subprocess", takes_context=True, isolation="process")
def stubborn_subprocess(context: Any, payload: dict[str, Any]) -> None:
    """Ignore SIGTERM, start a child that does the same, and wait for it."""
    leave_effect(context.job_id, context.fence, "start")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({payload['seconds']})"], check=False)
    leave_effect(context.job_id, context.fence, "late")


@job("effects.raise_anything", takes_context=True)
def raise_anything(context: Any, payload: dict[str, Any]) -> None:
    """Raise the builtin exception with the payload's `name`."""
    leave_effect(context.job_id, context.fence, "start")
    raise getattr(builtins, payload["name"])("as it was told")


@job("effects.break_loop", takes_context=True)
async def break_loop(context: Any, payload: dict[str, Any]) -> None:
    """End the event loop underneath, as a callback that raises SystemExit does."""
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(60)


@job("effects.leave_mess", takes_context=True)
def leave_mess(context: Any, payload: dict[str, Any]) -> None:
    """Return normally, having done one `mess` to the connection or the process."""
    leave_effect(context.job_id, context.fence, "start")
    globals()[f"_{payload['mess']}"]()


def _open_transaction() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    Effect.objects.create(job_id="nobody", fence=0, kind="uncommitted", at="2000-01-01T00:00:00Z")


def _closed_connection() -> None:
    connection.close()


def _session_state() -> None:
    statements = {
        "postgresql": "SET statement_timeout = 1",
        "mysql": "SET SESSION TRANSACTION READ ONLY",
        "sqlite": "PRAGMA query_only = 1",
    }
    with connection.cursor() as cursor:
        cursor.execute(statements[connection.vendor])


def _directory() -> None:
    os.chdir(tempfile.gettempdir())


@job("effects.see_order", takes_context=True)
def see_order(context: Any, payload: dict[str, Any]) -> None:
    """Raise an error when something of a mess is to be seen."""
    leave_effect(context.job_id, context.fence, "start")
    if connection.in_atomic_block or Effect.objects.filter(job_id="nobody").exists():
        raise AssertionError("another handler's transaction is open")
    if os.path.samefile(os.getcwd(), tempfile.gettempdir()):
        raise AssertionError("another handler's directory is ours")


@job("effects.pool")
def pool(payload: dict[str, Any]) -> dict[str, Any]:
    """Give up on a process of a pool, as plain Python does; return the seconds that took and the children's signal handlers."""
    started = time.monotonic()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as workers:
        handlers = workers.apply(_signal_handlers)
        try:
            workers.apply_async(time.sleep, (60,)).get(timeout=0.5)
        except multiprocessing.TimeoutError:
            pass
    return {"seconds": time.monotonic() - started, "handlers": handlers}


def _signal_handlers() -> list[str]:
    return [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]


@job("effects.forks_and_queries")
def forks_and_queries(payload: dict[str, Any]) -> int:
    """Let a forked child use the database, or just leave its session, and go on with our own."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    child = multiprocessing.get_context("fork").Process(target=_count_effects, args=(payload["queries"],))
    child.start()
    child.join(60)
    if child.exitcode:
        raise RuntimeError(f"the child ended with {child.exitcode}")
    return Effect.objects.count()


def _count_effects(queries: bool) -> None:
    if queries:
        Effect.objects.count()
    connection.close()


@job("effects.slow_query")
def slow_query(payload: dict[str, Any]) -> None:
    """Wait in the database, on the connection that the thread keeps, again and again until it is interrupted."""
    statement = {"postgresql": "SELECT pg_sleep(%s)", "mysql": "SELECT SLEEP(%s)"}[connection.vendor]
    with connection.cursor() as cursor:
        while True:
            cursor.execute(statement, [payload["seconds"]])


@job("effects.sum_of_rows")
def sum_of_rows(payload: dict[str, Any]) -> int:
    """Return what a query gives that has many rows, so that an answer that belongs to another query is seen."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 39")
        return sum(row[0] for row in cursor.fetchall())
