"""Does an old snapshot slow the workers down? The drain beside a transaction that stays open ÷ the drain before it began.

While it is open, workers run `before` jobs, so that nothing they leave dead can be removed; then the timed jobs are drained.
PostgreSQL keeps dead rows and index entries, MariaDB does not purge, SQLite cannot shorten its log. Both drains are of one
measurement.
"""

from typing import Any

from benchmarks import stores, suite, work
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers, drain

FEED = 20_000  # jobs submitted at a time while the transaction is open
BEFORE = (60_000, 300_000, 1_000_000)
ENTRIES = {"postgresql": ("django_jobs", "pgqueuer"), "sqlite": ("django_jobs",), "mariadb": ("django_jobs",)}


def measure(peer: Peer, before: int, jobs: int, limit: float) -> dict[str, Any]:
    """Return the rate beside the old snapshot, and its part of the clean rate."""
    peer.prepare()
    clean = _drained(peer, jobs, limit)
    with stores.old_snapshot(peer.store):
        run = 0
        with Workers(peer, 1) as workers:
            while run < before:
                peer.submit("tick", FEED)
                run += FEED
                workers.wait_for(lambda run=run: _runs() > run - FEED // 4)
            workers.wait_for(lambda: peer.remaining() == 0)
        _forget_runs()
        result = _drained(peer, jobs, limit)
    return result | {
        "clean_jobs_per_second": clean["jobs_per_second"],
        "of_clean": result["jobs_per_second"] / clean["jobs_per_second"],
    }


def _drained(peer: Peer, jobs: int, limit: float) -> dict[str, float]:
    peer.submit("tick", jobs)
    with Workers(peer, 1) as workers:
        result = drain(workers, jobs, 1, peer.remaining, limit)
        workers.wait_for(lambda: peer.remaining() == 0)
    _forget_runs()
    return result


def _runs() -> int:
    return sum(count for _, count in work.counts(stores.run_dir()))


def _forget_runs() -> None:
    """Let the next drain start at nought."""
    for path in stores.run_dir().glob("*.slot"):
        path.unlink()


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=200_000, limit=60, scale=100)
    cases = [
        Case(peer, store, {"before": before * options.scale // 100, "jobs": options.jobs, "limit": options.limit})
        for before in BEFORE
        for store, peers in ENTRIES.items()
        for peer in peers
    ]
    suite.run("snapshot", cases, options)


if __name__ == "__main__":
    main()
