"""The protocol of a parent and its child, supervised or isolated: a socket pair, one message a line, a word and a text.

- child to parent: `hello NAME` when it is ready, `alive` now and then, `answer TEXT` to an order, `bye` when it leaves in order
- parent to child: `run JSON`, an order

The end of the line says that the other process is gone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

from django_jobs.conf import get_settings
from django_jobs.worker.forks import close_in_children

from .group import ProcessGroup
from .start import command, environment

PULSES_PER_LEASE = 16


class Line:
    """One end of the line. Any thread may send; one at a time receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        close_in_children(end)
        self._buffer = b""
        self.has_ended = False

    @classmethod
    def to_parent(cls, descriptor: int) -> Line:
        """Return the child's end, which its parent has passed on as an open descriptor."""
        os.set_inheritable(descriptor, False)  # a handler's own children must not keep it open
        return cls(socket.socket(fileno=descriptor))

    def send(self, word: str, text: str = "") -> bool:
        """Send a message; return False when the other process is gone."""
        try:
            self._end.sendall(f"{word} {text}\n".encode())
        except OSError:
            self.has_ended = True
        return not self.has_ended

    def receive(self, seconds: float | None = None) -> list[tuple[str, str]]:
        """Return the messages (word, text) that have come; wait at most so many seconds for some, without end for None.

        Empty without any, and for good once `has_ended`.
        """
        self._end.settimeout(seconds)
        try:
            read = self._end.recv(65_536)
            self.has_ended |= not read
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            self.has_ended = True
            return []
        *lines, self._buffer = (self._buffer + read).split(b"\n")
        return [(word, text) for word, _, text in (line.decode().partition(" ") for line in lines)]

    def close(self) -> None:
        """Close this end."""
        self._end.close()


class Child(ProcessGroup):
    """A child process, seen from its parent: `runworkers` with an option that names the child's end of the line."""

    def __init__(self, option: str, arguments: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair()
        self.line = Line(ours)
        try:
            super().__init__(
                # The parent has made the system checks, which take longer than the rest of a start.
                command("runworkers", "--skip-checks", *arguments, option, str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment(),
            )
        except BaseException:
            self.line.close()
            raise
        finally:
            theirs.close()


class Lifeline:
    """The line of a supervised process to its supervisor, seen from the process: reports that it lives, and notices its end.

    Args:
        descriptor: the process's end; None when nobody supervises it.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.is_cut = False
        self._line = None if descriptor is None else Line.to_parent(descriptor)

    def begin(self) -> None:
        """Send from now on that this process lives, also while it waits for a database before it has a name.

        Raises RuntimeError when the system gives no thread for that.
        """
        if self._line is not None:
            threading.Thread(target=self._watch, args=(self._line,), name="lifeline", daemon=True).start()
            threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def hello(self, process_id: str) -> None:
        """Send the name of this process; of several databases the names in each."""
        self._send("hello", process_id)

    def bye(self) -> None:
        """Send that this process leaves in order."""
        self._send("bye")

    def _send(self, word: str, text: str = "") -> None:
        if self._line is not None and not self._line.send(word, text):
            self.is_cut = True

    def _watch(self, line: Line) -> None:
        while not line.has_ended:
            line.receive()
        self.is_cut = True

    def _pulse(self) -> None:
        """Send that no handler holds the interpreter. Whether the database answers is the lease's concern."""
        while not self.is_cut:
            self._send("alive")
            time.sleep(get_settings().LEASE_SECONDS / PULSES_PER_LEASE)
