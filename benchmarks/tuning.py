"""Storage settings of the hot table under steady load: fill factor, eager autovacuum, both, neither (PostgreSQL).

A worker runs no-op jobs for `--seconds` while this process keeps a few thousand waiting beside 200,000 finished rows; the
first third is left out of the rate. The server is a private one whose autovacuum looks every 5 seconds, so that a short run
sees what a day would. Sizes are of the table and its indexes at the end, dead rows what the server then believes.
"""

import time
from typing import Any

from benchmarks import growth, private, stores, suite
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers

EAGER = (
    "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,"
    " autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000"
)
SETTINGS = {
    "defaults": "",
    "fillfactor 60": "fillfactor = 60",
    "eager autovacuum": EAGER,
    "eager autovacuum, fillfactor 60": f"{EAGER}, fillfactor = 60",
}
FEED = 5_000
FIGURES = """SELECT pg_table_size(relid), pg_indexes_size(relid), n_dead_tup, autovacuum_count
    FROM pg_stat_user_tables WHERE relname = %s"""


def measure(peer: Peer, setting: str, rows: int, seconds: int) -> dict[str, Any]:
    """Return the rate, the server's cost and the sizes at the end."""
    peer.prepare()
    with stores.postgresql(peer.store.url) as connection:
        if SETTINGS[setting]:
            connection.execute(f"ALTER TABLE {growth.TABLE} SET ({SETTINGS[setting]})")
    growth.fill(peer, "finished", rows)
    stores.settle(peer.store)
    submitted, began, done, cpu = 0, 0.0, 0, (0.0, 0.0)
    started = now = time.monotonic()
    with Workers(peer, 1) as workers:
        while now - started < seconds or not began:
            left = peer.remaining()
            if not began and now - started > seconds / 3:
                began, done, cpu = now, submitted - left, workers.cpu_seconds()
            if left < FEED:
                peer.submit("tick", FEED)
                submitted += FEED
            else:
                time.sleep(0.02)
            now = time.monotonic()
            if workers.all_ended():
                raise workers.complaint("the worker ended")
        ran = submitted - peer.remaining() - done
        client, server = (after - before for after, before in zip(workers.cpu_seconds(), cpu, strict=True))
    with stores.postgresql(peer.store.url) as connection:
        table, indexes, dead, vacuums = connection.execute(FIGURES, [growth.TABLE]).fetchone()
    return {
        "jobs_per_second": ran / (now - began),
        "server_cpu_us": 1e6 * server / ran,
        "worker_cpu_us": 1e6 * client / ran,
        "table_mib": table / 2**20,
        "index_mib": indexes / 2**20,
        "dead_rows": dead,
        "vacuums": vacuums,
        "bytes_per_job": (table + indexes) / (rows + submitted),
    }


def main() -> None:
    options = suite.arguments(__doc__ or "", seconds=30, scale=100)
    case = {"rows": 200_000 * options.scale // 100, "seconds": options.seconds}
    cases = [Case("django_jobs", "postgresql", {"setting": setting} | case) for setting in SETTINGS]
    with private.postgresql(autovacuum_naptime="5s"):
        suite.run("tuning", cases, options)


if __name__ == "__main__":
    main()
