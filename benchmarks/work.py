"""What a job does in the benchmark, the same for every peer, and the shared-memory clock that sees it run.

Each process that runs jobs owns one slot file `<pid>.slot` in BENCH_DIR: the time of its last run and a count.
A run costs about half a microsecond, for every peer alike.
"""

import asyncio
import mmap
import os
import struct
import threading
import time
from pathlib import Path

SLOT = struct.Struct("=dQ")
SLEEP_SECONDS = 0.010

_pid = 0
_slot: mmap.mmap
_count = 0
_lock = threading.Lock()


def tick(number: int = 1) -> None:
    """Run a no-op job, or a list of so many: count it."""
    global _count
    with _lock:
        if os.getpid() != _pid:
            _open_slot()
        _count += number
        SLOT.pack_into(_slot, 0, time.monotonic(), _count)


def nap() -> None:
    """Run an I/O job: wait 10 ms in a thread or process."""
    time.sleep(SLEEP_SECONDS)
    tick()


async def anap() -> None:
    """Run an I/O job as a coroutine: wait 10 ms."""
    await asyncio.sleep(SLEEP_SECONDS)
    tick()


def stamp(number: int) -> None:
    """Run a latency job: record when job `number` started."""
    now = time.monotonic()
    line = f"{number} {now!r}\n".encode()
    handle = os.open(_directory() / f"{os.getpid()}.stamps", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line)
    os.close(handle)


def counts(directory: Path) -> list[tuple[float, int]]:
    """Return (time of the last run, runs) of each process that ran jobs."""
    found = []
    for path in directory.glob("*.slot"):
        raw = path.read_bytes()
        if len(raw) == SLOT.size:
            last, count = SLOT.unpack(raw)
            if count:
                found.append((last, count))
    return found


def stamps(directory: Path) -> dict[int, float]:
    """Return the time of the first start of each latency job."""
    return _first_times(directory, "*.stamps")


def submits(directory: Path) -> dict[int, float]:
    """Return the time of each submit of the producers."""
    return _first_times(directory, "*.submits")


def _first_times(directory: Path, pattern: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for path in directory.glob(pattern):
        for number, when in (line.split() for line in path.read_text().splitlines()):
            found[int(number)] = min(float(when), found.get(int(number), float("inf")))
    return found


def _new_lock() -> None:
    """A forked child may have copied the lock while another thread held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def _directory() -> Path:
    return Path(os.environ["BENCH_DIR"])


def _open_slot() -> None:
    """Make this process's slot; a forked child gets its own."""
    global _pid, _slot, _count
    path = _directory() / f"{os.getpid()}.slot"
    with open(path, "w+b") as handle:
        handle.write(bytes(SLOT.size))
        handle.flush()
        _slot = mmap.mmap(handle.fileno(), SLOT.size)
    _count = 0
    _pid = os.getpid()
