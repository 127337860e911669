"""The writer of logs: what handlers have logged is on record a second later, while they still run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django_jobs.lifecycle import logs

from .loop import Loop
from .state import WorkerState


class LogWriter(Loop):
    """Writes the open logs of this process once a second. The thread starts with the first log: most sites keep none."""

    def __init__(self, state: WorkerState) -> None:
        super().__init__("log writer", state)
        self._starting = threading.Lock()
        self._stop_watching: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Wait for logs to be opened in this process, until stopped."""
        self._stop_watching = logs.watch(self._expect)

    def _expect(self) -> None:
        with self._starting:
            if self.ident is None and not self.is_over:
                self.start()
        self.wake()

    def stop(self) -> None:
        """End the thread after its current step; it is not started any more."""
        with self._starting:
            super().stop()
        self._stop_watching()

    def step(self) -> float | None:
        """Write what is a second old; rest until `wake` when no log is open."""
        if not logs.open_logs:
            return None
        self._stopped.wait(logs.LIVE_SECONDS)  # first: short jobs come and go, and their settle writes their logs
        with self._state.connections.lent():
            logs.write_open()
        return 0.0
