"""How many files a worker process needs open at once, and whether it may have so many."""

from __future__ import annotations

import os
import resource

from django_jobs.db.connections import jobs_connection

BESIDE_THREADS = 6  # connections of a process besides one a thread: those of its loops and of its main thread
SPARE = 16  # for what handlers open, at the very least
# The database, its write-ahead log and that one's index; a socket, and psycopg's selector while it connects; elsewhere a socket.
FILES_PER_CONNECTION = {"sqlite": 3, "postgresql": 2}


def make_room(threads: int, databases: int = 1) -> str:
    """Let this process open the files that so many worker threads need, for each database; return what is wrong when it may not.

    The soft limit is raised as far as needed, which nobody else notices. Without room a thread could neither connect nor start,
    and the process would wait for a database that is there.
    """
    needed = files_needed(threads, databases)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return ""
    if hard != resource.RLIM_INFINITY and hard < needed:
        return (
            f"{threads} threads need {needed} open files, and this process may have {hard}:"
            " raise the limit (ulimit -n, LimitNOFILE in systemd) or lower --threads"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return ""


def files_needed(threads: int, databases: int = 1) -> int:
    """Return how many files a process with so many worker threads has open at once: a connection and the directory each."""
    each = FILES_PER_CONNECTION.get(jobs_connection().vendor, 1)
    return _open_files() + databases * ((threads + BESIDE_THREADS) * each + threads) + SPARE


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:  # a system without it; so many are the interpreter's and Django's own
        return 16
