"""Many claimers on one queue: what of their loss is the machine's, and how many rows a claim fetches for each that it takes.

Each claimer is a session of its own that claims a batch and completes it, again and again, with no handler between: `bare` in the
loop of `peers/bare.py`, `ours` by the library's moves. They are threads of four processes, so that 64 fit onto one machine.
"""

import json
import os
import sys
import threading
import time
from typing import Any

from benchmarks import private, stores, suite
from benchmarks.peer import Peer, load_peer, module
from benchmarks.peers import bare
from benchmarks.suite import Case
from benchmarks.workers import Commands

PROCESSES = 4


def measure(peer: Peer, claimers: int, batch: int, jobs: int) -> dict[str, Any]:
    """Return the rate, the least claimer's share of a fair part, and the rows fetched by the index of ready jobs for each job."""
    peer.prepare()
    peer.submit("tick", jobs)
    stores.settle(peer.store)
    processes = min(PROCESSES, claimers)
    each = str(claimers // processes)
    commands = [module("benchmarks.claimers", "claim", each, str(batch))] * processes
    go = stores.run_dir() / "go"
    with Commands(commands, {"BENCH_PEER": os.environ["BENCH_PEER"], "BENCH_STORE": "postgresql"}) as running:
        while len(list(stores.run_dir().glob("*.there"))) < processes:
            time.sleep(0.05)
            if running.all_ended():
                raise running.complaint("the claimers ended")
        before, started = _rows(peer), time.monotonic()
        go.touch()
        while peer.remaining():
            time.sleep(0.02)
        took = time.monotonic() - started
        while not running.all_ended():
            time.sleep(0.05)
    time.sleep(0.5)
    counts = [count for path in stores.run_dir().glob("*.counts") for count in json.loads(path.read_text())]
    return {
        "jobs_per_second": jobs / took,
        "least_claimers_share": min(counts) * len(counts) / sum(counts),
        "rows_per_job": (_rows(peer) - before) / jobs,
    }


def _rows(peer: Peer) -> int:
    with stores.postgresql(peer.store.url) as connection:
        sql = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_indexes WHERE indexrelname LIKE %s"
        return int(connection.execute(sql, ["%_ready"]).fetchone()[0] or 0)


def claim_all(threads: int, batch: int) -> None:
    """Claim and complete on so many sessions until the queue is empty."""
    peer = load_peer(os.environ["BENCH_PEER"])(stores.current())
    peer.connect()
    counts = [0] * threads
    loop = _bare if os.environ["BENCH_PEER"] == "bare" else _ours
    ready = threading.Barrier(threads + 1)
    running = [threading.Thread(target=loop, args=(number, batch, counts, ready)) for number in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    (stores.run_dir() / f"{os.getpid()}.there").touch()
    for thread in running:
        thread.join()
    (stores.run_dir() / f"{os.getpid()}.counts").write_text(json.dumps(counts))


def _wait_for_go() -> None:
    while not (stores.run_dir() / "go").exists():
        time.sleep(0.002)


def _bare(number: int, batch: int, counts: list[int], ready: threading.Barrier) -> None:
    claim = bare.CLAIM.format(ready=bare.READY, batch=batch, now=bare.NOW["postgresql"])
    settle = bare.SETTLE.format(now=bare.NOW["postgresql"])
    with stores.postgresql(stores.current().url) as connection:
        ready.wait()
        _wait_for_go()
        while rows := connection.execute(claim, prepare=True).fetchall():
            connection.execute(settle, [[row[0] for row in rows], [row[3] for row in rows]], prepare=True)
            counts[number] += len(rows)


def _ours(number: int, batch: int, counts: list[int], ready: threading.Barrier) -> None:
    from django_jobs.db.marks import Marks
    from django_jobs.lifecycle import leases
    from django_jobs.lifecycle.claim import claim
    from django_jobs.lifecycle.outcome import Outcome
    from django_jobs.lifecycle.settle import settle

    process, marks = f"{os.getpid()}:{number}", Marks()
    leases.register(process, queues=[], threads=1)
    leases.prepare_connection(process)
    ready.wait()
    _wait_for_go()
    while jobs := claim("default", batch, process, marks):
        settle([Outcome.completed(job) for job in jobs], process)
        counts[number] += len(jobs)


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=40_000)
    cases = [
        Case(
            peer, "postgresql", {"claimers": claimers, "batch": batch, "jobs": options.jobs // (1 if batch > 10 else 8)}
        )
        for batch in (128, 4)
        for claimers in (2, 4, 8, 16, 64)
        for peer in ("bare", "django_jobs")
    ]
    with private.postgresql():
        suite.run("claimers", cases, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["claim"]:
        claim_all(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
