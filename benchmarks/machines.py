"""Many worker hosts on one PostgreSQL: 2 to 16 worker processes in network namespaces; needs root.

The server is a private one that listens on the bridge between the hosts. The queue is paused until every process has
registered, so that all start at once; then the jobs are drained. Besides the rate: what part of a fair share the host that
got least had, the longest time that a process ran nothing while jobs were left, connections, commits, log and processor
time for each job. All share this machine's cores with the server, so the rate says only that more hosts do not slow each
other down; what a job costs the server is what counts for more of them (`model.py`). With PGBOUNCER set to the program, one
case goes through it in transaction pooling; another does without notifications, which PostgreSQL delivers to all listeners.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks import growth, pooler, stores, suite, work
from benchmarks.hosts import connections, hosts_and_server, server, wait_until_registered, workers_on_hosts
from benchmarks.network import host_name
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import cpu_seconds

MOST_HOSTS = 8
ALONE, QUIET = "", "no notifications"
# hosts, worker processes in all, job, finished rows, through
CASES = (
    (1, 2, "tick", 0, ALONE),
    (2, 2, "tick", 0, ALONE),
    (2, 4, "tick", 0, ALONE),
    (4, 8, "tick", 0, ALONE),
    (8, 16, "tick", 0, ALONE),
    (8, 16, "tick", 1_000_000, ALONE),
    (8, 16, "tick", 0, pooler.NAME),
    (1, 2, "nap", 0, ALONE),
    (8, 16, "nap", 0, ALONE),
    (8, 16, "nap", 0, QUIET),
)


def measure(
    peer: Peer, hosts: int, workers: int, job: str, finished: int, jobs: int, limit: float, through: str = ""
) -> dict[str, Any]:
    """Return the rate, the fairness and the costs of the drain."""
    peer.prepare()
    growth.fill(peer, "finished", finished)
    from django_jobs.lifecycle import queues

    queues.pause("default")
    peer.submit(job, jobs)
    stores.settle(peer.store)
    with workers_on_hosts(peer, hosts, workers, _environment(peer, through)) as running:
        wait_until_registered(running, workers)
        before, client, watch = server(peer.store), cpu_seconds(running.pids()), Watch(stores.run_dir(), workers)
        started = now = time.monotonic()
        queues.resume("default")
        while (done := watch.look()) < jobs and now - started < limit:
            if running.all_ended():
                raise running.complaint(f"stalled at {done} of {jobs} jobs")
            time.sleep(0.02)
            now = time.monotonic()
        used = connections(peer.store)
        while (left := peer.remaining()) and done >= jobs and now - started < 2 * limit:
            time.sleep(0.02)
            now = time.monotonic()
        cost, client = server(peer.store) - before, cpu_seconds(running.pids()) - client
    ran = jobs - left
    shares = by_host()
    return {
        "jobs_per_second": ran / (now - started),
        "jobs": ran,
        "least_share": min(shares.get(host_name(number), 0) for number in range(hosts)) * hosts / sum(shares.values()),
        "longest_gap_ms": 1000 * watch.longest_gap,
        "connections": used,
        "commits_per_job": cost.commits / ran,
        "wal_bytes_per_job": cost.wal_bytes / ran,
        "server_cpu_us": 1e6 * cost.cpu_seconds / ran,
        "worker_cpu_us": 1e6 * client / ran,
    }


def _environment(peer: Peer, through: str) -> dict[str, str]:
    """Return what the workers of this case do otherwise than the rest."""
    if through == pooler.NAME:
        return {"BENCH_POSTGRESQL": pooler.url(peer.store)}
    return {"BENCH_NOTIFY": "0"} if through == QUIET else {}


class Watch:
    """Looks at the shared-memory counts of all processes, and at how long each one ran nothing."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        self.workers = workers
        self.longest_gap = 0.0

    def look(self) -> int:
        """Return the jobs that were run so far."""
        counts = work.counts(self.directory)
        if len(counts) == self.workers:
            self.longest_gap = max(self.longest_gap, time.monotonic() - min(last for last, _ in counts))
        return sum(count for _, count in counts)


def by_host(alias: str = "default") -> dict[str, int]:
    """Return how many jobs each host completed; rows that were only filled in name none."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT split_part(worker_id, ':', 1), count(*) FROM django_jobs_job"
            " WHERE status = 'completed' AND worker_id IS NOT NULL GROUP BY 1"
        )
        return dict(cursor.fetchall())


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=60_000, limit=15, scale=100)
    cases = []
    for hosts, workers, job, finished, through in CASES:
        case: dict[str, Any] = {"hosts": hosts, "workers": workers, "job": job}
        case |= {"finished": finished * options.scale // 100, "jobs": options.jobs, "limit": options.limit}
        if through != pooler.NAME or pooler.program():
            cases.append(Case("django_jobs", "postgresql", case | ({"through": through} if through else {})))
    with hosts_and_server(MOST_HOSTS):
        suite.run("machines", cases, options)


if __name__ == "__main__":
    main()
