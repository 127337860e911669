"""Count the statements of this process's SQLite connections in shared memory, when BENCH_COUNT_STATEMENTS is set."""

import mmap
import os
import struct
import threading
from typing import Any

from django.db.backends.signals import connection_created

from benchmarks import stores

SWITCH = "BENCH_COUNT_STATEMENTS"
COUNT = struct.Struct("=Q")

_lock = threading.Lock()
_slot: mmap.mmap | None = None


def total() -> int:
    """Return the statements of all processes so far."""
    return sum(COUNT.unpack(path.read_bytes())[0] for path in stores.run_dir().glob("*.statements"))


def start() -> None:
    """Count from the next connection on."""
    if SWITCH in os.environ and os.environ["BENCH_STORE"] == "sqlite":
        connection_created.connect(_count, weak=False)


def _count(connection: Any, **kwargs: Any) -> None:
    connection.connection.set_trace_callback(_add)


def _add(statement: str) -> None:
    global _slot
    with _lock:
        if _slot is None:
            path = stores.run_dir() / f"{os.getpid()}.statements"
            path.write_bytes(COUNT.pack(0))
            with open(path, "r+b") as handle:
                _slot = mmap.mmap(handle.fileno(), COUNT.size)
        COUNT.pack_into(_slot, 0, COUNT.unpack_from(_slot)[0] + 1)
