"""Does it keep going under pressure? A steady producer and two workers: clean, then something bad, then recovery.

Stress: `idle_in_transaction` (a transaction that has written stays open), `active_readers` (four that read every table again and
again: some snapshot is always old), `high_load` (four times the producer's rate), `burst` (jobs for half a phase at once).
Chaos: `server_restarted` (one session's process is killed, so that the server ends all, recovers and starts again),
`backends_killed` (all sessions of the database, every few seconds), `connections_taken` (all that are left),
`worker_killed` (one of the two, started again), `workers_killed` (each in turn, every few seconds, and started again). A private
server is used, whose autovacuum looks every 5 seconds.

Of each phase: jobs started ÷ jobs submitted, or to be submitted, meanwhile, and the time from submit to start. Dead rows and
sizes are those at the end of the bad phase. A job counts with its first start.
"""

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import private, stores, suite, work
from benchmarks.peer import Peer, module
from benchmarks.suite import Case
from benchmarks.workers import Commands, Workers

PEERS = ("django_jobs", "pgqueuer", "procrastinate", "awa", "graphile_worker", "pg_boss")
READERS = 4
READ_SECONDS = 8.0  # how long a reader keeps its snapshot
STRIKE_SECONDS = 4.0  # between two blows
APART = 100_000_000  # numbers of the jobs of two producers
SIZES = "SELECT SUM(n_dead_tup), SUM(pg_table_size(relid)), SUM(pg_indexes_size(relid)) FROM pg_stat_user_tables"
TABLES = "SELECT relid::regclass::text FROM pg_stat_user_tables"
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@dataclass
class Site:
    """A producer and workers that are started again when they end, and what can be done to them."""

    peer: Peer
    rate: int
    producers: list[Commands] = field(default_factory=list)
    workers: list[Workers] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def add_producer(self, rate: int) -> None:
        first = APART * (len(self.producers) + 1)
        command = module("benchmarks.producer", str(rate), str(first))
        self.producers.append(Commands([command], self.peer.environment()).__enter__())

    def add_worker(self) -> None:
        self.workers.append(Workers(self.peer, 1).__enter__())

    def look_after(self) -> None:
        """Start a producer anew that a broken connection has ended, and a worker, as whoever runs them would."""
        while not self.is_over.wait(0.2):
            for commands in [*self.producers, *self.workers]:
                if commands.all_ended() and commands.restarts:
                    commands.restarts = False
                    if commands in self.workers:
                        self.add_worker()
                    else:
                        self.add_producer(self.rate)

    def close(self) -> None:
        self.is_over.set()
        for commands in [*self.producers, *self.workers]:
            commands.__exit__(None, None, None)


@contextlib.contextmanager
def running(peer: Peer, rate: int) -> Iterator[Site]:
    site = Site(peer, rate)
    keeper = threading.Thread(target=site.look_after, daemon=True)
    try:
        site.add_worker()
        site.add_worker()
        site.add_producer(rate)
        keeper.start()
        yield site
    finally:
        site.is_over.set()
        if keeper.ident:
            keeper.join()
        site.close()


# What is done to it: each returns when the phase is over.


def idle_in_transaction(site: Site, seconds: float) -> None:
    with stores.postgresql(site.peer.store.url) as connection:
        connection.execute("BEGIN; SELECT txid_current()")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


