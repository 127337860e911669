"""What kept logs cost: the I/O jobs of `benchmarks/io.py`, with two lines of a logger each, kept or not; and without lines.

With `kept=False` no level is set, which is the default, and the lines go nowhere, as in a site that logs errors only.
"""

import os
from typing import Any

from benchmarks import io, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case

CASES = (("nap", False), ("note", False), ("note", True))


def measure(peer: Peer, job: str, kept: bool, concurrency: int, jobs: int, limit: float) -> dict[str, Any]:
    """Return jobs a second, and as a share of the ideal."""
    if kept:
        os.environ["BENCH_LOG_LEVEL"] = "INFO"
    return io.measure(peer, job, concurrency, jobs, limit)


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=10_000, limit=4)
    cases = [
        Case("django_jobs", store, {"load": "io", "job": job, "kept": kept, "concurrency": 32,
                                    "jobs": options.jobs, "limit": options.limit})
        for store in ("postgresql", "mariadb", "sqlite")
        for job, kept in CASES
    ]  # fmt: skip
    suite.run("logs", cases, options)


if __name__ == "__main__":
    main()
