"""What an idle worker process costs: memory of all its processes, and what it asks the database in a second.

PSS counts a shared page once in all; RSS counts it in every process. On PostgreSQL statements are counted when
`pg_stat_statements` is loaded, otherwise transactions (the unit is in the result); MariaDB counts statements, Redis
commands, SQLite nothing.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks import stores, suite
from benchmarks.drain import ENTRIES
from benchmarks.peer import Peer
from benchmarks.suite import Case
from benchmarks.workers import Workers


def measure(peer: Peer, seconds: int) -> dict[str, Any]:
    """Return memory in MiB and statements a second of one worker process that has run a job and waits."""
    peer.prepare()
    submit = peer.submitter("tick")
    with Workers(peer, 1) as workers:
        submit(0)
        deadline = time.monotonic() + 30
        while peer.remaining():
            if time.monotonic() > deadline or workers.all_ended():
                raise workers.complaint("the first job was not run")
            time.sleep(0.05)
        time.sleep(3)
        counts = peer.store.kind != "sqlite"
        before = stores.statements(peer.store) if counts else 0
        time.sleep(seconds)
        after = stores.statements(peer.store) if counts else 0
        pids = workers.pids()
        memory = [_memory(pid) for pid in pids]
    result: dict[str, Any] = {
        "pss_mib": sum(pss for pss, _ in memory) / 1024,
        "rss_mib": sum(rss for _, rss in memory) / 1024,
        "processes": len(pids),
    }
    if counts:
        result["statements_per_second"] = (after - before) / seconds
        result["unit"] = stores.statements_unit(peer.store)
    return result


def _memory(pid: int) -> tuple[int, int]:
    """Return (PSS, RSS) in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return values["Pss"], values["Rss"]


def main() -> None:
    options = suite.arguments(__doc__ or "", seconds=20)
    cases = [Case(peer, store, {"seconds": options.seconds}) for store, peers in ENTRIES.items() for peer in peers]
    suite.run("idle", [case for case in cases if case.peer != "bare"], options)


if __name__ == "__main__":
    main()
