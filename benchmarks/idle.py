"""What an idle worker process costs: memory of all its processes, and what it asks the database in a second.

PSS counts a shared page once in all; RSS counts it in every process. Statements are counted by `pg_stat_statements` on
PostgreSQL (of a private server, when the one that is there has not loaded it), by MariaDB itself, and on SQLite by the
connections of the Django queues (`djangosite/counted.py`); Redis counts commands. With `--rest`, seconds pass between the
first job and the count: for workers that look less often the longer nothing comes. With `--waiting`, django_jobs is measured
once more beside so many jobs of which one half sleeps and the other waits for events.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks import private, stores, suite
from benchmarks.djangosite import counted
from benchmarks.drain import ENTRIES
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers


def measure(peer: Peer, seconds: int, rest: int, waiting: int = 0) -> dict[str, Any]:
    """Return memory in MiB and statements a second of one worker process that has run a job and waits."""
    counts = _counter(peer)
    peer.prepare()
    if waiting:
        _let_wait(waiting)
        stores.settle(peer.store)
    submit = peer.submitter("tick")
    with Workers(peer, 1) as workers:
        submit(0)
        deadline = time.monotonic() + 30
        while peer.remaining() > waiting:
            if time.monotonic() > deadline or workers.all_ended():
                raise workers.complaint("the first job was not run")
            time.sleep(0.05)
        time.sleep(rest)
        cpu = workers.cpu_seconds()
        before = counts() if counts else 0
        time.sleep(seconds)
        after = counts() if counts else 0
        client, server = (after - before for after, before in zip(workers.cpu_seconds(), cpu, strict=True))
        pids = workers.pids()
        memory = [_memory(pid) for pid in pids]
    result: dict[str, Any] = {
        "pss_mib": sum(pss for pss, _ in memory) / 1024,
        "rss_mib": sum(rss for _, rss in memory) / 1024,
        "processes": len(pids),
        "worker_cpu_ms_per_second": 1000 * client / seconds,
    }
    if peer.store.kind == "postgresql":
        result["server_cpu_ms_per_second"] = 1000 * server / seconds
    if counts:
        result["statements_per_second"] = (after - before) / seconds
        result["unit"] = stores.statements_unit(peer.store)
    return result


def _let_wait(number: int) -> None:
    """Write jobs that have slept, or waited for an event, since their first run."""
    from django.utils import timezone

    from django_jobs import NewJob, submit_many
    from django_jobs.lifecycle.steps import LONGEST_WAIT
    from django_jobs.models import JobStep

    now = timezone.now()
    dues = (now + timedelta(days=14), now + timedelta(seconds=LONGEST_WAIT))
    for start in range(0, number, 10_000):
        places = range(start, min(start + 10_000, number))
        jobs = submit_many([NewJob("bench.tick", {}, scheduled_at=dues[place % 2]) for place in places])
        JobStep.objects.bulk_create(
            (
                JobStep(
                    job=job, position=1, name="go", kind="event", event_name="go", event_key=str(place), started_at=now
                )
                if place % 2
                else JobStep(job=job, position=1, name="nap", kind="sleep", due_at=dues[0], started_at=now)
                for place, job in zip(places, jobs, strict=True)
            ),
            batch_size=500,
        )


def _counter(peer: Peer) -> Callable[[], int] | None:
    """Return what counts the statements of the workers, or None when nothing does."""
    if peer.store.kind != "sqlite":
        return lambda: stores.statements(peer.store)
    from benchmarks.peers.django_peer import DjangoPeer

    if not isinstance(peer, DjangoPeer):
        return None
    os.environ[counted.SWITCH] = "1"
    return counted.total


def _memory(pid: int) -> tuple[int, int]:
    """Return (PSS, RSS) in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return values["Pss"], values["Rss"]


def main() -> None:
    options = suite.arguments(__doc__ or "", seconds=20, rest=3, waiting=0)
    case = {"seconds": options.seconds, "rest": options.rest}
    cases = [Case(peer, store, case) for store, peers in ENTRIES.items() for peer in peers if peer != "bare"]
    if options.waiting:
        more = case | {"waiting": options.waiting}
        cases += [Case("django_jobs", store, more) for store in ("postgresql", "sqlite", "mariadb")]
    with private.counting():
        suite.run("idle", cases, options)


if __name__ == "__main__":
    main()
