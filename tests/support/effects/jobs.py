"""Handlers that write an `Effect` row when they start, and then do well or badly in one particular way.

Each takes what it needs from the payload, so that one job type serves many tests. The effect's kind is the payload's
`kind`, or `start`.
"""

import asyncio
import logging
import os
import signal
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import transaction

from django_jobs import Fail, Retry, Snooze, job
from django_jobs.models import JobLog

from . import hostile, limited, workflows  # noqa: F401  their handlers are jobs of this app, too
from .models import Effect, leave_effect

logger = logging.getLogger("tests.effects")


def _leave(context: Any, payload: dict[str, Any]) -> None:
    leave_effect(context.job_id, context.fence, payload.get("kind", "start"))


@job("effects.record", takes_context=True)
def record(context: Any, payload: dict[str, Any]) -> Any:
    """Return the payload's `result`."""
    _leave(context, payload)
    return payload.get("result")


@job("effects.record_atomic", takes_context=True, atomic=True)
def record_atomic(context: Any, payload: dict[str, Any]) -> Any:
    """Take `seconds`, then return `result`; effect and completion are one transaction."""
    _leave(context, payload)
    time.sleep(payload.get("seconds", 0))
    return payload.get("result")


@job("effects.record_bulk", takes_context=True, bulk=50)
def record_bulk(contexts: list[Any]) -> None:
    """Die with the whole process where a payload says `kill`."""
    for context in contexts:
        _leave(context, context.payload)
    if any(context.payload.get("kill") for context in contexts):
        os.kill(os.getpid(), signal.SIGKILL)


@job("effects.record_here", takes_context=True, atomic=True)
def record_here(context: Any, payload: dict[str, Any]) -> str:
    """Return the alias of the job's database, in which the effect is; effect and completion are one transaction."""
    assert transaction.get_connection(context.database).in_atomic_block
    leave_effect(context.job_id, context.fence, payload.get("kind", "start"), database=context.database)
    database: str = context.database
    return database


@job("effects.go_to", isolation="process")
def go_to(to):
    """Change the directory and return the one before."""
    before = os.getcwd()
    os.chdir(to)
    return before


@job("effects.where", takes_context=True, isolation="process")
def where(context: Any, payload: dict[str, Any]) -> str:
    """Submit another job, in a child, and return the alias of its database."""
    return str(record.submit(payload)._state.db)


@job("effects.greet", takes_context=True, isolation="process")
def greet(context: Any, name: str, greeting: str = "Good day") -> str:
    """Return a greeting, in a child."""
    return f"{greeting}, {name}"


@job("effects.log", takes_context=True)
def log(context: Any, payload: dict[str, Any]) -> None:
    """Log so many `lines`."""
    _leave(context, payload)
    for number in range(payload["lines"]):
        logger.info("line %d of %s", number, context.job_id)


@job("effects.log_lines_of")
def log_lines_of(path: str) -> None:
    """Log each line of a file that somebody writes meanwhile, up to one that says `end`."""
    deadline = time.monotonic() + 120
    with open(path) as lines:
        while time.monotonic() < deadline:
            if line := lines.readline().strip():
                logger.info(line)
                if line == "end":
                    return
            else:
                time.sleep(0.02)
    raise TimeoutError("nobody wrote the end")


@job("effects.log_isolated", takes_context=True, isolation="process", log_level="INFO")
def log_isolated(context: Any, payload: dict[str, Any]) -> None:
    """Log, in a child; with `ends` "killed" kill that once the log is on record."""
    _leave(context, payload)
    logger.info("begins")
    if payload["ends"] == "killed":
        text, runs = "", context.fence // 2 + 1
        while text.count("begins") < runs:
            time.sleep(0.05)
            text = "".join(JobLog.objects.filter(job_id=context.job_id).values_list("text", flat=True))
        os.kill(os.getpid(), signal.SIGKILL)
    logger.info("ends well")


@job("effects.sleep_async", takes_context=True)
async def sleep_async(context: Any, payload: dict[str, Any]) -> None:
    """Sleep for `seconds` on the event loop."""
    await sync_to_async(_leave)(context, payload)
    await asyncio.sleep(payload["seconds"])


@job("effects.record_async", takes_context=True)
async def record_async(context: Any, payload: dict[str, Any]) -> Any:
    """Return `result`, as a coroutine."""
    await sync_to_async(_leave)(context, payload)
    return payload.get("result")


@job("effects.sleep", takes_context=True)
def sleep(context: Any, payload: dict[str, Any]) -> None:
    """Take `seconds`."""
    _leave(context, payload)
    time.sleep(payload["seconds"])


_running: set[str] = set()


@job("effects.together", takes_context=True)
def together(context: Any, payload: dict[str, Any]) -> int:
    """Take `seconds`, and return how many of its kind ran at once in this process when it began."""
    _running.add(context.job_id)
    at_once = len(_running)
    time.sleep(payload["seconds"])
    _running.discard(context.job_id)
    return at_once


@job("effects.sleep_politely", takes_context=True)
def sleep_politely(context: Any, payload: dict[str, Any]) -> None:
    """Take `seconds`, and look every 20 ms whether the job was cancelled."""
    _leave(context, payload)
    end = time.monotonic() + payload["seconds"]
    while time.monotonic() < end:
        context.check_cancelled()
        time.sleep(0.02)


@job("effects.fail", takes_context=True)
def fail(context: Any, payload: dict[str, Any]) -> None:
    """Raise a ValueError with the payload's `message`."""
    _leave(context, payload)
    raise ValueError(payload.get("message", "as it was told"))


@job("effects.flaky", takes_context=True)
def flaky(context: Any, payload: dict[str, Any]) -> Any:
    """Raise a ValueError the first `failures` times, then return `result`."""
    _leave(context, payload)
    if Effect.objects.filter(job_id=context.job_id).count() <= payload["failures"]:
        raise ValueError("not yet")
    return payload.get("result")


@job("effects.steer", takes_context=True)
def steer(context: Any, payload: dict[str, Any]) -> Any:
    """The first time raise the payload's `retry` or `snooze` (seconds) or `fail` (why); after that return `result`."""
    _leave(context, payload)
    if Effect.objects.filter(job_id=context.job_id).count() == 1:
        if "retry" in payload:
            raise Retry(after=payload["retry"])
        if "snooze" in payload:
            raise Snooze(payload["snooze"])
        if "fail" in payload:
            raise Fail(payload["fail"])
    return payload.get("result")


@job("effects.kill_self", takes_context=True)
def kill_self(context: Any, payload: dict[str, Any]) -> None:
    """SIGKILL the process that runs it."""
    _leave(context, payload)
    os.kill(os.getpid(), signal.SIGKILL)


if "JOBS_TEST_LIMITS" in os.environ:  # for the workers of one test
    limited.declare()

if "JOBS_TEST_RATES" in os.environ:
    limited.declare_rated()
