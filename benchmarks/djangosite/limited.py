"""Jobs of a bulk handler, and with limits: those where BENCH_LIMITS is set alone, for without any limit claims do otherwise."""

import os
from typing import Any

from benchmarks import work
from django_jobs import Limit, job

AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "8"))  # jobs of a key


@job("bench.bulk", bulk=500)
def bulk(payloads: list[dict[str, Any]]) -> None:
    work.tick(len(payloads))


if os.environ.get("BENCH_LIMITS"):

    @job("bench.limited", limit=Limit(concurrency=AT_ONCE, key="account"))
    def limited(payload: dict[str, Any]) -> None:
        work.tick()

    @job("bench.held", limit=Limit(concurrency=1))
    def held(payload: dict[str, Any]) -> None:
        raise AssertionError("the benchmark holds the only place of this type")
