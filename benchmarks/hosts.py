"""Worker hosts around a private PostgreSQL: start and stop them all, and read what they cost the server."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import network, pooler, private, stores
from benchmarks.peer import Peer
from benchmarks.workers import Commands

TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def hosts_and_server(hosts: int) -> Iterator[None]:
    """Make a network of so many hosts with a PostgreSQL server, and a pooler where there is one, in its middle."""
    with (
        network.network(hosts) as made,
        private.postgresql(made.address, made.subnet) as (pid, port),
        pooler.pooler(made.address, port),
    ):
        os.environ["BENCH_POSTMASTER"] = str(pid)
        yield


def workers_on_hosts(peer: Peer, hosts: int, workers: int, environment: dict[str, str] | None = None) -> Commands:
    """Return so many worker processes, spread over the hosts in turns."""
    here = network.current()
    (command,) = peer.commands(1)
    commands = [here.on_host(number % hosts, command) for number in range(workers)]
    return Commands(commands, environment or {})


def wait_until_registered(running: Commands, workers: int, aliases: Sequence[str] = ("default",)) -> None:
    """Return when every process has its row in each of the databases, and has settled down."""
    from django_jobs.models import WorkerProcess

    deadline = time.monotonic() + 30 + 5 * workers
    while (there := min(WorkerProcess.objects.using(alias).count() for alias in aliases)) < workers:
        if time.monotonic() > deadline or running.all_ended():
            raise running.complaint(f"only {there} of {workers} processes came up")
        time.sleep(0.1)
    time.sleep(1.0)


@dataclass(frozen=True)
class Server:
    """What the server has done so far."""

    commits: int
    wal_bytes: int
    statements: int
    cpu_seconds: float

    def __sub__(self, before: "Server") -> "Server":
        return Server(
            self.commits - before.commits,
            self.wal_bytes - before.wal_bytes,
            self.statements - before.statements,
            self.cpu_seconds - before.cpu_seconds,
        )


def server(place: stores.Store) -> Server:
    """Read the server's counters and the processor time of all its processes."""
    with stores.postgresql(place.admin_url()) as connection:
        sql = "SELECT xact_commit, (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint FROM pg_stat_database WHERE datname = %s"
        commits, wal_bytes = connection.execute(sql, [place.name]).fetchone()
    return Server(commits, wal_bytes, stores.statements(place), tree_seconds(int(os.environ["BENCH_POSTMASTER"])))


def connections(place: stores.Store) -> int:
    """Return the connections to the store, without the one of the benchmark itself."""
    with stores.postgresql(place.admin_url()) as connection:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
        return int(connection.execute(sql, [place.name]).fetchone()[0]) - 1


def tree_seconds(parent: int) -> float:
    """Return the processor time of a process and its children, those that have ended included."""
    own = _fields(Path(f"/proc/{parent}/stat"))
    ticks = sum(int(own[index]) for index in (11, 12, 13, 14))
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = _fields(path)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def _fields(path: Path) -> list[str]:
    return path.read_text().rpartition(")")[2].split()
