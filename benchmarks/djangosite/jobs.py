"""The benchmark's jobs as django_jobs handlers."""

import logging
from typing import Any

from benchmarks import work
from benchmarks.djangosite import limited  # noqa: F401  it declares jobs
from django_jobs import job

logger = logging.getLogger("bench")


@job("bench.tick")
def tick(payload: dict[str, Any]) -> None:
    work.tick()


@job("bench.nap")
def nap(payload: dict[str, Any]) -> None:
    work.nap()


@job("bench.note")
def note(payload: dict[str, Any]) -> None:
    logger.info("charged order %s", payload)
    work.nap()
    logger.info("done")


@job("bench.anap")
async def anap(payload: dict[str, Any]) -> None:
    await work.anap()


@job("bench.stamp")
def stamp(payload: dict[str, Any]) -> None:
    work.stamp(payload["number"])


@job("bench.fail_once", takes_context=True, base_delay=0.001, max_delay=0.001)
def fail_once(context: Any, payload: dict[str, Any]) -> None:
    _fail_until(2, context)


@job("bench.fail_twice", takes_context=True, base_delay=0.001, max_delay=0.001)
def fail_twice(context: Any, payload: dict[str, Any]) -> None:
    _fail_until(3, context)


def _fail_until(attempt: int, context: Any) -> None:
    """Count each start, and raise before this attempt."""
    work.tick()
    if context.attempt < attempt:
        raise ValueError("not yet")
