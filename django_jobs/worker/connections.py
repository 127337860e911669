"""The connections of a worker process: whichever thread claims, settles or does a chore does it over one of these.

A thread has a connection of its own for its handlers only, opened when one of them first uses the database. So the connections
of a process do not grow with its threads as long as its handlers leave the database alone. There are two, because one thread
claims while another settles, and each has one user at a time. One that is in use for long, as by a chore with much to do or a
statement that is stuck, does not count: the others open another. Long is what is more than the usual: on a server that is busy
each use is, and to open connections would only make it busier. What was opened is kept until nobody needs it for a while.

On SQLite each thread uses its own connection for all: there is no server to be spared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_jobs.db.connections import MOST_SHARED, discard, is_cut, is_stuck, jobs_connection, shared
from django_jobs.lifecycle import leases

USUAL_NUMBER = 2
PATIENCE_SECONDS = 0.1  # how long one of them may be in use, and others may wait for it, before another is opened
MOST_PATIENCE_SECONDS = 1.0
IDLE_SECONDS = 10.0  # a connection that nobody has used for so long is closed; of these the last one stays
SPARE_SECONDS = 2.0  # the same of those above the usual number
FRESH_SECONDS = 1.0  # how long ago a use may be for nobody to ask whether the connection was cut since


class ProcessConnections:
    """Lends connections to the threads of one process, between `open` and `close`.

    Args:
        process_id: the name of the process, which its sessions bear.
    """

    def __init__(self, process_id: str) -> None:
        self._process_id = process_id
        self._condition = threading.Condition()
        self._free: list[tuple[BaseDatabaseWrapper, float]] = []  # with the time of the last use, the latest one last
        self._lent: dict[BaseDatabaseWrapper, float] = {}  # with the time since when
        self._usual_seconds = 0.0
        self._is_open = False

    def open(self) -> None:
        """Lend connections from now on."""
        self._is_open = True

    def close(self) -> None:
        """Close the connections, those that are lent when they come back; whoever asks from now on uses his own."""
        with self._condition:
            self._is_open = False
            free, self._free = self._free, []
        for connection, _ in free:
            discard(connection)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let this thread use one of these for all that it does on the jobs' database in the block, and no own one.

        A caller in a transaction goes on in it. A connection that is broken, or was left in a transaction, is closed.
        """
        own = jobs_connection()
        if not self._is_open or own.vendor == "sqlite" or own.in_atomic_block or own in shared:
            yield
            return
        connection = self._take()
        connections[own.alias] = connection
        is_well = False
        try:
            yield
            is_well = connection.connection is None or not is_stuck(connection)
        finally:
            connections[own.alias] = own
            self._give_back(connection, is_well)

    @property
    def _patience(self) -> float:
        return max(PATIENCE_SECONDS, min(MOST_PATIENCE_SECONDS, 4 * self._usual_seconds))

    def _take(self) -> BaseDatabaseWrapper:
        now = time.monotonic()
        patience = self._patience
        deadline = now + patience
        with self._condition:
            while not self._free and now < deadline and len(counting := self._counting(now, patience)) >= USUAL_NUMBER:
                self._condition.wait(min(deadline, min(counting) + patience) - now)
                now = time.monotonic()
            if self._free:
                connection, used_at = self._free.pop()
            else:
                connection, used_at = leases.new_shared_connection(self._process_id), now
            self._lent[connection] = now
        if now - used_at > FRESH_SECONDS and is_cut(connection):
            discard(connection)
        return connection

    def _counting(self, now: float, patience: float) -> list[float]:
        """Return since when those are lent that will soon be back: for less than the patience."""
        return [since for since in self._lent.values() if now - since < patience]

    def _longest_rest(self, now: float) -> float:
        is_usual = len(self._counting(now, self._patience)) + len(self._free) <= USUAL_NUMBER
        return IDLE_SECONDS if is_usual else SPARE_SECONDS

    def _give_back(self, connection: BaseDatabaseWrapper, is_well: bool) -> None:
        if not is_well:
            discard(connection)
        if settings.DEBUG:
            connection.queries_log.clear()
        now = time.monotonic()
        surplus = []
        with self._condition:
            seconds = min(MOST_PATIENCE_SECONDS, now - self._lent.pop(connection))
            self._usual_seconds += (seconds - self._usual_seconds) / 16
            if self._is_open and len(self._counting(now, self._patience)) + len(self._free) < MOST_SHARED:
                self._free.append((connection, now))
            else:
                surplus.append(connection)
            while len(self._free) > 1 and now - self._free[0][1] > self._longest_rest(now):
                surplus.append(self._free.pop(0)[0])
            self._condition.notify()
        for one in surplus:
            discard(one)
