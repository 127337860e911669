"""What waiting worker processes on many hosts ask of one PostgreSQL; needs root, see `machines.py`."""

import time
from typing import Any

from benchmarks import stores, suite
from benchmarks.hosts import connections, hosts_and_server, server, wait_until_registered, workers_on_hosts
from benchmarks.machines import MOST_HOSTS
from benchmarks.peer import Peer
from benchmarks.suite import Case


def measure(peer: Peer, hosts: int, workers: int, seconds: int) -> dict[str, Any]:
    """Return what one process asks in a second, beats and maintenance included."""
    peer.prepare()
    stores.settle(peer.store)
    with workers_on_hosts(peer, hosts, workers) as running:
        wait_until_registered(running, workers)
        time.sleep(10)  # they look less often when nothing comes
        before = server(peer.store)
        time.sleep(seconds)
        cost = server(peer.store) - before
        used = connections(peer.store)
    each = seconds * workers
    return {
        "statements_per_second": cost.statements / each,
        "server_cpu_ms_per_second": 1000 * cost.cpu_seconds / each,
        "commits_per_second": cost.commits / each,
        "wal_bytes_per_second": cost.wal_bytes / each,
        "connections": used / workers,
    }


def main() -> None:
    options = suite.arguments(__doc__ or "", seconds=30)
    cases = [
        Case("django_jobs", "postgresql", {"hosts": hosts, "workers": workers, "seconds": options.seconds})
        for hosts, workers in ((2, 2), (8, 16))
    ]
    with hosts_and_server(MOST_HOSTS):
        suite.run("waiting", cases, options)


if __name__ == "__main__":
    main()
