"""Start worker processes, watch their clock and stop them: the one stopwatch, the same for every peer."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import stores, work
from benchmarks.peer import Peer

ROOT = Path(__file__).resolve().parent.parent
STALL_SECONDS = 45.0


class Stalled(Exception):
    """The workers made no progress, or ended before their work was done."""


class Commands:
    """Commands that run side by side, each the leader of its own process group, stopped at the end of the block."""

    def __init__(self, commands: list[list[str]], environment: dict[str, str]) -> None:
        self.commands = commands
        self.environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.log = stores.run_dir() / "workers.log"
        self.started: list[subprocess.Popen[bytes]] = []
        self.restarts = True  # whether who looks after them starts others when they end

    def __enter__(self) -> Self:
        with open(self.log, "ab") as log:
            for command in self.commands:
                self.started.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=self.environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ask nicely, then kill each group: nothing of a peer survives its measurement."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 3
        for process in self.started:
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass  # it is killed with its group below
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # the whole group has ended by itself
            process.wait()

    def pids(self) -> list[int]:
        """Return the processes of all groups, children included."""
        groups = {process.pid for process in self.started}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getpgid(int(entry.name)) in groups:
                        found.append(int(entry.name))
                except ProcessLookupError:
                    continue  # it ended while we looked
        return found

    def all_ended(self) -> bool:
        return all(process.poll() is not None for process in self.started)

    def complaint(self, what: str) -> Stalled:
        return Stalled(f"{what}: {self.log.read_text(errors='replace')[-2500:]}")


class Workers(Commands):
    """The worker processes of one peer."""

    def __init__(self, peer: Peer, processes: int) -> None:
        super().__init__(peer.commands(processes), peer.environment())
        self.store = peer.store

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; raise Stalled when the workers end before."""
        while not condition():
            if self.all_ended():
                raise self.complaint("the workers ended")
            time.sleep(0.02)

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the processor time so far of (all worker processes, the PostgreSQL sessions of the store)."""
        return cpu_seconds(self.pids()), cpu_seconds(stores.session_pids(self.store))


def cpu_seconds(pids: list[int]) -> float:
    """Add up user and system time; processes that are gone, or on another machine, count nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def drain(workers: Workers, jobs: int, processes: int, remaining: Callable[[], int], limit: float) -> dict[str, float]:
    """Watch `jobs` jobs being run, for `limit` seconds at most; return the rate and what it was taken from.

    The clock starts when each of the `processes` workers has been seen running a job: what was done by then is not
    counted, so interpreter start-up is left out for everybody. It stops when the store shows no unfinished job, so
    late or batched acknowledgements are counted for everybody; or at the limit, and then only what the store shows as
    finished is counted. So a slow queue faces the same backlog as a fast one, without the wait. Looks are 5 ms apart.
    """
    directory = stores.run_dir()
    began, skipped, seen, cpu = 0.0, 0, 0, (0.0, 0.0)
    moved = time.monotonic()
    while True:
        counts = work.counts(directory)
        done, now = sum(count for _, count in counts), time.monotonic()
        if done != seen:
            seen, moved = done, now
        if not began and len(counts) >= processes:
            began, skipped, cpu = now, done, workers.cpu_seconds()
        if done >= jobs or (began and now - began > limit):
            break
        if now - moved > STALL_SECONDS or workers.all_ended():
            raise workers.complaint(f"stalled at {done} of {jobs} jobs")
        time.sleep(0.005)
    if not began:
        raise workers.complaint(f"only {len(counts)} of {processes} worker processes ran a job")
    moved = now = time.monotonic()
    while (left := remaining()) > 0 and done >= jobs:
        if now - moved > STALL_SECONDS:
            raise workers.complaint(f"all {jobs} jobs ran, but {left} never finished")
        time.sleep(0.005)
        now = time.monotonic()
    counted = jobs - left - skipped
    if counted <= 0:
        raise workers.complaint(f"{done} jobs ran, but none of them finished")
    client, server = (after - before for after, before in zip(workers.cpu_seconds(), cpu, strict=True))
    result = {"jobs_per_second": counted / (now - began), "seconds": now - began, "jobs": counted}
    result["worker_cpu_us"] = 1e6 * client / counted
    return result | ({"server_cpu_us": 1e6 * server / counted} if workers.store.kind == "postgresql" else {})
