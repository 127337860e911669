"""The benchmark's jobs as django_jobs handlers."""

from typing import Any

from benchmarks import work
from django_jobs import job


@job("bench.tick")
def tick(payload: dict[str, Any]) -> None:
    work.tick()


@job("bench.nap")
def nap(payload: dict[str, Any]) -> None:
    work.nap()


@job("bench.anap")
async def anap(payload: dict[str, Any]) -> None:
    await work.anap()


@job("bench.stamp")
def stamp(payload: dict[str, Any]) -> None:
    work.stamp(payload["number"])
