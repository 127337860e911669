"""Tasks for the tests of the `django.tasks` backend, found by every worker process of the tests."""

import asyncio
import os
import signal
from typing import Any

from asgiref.sync import sync_to_async

from django_jobs import Fail
from django_jobs.backends import task

from .models import leave_effect


@task
def add(one: int, two: int = 0) -> int:
    """Return the sum."""
    return one + two


@task(takes_context=True)
def describe(context: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return what the context says."""
    result = context.task_result
    return {
        "id": result.id,
        "attempt": context.attempt,
        "status": str(result.status),
        "backend": result.backend,
        "args": args,
        "kwargs": kwargs,
        "enqueued": result.enqueued_at is not None,
        "path": result.task.module_path,
        "job": context.job.job_id,
    }


@task(takes_context=True)
def leave(context: Any, kind: str) -> None:
    """Leave an effect."""
    leave_effect(context.task_result.id, context.job.fence, kind)


@task(takes_context=True, queue_name="other")
async def describe_async(context: Any, text: str) -> list[Any]:
    """Return the text and the attempt, after giving way once."""
    await asyncio.sleep(0)
    return [text, context.attempt]


@task(takes_context=True)
async def leave_async(context: Any) -> None:
    """Leave an effect, as a coroutine does: in a thread."""
    await sync_to_async(leave_effect)(context.task_result.id, context.job.fence, "async")


@task(max_retries=0)
def fail(message: str) -> None:
    """Raise a ValueError."""
    raise ValueError(message)


@task(max_retries=0)
async def fail_async() -> None:
    """Raise a KeyError, as a coroutine."""
    raise KeyError("async")


@task(takes_context=True, max_retries=3, base_delay=0.001, max_delay=0.01)
def fail_twice(context: Any) -> int:
    """Raise two times, then return the attempt."""
    if context.attempt < 3:
        raise LookupError(f"attempt {context.attempt}")
    return int(context.attempt)


@task(max_retries=5, fail_on=ArithmeticError)
def divide(one: int, two: int) -> float:
    """Return the quotient; there is no use in trying again."""
    return one / two


@task(max_retries=5)
def give_up() -> None:
    """End the job at once."""
    raise Fail("it is of no use")


@task(max_retries=5)
def return_what_is_no_json() -> object:
    """Return a set."""
    return {1, 2}


@task
def return_what_becomes_json() -> object:
    """Return bytes and a tuple."""
    return {"bytes": b"text", "tuple": (1, (2, 3))}


@task(takes_context=True, atomic=True, max_retries=0)
def leave_atomically(context: Any, fails: bool) -> None:
    """Leave an effect in the job's own transaction, which is rolled back when it fails."""
    leave_effect(context.task_result.id, context.job.fence, "atomic")
    if fails:
        raise ValueError("roll back")


@task(takes_context=True)
def sum_up(context: Any) -> int:
    """Return the sum of what the tasks and jobs returned that this one depends on."""
    return sum(int(dependency.result) for dependency in context.job.dependencies())


@task(takes_context=True, isolation="process")
def isolated(context: Any) -> list[int]:
    """Return the process it ran in."""
    return [os.getpid(), context.attempt]


@task(takes_context=True, isolation="process")
async def isolated_async(context: Any) -> int:
    """Return the process it ran in, as a coroutine."""
    await asyncio.sleep(0)
    return os.getpid()


@task(takes_context=True)
def kill_worker_once(context: Any) -> int:
    """SIGKILL the worker process at the first attempt; return the second."""
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(context.attempt)
