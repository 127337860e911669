"""What 100 worker hosts would ask of one PostgreSQL, reckoned from what was measured with few: tables for docs/scaling.md.

Inputs are medians of `machines` and `waiting`: processor time of the server for a job (in full batches, and one or a few at
a time), commits and log for a job, and what a waiting process costs in a second. The model adds them up; it knows nothing of
locks, memory or the network, and says what to provide at least.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chart import number

# What is asked: hosts, processes on each, threads of each, jobs a second in all, whether the jobs are short.
FLEETS = (
    (2, 2, 4, 200, False),
    (10, 4, 4, 2_000, False),
    (100, 4, 4, 2_000, False),
    (100, 4, 4, 10_000, False),
    (100, 4, 4, 10_000, True),
)
BESIDE_THREADS = 4  # connections of a process besides those of its threads, whose handlers use the database


@dataclass(frozen=True)
class Costs:
    """What one job, and one waiting process in a second, cost the server."""

    batch_us: float
    single_us: float
    batch_commits: float
    single_commits: float
    wal_bytes: float
    waiting_ms: float
    waiting_commits: float


def tables(directory: Path) -> dict[str, str]:
    """Return the Markdown of the model, when both of its sources are there."""
    costs = read(directory)
    if costs is None:
        return {}
    head = ["worker hosts", "processes", "jobs/s", "jobs", "connections", "server cores", "commits/s", "log, MB/s"]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for fleet in FLEETS:
        rows.append("| " + " | ".join(_row(costs, *fleet)) + " |")
    inputs = (
        f"Inputs, medians: a job in full batches costs the server {number(costs.batch_us)} µs of a core and"
        f" {number(costs.batch_commits)} commits, a job of 10 ms {number(costs.single_us)} µs and"
        f" {number(costs.single_commits)} commits; either writes {number(costs.wal_bytes)} bytes of log after its submit."
        f" A waiting process costs {number(costs.waiting_ms)} ms of a core and {number(costs.waiting_commits)} transactions"
        " in a second.\n"
    )
    return {"model": "\n".join(rows) + "\n\n" + inputs}


def read(directory: Path) -> Costs | None:
    """Return the medians of the largest fleets that were measured."""
    batch, single = (_largest(directory / "machines.json", job=job, finished=0) for job in ("tick", "nap"))
    waiting = _largest(directory / "waiting.json")
    if not (batch and single and waiting):
        return None
    return Costs(
        batch_us=_median(batch, "server_cpu_us"),
        single_us=_median(single, "server_cpu_us"),
        batch_commits=_median(batch, "commits_per_job"),
        single_commits=_median(single, "commits_per_job"),
        wal_bytes=_median(single, "wal_bytes_per_job"),
        waiting_ms=_median(waiting, "server_cpu_ms_per_second"),
        waiting_commits=_median(waiting, "commits_per_second"),
    )


def _largest(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    """Return the rounds of the case with the most workers that has these options, and no pooler."""
    if not path.exists():
        return []
    cases = [
        case
        for case in json.loads(path.read_text())["cases"]
        if case["rounds"] and not case["options"].get("through") and wanted.items() <= case["options"].items()
    ]
    return max(cases, key=lambda case: case["options"]["workers"])["rounds"] if cases else []


def _median(rounds: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(each[figure] for each in rounds)


def _row(costs: Costs, hosts: int, processes: int, threads: int, rate: int, short: bool) -> list[str]:
    fleet = hosts * processes
    job_us, job_commits = (costs.batch_us, costs.batch_commits) if short else (costs.single_us, costs.single_commits)
    cores = rate * job_us / 1e6 + fleet * costs.waiting_ms / 1e3
    commits = rate * job_commits + fleet * costs.waiting_commits
    return [
        f"{hosts}",
        f"{fleet} of {threads} threads",
        f"{rate:,}",
        "short, in batches" if short else "of 10 ms",
        f"{fleet * (threads + BESIDE_THREADS):,}",
        number(cores),
        number(commits),
        number(rate * costs.wal_bytes / 1e6),
    ]
