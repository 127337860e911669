"""A process group: a process with all that it starts, ended as a whole.

Started by `subprocess`, never forked: a fork in a process with threads copies locks that nobody will ever release.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

LOOK_SECONDS = 0.1


class ProcessGroup:
    """A process in a session of its own, and every process it starts, as long as these stay in its group.

    A Ctrl-C on the terminal does not reach it.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.popen = subprocess.Popen(command, start_new_session=True, **options)  # noqa: S603  the callers' own commands

    def wait(self, seconds: float) -> bool:
        """Wait for at most so many seconds; return whether the process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        return self.popen.returncode is not None

    def end(self, grace: float) -> None:
        """End the group: TERM, and KILL after `grace` seconds (at once when that is 0)."""
        if grace and self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            deadline = time.monotonic() + grace
            while (left := deadline - time.monotonic()) > 0 and not self.wait(min(left, LOOK_SECONDS)):
                pass
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass  # all of it is gone
        except PermissionError:  # none of it is ours to signal, or, on macOS, one of it has ended
            with suppress(OSError):
                self.popen.send_signal(number)

    def is_gone(self) -> bool:
        """Say whether no process is left in the group, not even one that has ended and was not waited for."""
        try:
            os.killpg(self.popen.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
