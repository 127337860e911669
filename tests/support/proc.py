"""What /proc says about processes, those of others and those that nobody waits for included."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Say whether the process runs; one that ended and was not waited for does not."""
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the processes that this one started and that have not been given to another parent."""
    found = []
    for other in _all():
        with suppress(OSError):
            if int(_stat(other)[1]) == pid:
                found.append(other)
    return found


def with_environment(entry: str) -> list[int]:
    """Return the processes that were started with `NAME=value` in their environment."""
    found = []
    for pid in _all():
        with suppress(OSError):  # it ended, or it is not ours to read
            if entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _all() -> list[int]:
    return [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Return the state, the parent's number and what follows them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Usage:
    """What one process holds now."""

    megabytes: float
    threads: int
    descriptors: int


def usage(pid: int) -> Usage:
    """Return the resident memory, the threads and the open descriptors of a process; raise OSError when it is gone."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Usage(
        megabytes=int(status["VmRSS"].split()[0]) / 1024,
        threads=int(status["Threads"]),
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
    )
