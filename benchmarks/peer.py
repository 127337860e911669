"""What the benchmark asks of each job queue: the one interface that every file in `peers/` fills in."""

import importlib
import importlib.metadata
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from benchmarks.stores import Store

PEERS = (
    "django_jobs",
    "bare",
    "pgqueuer",
    "chancy",
    "procrastinate",
    "awa",
    "graphile_worker",
    "pg_boss",
    "django_ox",
    "django_tasks_db",
    "huey",
    "dramatiq",
    "taskiq",
    "celery",
    "rq",
)
JOBS = ("tick", "nap", "anap", "stamp")  # functions of benchmarks.work


class Peer(ABC):
    """One job queue on one store, at its best documented setting.

    `load` is "noop" (drain, latency, idle), "io" (jobs that wait in threads) or "async" (jobs that wait as coroutines).
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    stores: ClassVar[tuple[str, ...]]
    settings: ClassVar[str]
    bulk: ClassVar[str] = "one by one: it has no bulk call"

    def __init__(self, store: Store, load: str = "noop") -> None:
        self.store = store
        self.load = load

    @property
    def concurrency(self) -> int:
        """Jobs at a time in one process for I/O jobs; the no-op setting is each adapter's own."""
        return int(os.environ.get("BENCH_CONCURRENCY", "32"))

    @abstractmethod
    def prepare(self) -> None:
        """Make tables and queues in the empty store."""

    def connect(self) -> None:  # noqa: B027  for most there is nothing to do
        """Make ready to submit in another process than the one that prepared the store."""

    @abstractmethod
    def submit(self, job: str, count: int) -> None:
        """Submit `count` jobs of one kind the fastest documented way, in as few calls as that takes."""

    @abstractmethod
    def submitter(self, job: str) -> Callable[[int], object]:
        """Return a function that submits one job, numbered, and returns once it is safely stored."""

    @abstractmethod
    def commands(self, processes: int) -> list[list[str]]:
        """Return the command lines that start `processes` worker processes in all."""

    @abstractmethod
    def remaining(self) -> int:
        """Return how many jobs the store holds that are not finished."""

    def environment(self) -> dict[str, str]:
        """Return environment variables for the workers."""
        return {}

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.packages}


def load_peer(name: str) -> type[Peer]:
    """Return the adapter class of `benchmarks/peers/<name>.py`. Raises ImportError when the peer is not installed."""
    return importlib.import_module(f"benchmarks.peers.{name}").Adapter  # type: ignore[no-any-return]


def script(name: str, *arguments: str) -> list[str]:
    """Return the command line of a console script in the running virtual environment."""
    return [os.path.join(os.path.dirname(sys.executable), name), *arguments]


def module(name: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module with the running interpreter."""
    return [sys.executable, "-m", name, *arguments]
