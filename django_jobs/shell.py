"""The built-in job type `shell`: run a command in a process group of its own. Off unless SHELL_JOBS is set.

The command runs beside the worker thread and not in a child of `isolation="process"`: it is a process that can be killed already,
and a child would cost an interpreter with the whole site (some 40 MB, a start of 0.3 s, a connection) for each command that runs,
to do nothing but wait. What both have in common, the group and its end, is `worker/child/group.py`.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from types import TracebackType
from typing import Any, Self

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from django_jobs import conf
from django_jobs.exceptions import Fail, InvalidJob, JobsError, TimedOut
from django_jobs.handlers import make_handler, registry
from django_jobs.payloads import encode_result
from django_jobs.worker.child.group import LOOK_SECONDS, ProcessGroup

SHELL = "shell"
TAIL_BYTES = 64 * 1024
ERROR_CHARACTERS = 1_900  # of the tail; errors of jobs are cut at their end, and here the end is what matters
REST_SECONDS = 1.0
# The guard, a member of the group, kills all of it when the pipe ends, which is when the worker process dies.
_SCRIPT = """exec 3<&0 0</dev/null
( trap '' TERM; read _ <&3; kill -KILL 0 ) >/dev/null 2>&1 &
exec 3<&-
exec /bin/sh -c "$1" """


class CommandFailed(JobsError):
    """The command ended with another exit code than 0; the message has the end of what it wrote."""


def run_command(context: Any, payload: dict[str, Any]) -> dict[str, Any]:
    """Run `payload["command"]` with /bin/sh; return its exit code 0 and the last 64 KiB of its stdout and stderr.

    Past the job's timeout, or when the job is cancelled or lost, the whole group gets TERM, and KILL after
    TIMEOUT_GRACE_SECONDS. What still runs of the group when the command ends is killed.
    """
    command = payload.get("command")
    if not isinstance(command, str) or not command.strip():
        raise Fail('the payload of a shell job is {"command": "…"}')
    deadline = context.take_over_deadline()
    with _Command(command) as running:
        while not running.wait(LOOK_SECONDS):
            context.check_cancelled()
            if deadline is not None and time.monotonic() > deadline:
                running.end(conf.get_settings().TIMEOUT_GRACE_SECONDS)
                raise TimedOut(f"the command passed its timeout and was ended{running.last_words()}")
    if code := running.popen.returncode:
        how = f"exit code {code}" if code > 0 else f"killed by {_signal(-code)}"
        raise CommandFailed(f"{how}{running.last_words()}")
    return running.result()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those of real time have no names but the first and the last
        return f"signal {number}"


class _Tail:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, read: bytes) -> None:
        self._bytes += read
        if len(self._bytes) > 2 * TAIL_BYTES:
            del self._bytes[:-TAIL_BYTES]

    def text(self) -> str:
        """Return the tail as text that can be stored."""
        return bytes(self._bytes[-TAIL_BYTES:]).decode("utf-8", "replace").replace("\x00", "\ufffd")


class _Command(ProcessGroup):
    """A command, and the tails of what it writes."""

    def __init__(self, command: str) -> None:
        ending, self._alive = os.pipe()
        try:
            super().__init__(
                ["/bin/sh", "-c", _SCRIPT, "sh", command],
                stdin=ending,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except BaseException:  # too long for the system, say
            os.close(self._alive)
            raise
        finally:
            os.close(ending)
        self._stdout, self._stderr = _Tail(), _Tail()
        self._selector = selectors.DefaultSelector()
        for pipe, tail in ((self.popen.stdout, self._stdout), (self.popen.stderr, self._stderr)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, tail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self.popen.returncode is None:
                self.end(conf.get_settings().TIMEOUT_GRACE_SECONDS)
        finally:
            super().end(0.0)
            os.close(self._alive)
            self._selector.close()
            for pipe in (self.popen.stdout, self.popen.stderr):
                assert pipe is not None
                pipe.close()

    def wait(self, seconds: float) -> bool:
        """Read for at most so many seconds; return whether the command has ended and all it wrote is read."""
        if self._selector.get_map():
            self._read(seconds)
            self.popen.poll()
        elif not super().wait(seconds):  # it closed its output, and may run on
            return False
        if self.popen.returncode is None:
            return False
        self.signal(signal.SIGKILL)  # what it left behind would keep the pipes open
        self._read_rest()
        return True

    def end(self, grace: float) -> None:
        """End the group: TERM, and KILL after `grace` seconds; return when all of it is gone."""
        super().end(grace)
        self._read_rest()

    def _read_rest(self) -> None:
        """Read until the pipes end, which is when the whole group is gone.

        A killed process of a busy machine takes a while to end; a daemon that left the group keeps the pipes open for good.
        """
        deadline = time.monotonic() + REST_SECONDS
        while self._selector.get_map() and time.monotonic() < deadline:
            if not self._read(LOOK_SECONDS) and self.is_gone():
                return

    def _read(self, seconds: float) -> bool:
        """Read once from each pipe that has something within so many seconds; return whether any had."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            read = os.read(key.fd, TAIL_BYTES)
            if read:
                key.data.add(read)
            else:
                self._selector.unregister(key.fileobj)
        return bool(ready)

    def last_words(self) -> str:
        """Return `: ` and the end of what the command wrote, to stderr if it wrote anything there."""
        text = self._stderr.text().strip() or self._stdout.text().strip()
        return f": {text[-ERROR_CHARACTERS:]}" if text else ""

    def result(self) -> dict[str, Any]:
        """Return what the job keeps, cut further when its JSON would be larger than a result may be."""
        stdout, stderr = self._stdout.text(), self._stderr.text()
        while True:
            result = {"exit_code": self.popen.returncode, "stdout": stdout, "stderr": stderr}
            try:
                encode_result(result)
            except InvalidJob:
                stdout, stderr = stdout[len(stdout) // 4 + 1 :], stderr[len(stderr) // 4 + 1 :]
            else:
                return result


def follow_setting(**kwargs: Any) -> None:
    """Register the handler when SHELL_JOBS is on, and forget it when it is off."""
    if kwargs.get("setting", conf.NAME) != conf.NAME:
        return
    try:
        is_on = conf.get_settings().SHELL_JOBS
    except ImproperlyConfigured:
        is_on = False  # the system checks say what is wrong
    if is_on:
        registry.register(make_handler(run_command, SHELL, {"takes_context": True}))
    else:
        registry.forget(SHELL)


setting_changed.connect(follow_setting, dispatch_uid="django_jobs.shell")
