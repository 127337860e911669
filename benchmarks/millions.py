"""Does it stay flat over millions of jobs? No-op jobs through a private PostgreSQL with autovacuum as it comes, pruned meanwhile.

    python -m benchmarks.millions [--jobs 2000000] [--retention 60] [--waiting 10000] [--json FILE]

One process submits, so that about `--waiting` jobs wait at any time; one worker process runs them and prunes those that ended
`--retention` seconds ago. The promise is a ratio of at least 0.95: the jobs of the last tenth for each second of processor time,
of workers and server, against those of the first. The same by the clock is shown beside it, for a quiet machine. A machine with a
slow or shared disk tells more of its disk: `TMPDIR=/dev/shm` puts the server into memory.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import stores, suite
from benchmarks.workers import Workers, cpu_seconds

PROMISED = 0.95
CHUNK = 1_000


@dataclass(frozen=True)
class Tenth:
    """What one tenth of the jobs took (seconds), and what the table was at its end."""

    jobs: int
    seconds: float
    worker_cpu: float
    server_cpu: float
    rows: int
    table_mb: float
    index_mb: float
    dead_rows: int

    @property
    def per_cpu_second(self) -> float:
        """Jobs for each second of processor time."""
        return self.jobs / (self.worker_cpu + self.server_cpu)

    def __str__(self) -> str:
        cpu = f"{self.worker_cpu / self.jobs * 1e6:.1f} + {self.server_cpu / self.jobs * 1e6:.1f} µs"
        size = f"{self.rows:,} rows, {self.table_mb:.0f} + {self.index_mb:.0f} MB, {self.dead_rows:,} dead"
        return f"{self.jobs / self.seconds:,.0f} jobs/s, processor {cpu} a job; {size}"


def main() -> int:
    suite.end_in_order()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2_000_000)
    parser.add_argument("--retention", type=int, default=60, help="seconds that a completed job is kept")
    parser.add_argument("--waiting", type=int, default=10_000, help="jobs that wait at any time")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    from benchmarks import private

    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory, private.postgresql() as (server, _):
        os.environ |= {"BENCH_DIR": directory, "BENCH_STORE": "postgresql", "BENCH_PEER": "django_jobs"}
        os.environ["BENCH_RETENTION_SECONDS"] = str(options.retention)
        tenths = run(server, options.jobs, options.waiting)
    if options.json:
        options.json.write_text(json.dumps([asdict(tenth) for tenth in tenths], indent=1) + "\n")
    first, last = tenths[0], tenths[-1]
    ratio = last.per_cpu_second / first.per_cpu_second
    clock = (last.jobs / last.seconds) / (first.jobs / first.seconds)
    print(f"last tenth ÷ first: {ratio:.3f} by processor time, {clock:.3f} by the clock; load {os.getloadavg()[0]:.1f}")
    return 0 if ratio >= PROMISED else 1


def run(server: int, jobs: int, waiting: int) -> list[Tenth]:
    """Run so many jobs; return what each tenth took. The first one begins when the workers are warm."""
    from benchmarks.peer import load_peer

    place = stores.current()
    stores.recreate(place)
    peer = load_peer("django_jobs")(place)
    peer.prepare()
    submitted, tenths = 0, []
    with Workers(peer, 1) as workers:
        began = None
        while len(tenths) < 10:
            done = _done()
            while submitted - done < waiting:
                peer.submit("tick", CHUNK)
                submitted += CHUNK
            if began is None and done >= waiting:
                began, at, first = time.monotonic(), done, (workers.cpu_seconds()[0], server_cpu(server))
            if began is not None and done - at >= jobs // 10:
                now, second = time.monotonic(), (workers.cpu_seconds()[0], server_cpu(server))
                spent = second[0] - first[0], second[1] - first[1]
                tenths.append(Tenth(done - at, now - began, *spent, *_table()))
                print(f"{len(tenths):>2}: {tenths[-1]}", flush=True)
                began, at, first = now, done, second
            if workers.all_ended():
                raise workers.complaint("the workers ended")
            time.sleep(0.05)
    return tenths


def server_cpu(postmaster: int) -> float:
    """Return the processor time of the server so far: of its processes that live, and of those that have ended."""
    from tests.support.proc import children

    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return ended + cpu_seconds([postmaster, *children(postmaster)])


def _done() -> int:
    from benchmarks import work

    return sum(count for _, count in work.counts(stores.run_dir()))


def _table() -> tuple[int, float, float, int]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(  # to count the rows would take a second of the processor, which is counted here
            "SELECT n_live_tup, pg_table_size('django_jobs_job') / 2^20, pg_indexes_size('django_jobs_job') / 2^20, n_dead_tup"
            " FROM pg_stat_user_tables WHERE relname = 'django_jobs_job'"
        )
        rows, table, indexes, dead = cursor.fetchone()
        return int(rows), float(table), float(indexes), int(dead)


if __name__ == "__main__":
    sys.exit(main())