def active_readers(site: Site, seconds: float) -> None:
    end = time.monotonic() + seconds

    def read(place: int) -> None:
        time.sleep(place * READ_SECONDS / READERS)
        while time.monotonic() < end:
            with stores.postgresql(site.peer.store.url) as connection:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
                until = min(end, time.monotonic() + READ_SECONDS)
                while time.monotonic() < until:
                    for (name,) in connection.execute(TABLES).fetchall():
                        connection.execute(f"SELECT COUNT(*) FROM {name}")
                    time.sleep(0.5)

    readers = [threading.Thread(target=read, args=(place,)) for place in range(READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def high_load(site: Site, seconds: float) -> None:
    for _ in range(3):
        site.add_producer(site.rate)
    time.sleep(seconds)
    for producer in site.producers[-3:]:
        producer.restarts = False
        producer.__exit__(None, None, None)


def burst(site: Site, seconds: float) -> None:
    site.peer.submit("tick", int(site.rate * seconds / 2))
    time.sleep(seconds)


def server_restarted(site: Site, seconds: float) -> None:
    import psycopg

    with contextlib.suppress(psycopg.OperationalError), stores.postgresql(site.peer.store.url) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
        connection.execute("SELECT 1")
    time.sleep(seconds)


def backends_killed(site: Site, seconds: float) -> None:
    def strike(number: int) -> None:
        with stores.postgresql(site.peer.store.url) as connection:
            connection.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")

    _strike(strike, seconds)


def connections_taken(site: Site, seconds: float) -> None:
    import psycopg

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(stores.postgresql(site.peer.store.url))
        time.sleep(seconds)


def worker_killed(site: Site, seconds: float) -> None:
    _kill(site.workers[0])
    time.sleep(seconds)


def workers_killed(site: Site, seconds: float) -> None:
    _strike(lambda number: _kill(site.workers[-1 - number % 2]), seconds)


def _strike(blow: Callable[[int], None], seconds: float) -> None:
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        blow(number)
        number += 1
        time.sleep(min(STRIKE_SECONDS, max(0.0, end - time.monotonic())))


def _kill(commands: Commands) -> None:
    for process in commands.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


STRESS = (idle_in_transaction, active_readers, high_load, burst)
CHAOS = (server_restarted, backends_killed, connections_taken, worker_killed, workers_killed)


class Samples:
    """What the store and the stamps show, taken each second in a thread of its own."""

    def __init__(self, peer: Peer) -> None:
        self.rows: list[dict[str, float]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(peer,), daemon=True)

    def __enter__(self) -> "Samples":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _take(self, peer: Peer) -> None:
        while not self._is_over.wait(1.0):
            # One that fails is missing: the server may have no connection left.
            with contextlib.suppress(Exception), stores.postgresql(peer.store.url) as connection:
                dead, table, indexes = (int(value or 0) for value in connection.execute(SIZES).fetchone())
                self.rows.append({"dead_rows": dead, "table_mib": table / 2**20, "index_mib": indexes / 2**20})


def measure(peer: Peer, pressure: str, rate: int, seconds: int) -> dict[str, Any]:
    """Return for each phase how many of the jobs submitted in it started in it, and how late."""
    peer.prepare()
    act = {act.__name__: act for act in (*STRESS, *CHAOS)}[pressure]
    with running(peer, rate) as site, Samples(peer) as samples:
        deadline = time.monotonic() + 30
        while len(work.stamps(stores.run_dir())) < rate:
            if time.monotonic() > deadline:
                raise site.workers[0].complaint("no job has started")
            time.sleep(0.1)
        moments = [time.monotonic()]
        time.sleep(seconds)
        moments.append(time.monotonic())
        act(site, seconds)
        moments.append(time.monotonic())
        worst = dict(samples.rows[-1])
        time.sleep(seconds)
        moments.append(time.monotonic())
        time.sleep(1.0)
    _wait_for_server(peer)
    return _figures(moments, rate) | worst


def _wait_for_server(peer: Peer) -> None:
    """Wait until a server that was restarted serves again: clients that come again at once may have kept it from that."""
    import psycopg

    for _ in range(600):
        with contextlib.suppress(psycopg.OperationalError), stores.postgresql(peer.store.url):
            return
        time.sleep(0.1)


def _figures(moments: list[float], rate: int) -> dict[str, Any]:
    submits = work.submits(stores.run_dir())
    starts = work.stamps(stores.run_dir())
    result: dict[str, Any] = {}
    shares = []
    for name, begin, end in zip(("clean", "pressed", "recovered"), moments, moments[1:], strict=False):
        mine = [number for number, moment in submits.items() if begin <= moment < end]
        waits = sorted(starts[number] - submits[number] for number in mine if number in starts)
        done = sum(begin <= moment < end for number, moment in starts.items() if number in submits)
        shares.append(done / max(len(mine), rate * (end - begin)))  # also of those that could not be submitted
        result[f"{name}_per_second"] = done / (end - begin)
        if len(waits) > 1:  # else nothing that was submitted in this phase has started
            cuts = statistics.quantiles([1000 * each for each in waits], n=100, method="inclusive")
            result |= {f"{name} p50 ms": cuts[49], f"{name} p99 ms": cuts[98]}
    clean, pressed, recovered = shares
    lost = sum(number not in starts for number, moment in submits.items() if moment < moments[-1])
    return {"pressed_of_clean": pressed / clean, "recovered_of_clean": recovered / clean, "not_started": lost} | result


def main() -> None:
    options = suite.arguments(__doc__ or "", rate=200, seconds=20)
    cases = [
        Case(peer, "postgresql", {"pressure": act.__name__, "rate": options.rate, "seconds": options.seconds})
        for act in (*STRESS, *CHAOS)
        for peer in PEERS
    ]
    with private.postgresql(autovacuum_naptime="5s", max_connections=60):
        suite.run("pressure", cases, options)


if __name__ == "__main__":
    main()
