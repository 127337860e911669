"""The loops of a worker process: threads of one shape, which repeat a step until they are stopped."""

from __future__ import annotations

import threading
from typing import ClassVar

from django.db import Error, connections

from django_jobs.db.connections import discard_connection, work_on
from django_jobs.lifecycle import leases

from .state import WorkerState


class Loop(threading.Thread):
    """A thread that repeats `step()` and closes its connections in the end.

    After a foreseen error it rests as the outage backoff says and goes on; after any other one the process is recycled.
    """

    foreseen: ClassVar[type[Exception]] = Error

    def __init__(self, name: str, state: WorkerState) -> None:
        super().__init__(name=f"{name} {state.id}", daemon=True)
        self._state = state
        self._awake = threading.Event()
        self._stopped = threading.Event()

    def step(self) -> float | None:
        """Do once what the loop is for; return the seconds to rest, or None to rest until `wake`."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread after its current step."""
        self._stopped.set()
        self._awake.set()

    def wake(self) -> None:
        """End the current rest; during a step, leave out the next one. Costs nothing when that is so already."""
        if not self._awake.is_set():
            self._awake.set()

    @property
    def is_over(self) -> bool:
        """Whether no further step is made."""
        return self._stopped.is_set()

    def run(self) -> None:
        """Repeat the step until the loop is over; this is the thread."""
        try:
            work_on(self._state.database)
            leases.limit_waits_of_loop()
            while not self.is_over:
                try:
                    self._awake.wait(self.step())
                    self._awake.clear()
                except self.foreseen as error:
                    discard_connection()
                    self._stopped.wait(self._state.backoff.after(error))
        except BaseException as error:  # a thread that dies without a word would leave a process that only looks alive
            self._state.recycle_after(error)
        finally:
            connections.close_all()
