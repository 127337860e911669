"""Does it stay flat as the table grows? Drain the same no-op jobs next to a million finished ones, and so on.

States: empty; finished (1,000,000 completed rows); backlog (500,000 further ready rows of the same queue, so the claim
has a long index to read); future (500,000 rows due tomorrow); pruning (1,000,000 rows past their retention, which a second
process prunes meanwhile in the workers' rhythm); old_transaction (PostgreSQL: a REPEATABLE READ transaction is open while
workers run jobs for `--held` seconds, so that no dead row can be removed, and then during the drain; 600 for ten minutes).
Each is compared with empty of the same run.
"""

import contextlib
import time
from typing import Any

from benchmarks import stores, suite
from benchmarks.peer import Peer, module
from benchmarks.suite import Case
from benchmarks.workers import Commands, Workers, drain

STATES = {
    "empty": 0,
    "finished": 1_000_000,
    "backlog": 500_000,
    "future": 500_000,
    "pruning": 1_000_000,
    "old_transaction": 0,
}
FEED = 2_000  # jobs submitted at a time while an old transaction is held
TABLE = "django_jobs_job"
COLUMNS = (
    "id, job_type, queue, payload, rank, status, available_at, created_at, updated_at, started_at, finished_at,"
    " scheduled_at, max_retries, retry_count, metadata, pending_dependencies, pending_limits,"
    " fence, crash_count, progress_message"
)
# Per database: the row numbers, now, a number as an id that sorts before or after today's, a time from now in days.
SERIES = {
    "postgresql": "generate_series(1, {rows}) AS s(n)",
    "mariadb": "(SELECT seq AS n FROM seq_1_to_{rows}) s",
    "sqlite": "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) SELECT n FROM c) s",
}
NOW = {
    "postgresql": "STATEMENT_TIMESTAMP()",
    "mariadb": "UTC_TIMESTAMP(6)",
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f','now')",
}
LONG_AGO = {
    "postgresql": "STATEMENT_TIMESTAMP() - INTERVAL '60 days'",
    "mariadb": "UTC_TIMESTAMP(6) - INTERVAL 60 DAY",
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f','now','-60 days')",
}
TOMORROW = {
    "postgresql": "STATEMENT_TIMESTAMP() + INTERVAL '1 day'",
    "mariadb": "UTC_TIMESTAMP(6) + INTERVAL 1 DAY",
    "sqlite": "STRFTIME('%Y-%m-%d %H:%M:%f','now','+1 day')",
}
IDS = {
    "postgresql": "'{prefix}' || lpad(n::text, 12, '0')",
    "mariadb": "CONCAT('{prefix}', LPAD(n, 12, '0'))",
    "sqlite": "PRINTF('{prefix}%012d', n)",
}


def fill(peer: Peer, state: str, rows: int) -> None:
    """Insert `rows` rows of the state in one statement, by the database itself."""
    if not rows:
        return
    kind = peer.store.kind
    now, tomorrow, long_ago = NOW[kind], TOMORROW[kind], LONG_AGO[kind]
    status, available, finished, scheduled = {
        "finished": ("completed", now, now, "NULL"),
        "backlog": ("pending", now, "NULL", "NULL"),
        "future": ("scheduled", tomorrow, "NULL", tomorrow),
        "pruning": ("completed", long_ago, long_ago, "NULL"),
    }[state]
    started = finished
    # Ids that start with a zero are older than all others; the backlog is submitted after the jobs that are timed.
    row_id = IDS[kind].format(prefix="zzz-" if state == "backlog" else "000-")
    values = (
        f"{row_id}, 'bench.tick', 'default', '{{}}', 0, '{status}', {available}, {now}, {now}, {started}, {finished},"
        f" {scheduled}, 3, 0, '{{}}', 0, 0, 0, 0, ''"
    )
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {TABLE} ({COLUMNS}) SELECT {values} FROM {SERIES[kind].format(rows=rows)}")


def churn(peer: Peer, seconds: int) -> int:
    """Let a worker run jobs for so long, a few thousand waiting at any time; return how many it ran."""
    submitted = 0
    deadline = time.monotonic() + seconds
    with Workers(peer, 1):
        while (left := peer.remaining()) or time.monotonic() < deadline:
            if left < FEED and time.monotonic() < deadline:
                peer.submit("tick", FEED)
                submitted += FEED
            time.sleep(0.02)
    for path in stores.run_dir().glob("*.slot"):
        path.unlink()  # the timed drain starts at nought
    return submitted


def measure(peer: Peer, state: str, rows: int, jobs: int, limit: float, held: int = 0) -> dict[str, Any]:
    """Return jobs a second of the timed jobs."""
    peer.prepare()
    if state != "backlog":
        fill(peer, state, rows)
    stores.settle(peer.store)
    result: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if state == "old_transaction":
            stack.enter_context(stores.old_snapshot(peer.store))
            result["jobs_run_while_held"] = churn(peer, held)
        peer.submit("tick", jobs)
        if state == "backlog":
            fill(peer, state, rows)
        stores.settle(peer.store)
        if state == "pruning":
            stack.enter_context(Commands([module("benchmarks.pruner")], peer.environment()))
            _wait_until_pruning(peer, rows)
        waiting = rows if state in ("backlog", "future") else 0
        before, started = _finished(peer), time.monotonic()
        with Workers(peer, 1) as workers:
            result |= drain(workers, jobs, 1, lambda: max(0, peer.remaining() - waiting), limit)
        if state == "pruning":
            pruned = before + jobs - _finished(peer)
            result["pruned_per_second"] = pruned / (time.monotonic() - started)
    return result


def _finished(peer: Peer) -> int:
    from benchmarks.peers.django_peer import DjangoPeer

    assert isinstance(peer, DjangoPeer)
    return peer.count(TABLE, "status = 'completed'")


def _wait_until_pruning(peer: Peer, rows: int) -> None:
    deadline = time.monotonic() + 30
    while _finished(peer) == rows:
        if time.monotonic() > deadline:
            raise RuntimeError("nothing was pruned")
        time.sleep(0.05)


def main() -> None:
    options = suite.arguments(__doc__ or "", jobs=40_000, limit=30, scale=100, held=20)
    cases = []
    for store in ("postgresql", "sqlite", "mariadb"):
        for state, rows in STATES.items():
            case = {"state": state, "rows": rows * options.scale // 100, "jobs": options.jobs, "limit": options.limit}
            if state != "old_transaction":
                cases.append(Case("django_jobs", store, case))
            elif store == "postgresql":
                cases.append(Case("django_jobs", store, case | {"held": options.held}))
    suite.run("growth", cases, options)


if __name__ == "__main__":
    main()
