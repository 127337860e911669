"""How many sessions notifications wake: many idle worker processes of one thread, and a steady stream of single jobs.

Counted by the server's side: a session that listens hears each notification of the database, and so do all of them; and the
times that the server's processes of the listening sessions gave up the processor, each of which is a wake-up of one. Besides, how
long jobs waited, by the database's clock.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import private, stores, suite
from benchmarks.hosts import wait_until_registered
from benchmarks.peer import Peer, module
from benchmarks.suite import Case
from benchmarks.workers import Commands

PRODUCERS = 4
CHANNELS = ("django_jobs_work", "django_jobs_process", "django_jobs_finished")


def measure(peer: Peer, workers: int, rate: int, seconds: int) -> dict[str, Any]:
    """Return wake-ups and waits, once the stream has flowed for three seconds."""
    peer.prepare()
    each = rate / PRODUCERS
    produce = [module("benchmarks.producer", str(each), str(number * 10**7)) for number in range(PRODUCERS)]
    with ExitStack() as stack:
        running = stack.enter_context(Commands(peer.commands(workers), {}))
        wait_until_registered(running, workers)
        heard = stack.enter_context(stores.postgresql(peer.store.url))
        for channel in CHANNELS:
            heard.execute(f"LISTEN {channel}")
        stack.enter_context(Commands(produce, {"BENCH_PEER": "django_jobs", "BENCH_STORE": peer.store.kind}))
        time.sleep(5)
        list(heard.notifies(timeout=0))
        pids, began = _listeners(peer), time.monotonic()
        before, since = _switches(pids), _now(peer)
        told = sum(1 for _ in heard.notifies(timeout=seconds))
        took = time.monotonic() - began
        switches, until = _switches(pids) - before, _now(peer)
        time.sleep(1)
    done, waits = _waits(peer, since, until)
    return {
        "listening_sessions": workers + 1,
        "jobs_per_second": done / took,
        "notifications_per_second": told / took,
        "wakeups_per_second": told * (workers + 1) / took,
        "switches_per_second": switches / took,
        "wait p50 ms": waits[0],
        "wait p99 ms": waits[1],
        "longest wait ms": waits[2],
    }


def _listeners(peer: Peer) -> list[int]:
    with stores.postgresql(peer.store.admin_url()) as connection:
        sql = (
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() AND application_name = ''"
            " AND (query LIKE 'LISTEN%%' OR query LIKE '%%advisory%%' OR query LIKE '%%lease_expires_at >%%')"
        )
        return [row[0] for row in connection.execute(sql, [peer.store.name]).fetchall()]


def _switches(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _now(peer: Peer) -> Any:
    with stores.postgresql(peer.store.url) as connection:
        return connection.execute("SELECT clock_timestamp()").fetchone()[0]


def _waits(peer: Peer, since: Any, until: Any) -> tuple[int, list[float]]:
    with stores.postgresql(peer.store.url) as connection:
        sql = (
            "SELECT count(*), percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY"
            " EXTRACT(EPOCH FROM started_at - available_at)) FROM django_jobs_job WHERE status = 'completed'"
            " AND created_at BETWEEN %s AND %s"
        )
        done, waits = connection.execute(sql, [since, until]).fetchone()
    return done, [1000 * float(wait) for wait in waits]


def main() -> None:
    options = suite.arguments(__doc__ or "", workers=64, rate=1000, seconds=10)
    os.environ.setdefault("BENCH_DJANGO_JOBS_THREADS", "1")
    case = {"workers": options.workers, "rate": options.rate, "seconds": options.seconds}
    with private.postgresql():
        suite.run("wakeups", [Case("django_jobs", "postgresql", case)], options)


if __name__ == "__main__":
    main()
