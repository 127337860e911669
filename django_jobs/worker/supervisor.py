"""The supervisor: keeps N worker processes alive, takes back the jobs of a dead one at once, ends them in order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from django.db import Error, connections

from django_jobs.conf import get_settings
from django_jobs.lifecycle.release import release_process
from django_jobs.lifecycle.rescue import rescue_process

from .process import EXIT_CONFIGURATION, EXIT_DRAINED, EXIT_RECYCLE
from .trouble import Trouble

if TYPE_CHECKING:
    from .command import Options

logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.05
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
BOOT_SECONDS = 60.0
KILL_MARGIN = 1.0


class Child:
    """One worker process, seen from its supervisor."""

    def __init__(self, arguments: list[str]) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.popen = subprocess.Popen(  # noqa: S603  our own interpreter and command
            [sys.executable, "-m", "django", "runworkers", *arguments, "--lifeline", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C on the terminal reaches the supervisor alone
            env=environment,
        )
        theirs.close()
        self.started = self.heard_at = time.monotonic()
        self.process_id = ""
        self.left_in_order = False
        self._said = b""

    def listen(self) -> None:
        """Take in what the child said: its name, a byte now and then, a farewell."""
        try:
            while said := self._ours.recv(4096):
                self.heard_at = time.monotonic()
                if not self.process_id:
                    self._said += said
                    name, end, said = self._said.partition(b"\n")
                    if not end:
                        continue
                    self.process_id = name.decode()
                self.left_in_order |= b"!" in said
        except OSError:
            pass

    def close(self) -> None:
        """Let go of the pipe."""
        self._ours.close()


class Supervisor:
    """Runs in the main thread of `runworkers --processes N`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._arguments = _arguments(options)
        self._children: list[Child] = []
        self._restart_at: list[float] = []
        self._pause = FIRST_PAUSE
        self._looked_at = 0.0
        self._trouble = Trouble()
        self._dead: list[tuple[str, bool]] = []
        self._code = EXIT_DRAINED

    def run(self, asked: threading.Event, again: threading.Event) -> int:
        """Keep the children running until asked to stop; return the exit code."""
        assert self._options.processes is not None
        self._restart_at = [0.0] * self._options.processes
        while not asked.is_set() and self._code == EXIT_DRAINED and (self._children or self._restart_at):
            self._start_due()
            self._reap(stopping=False)
            self._end_silent()
            self._take_back()
            asked.wait(LOOK_SECONDS)
        self._stop(again)
        connections.close_all()
        return self._code

    def _start_due(self) -> None:
        now = time.monotonic()
        due = [moment for moment in self._restart_at if moment <= now]
        self._restart_at = [moment for moment in self._restart_at if moment > now]
        for _ in due:
            self._children.append(Child(self._arguments))

    def _reap(self, *, stopping: bool) -> None:
        """Take note of children that ended: rescue what they held, and start the next one, soon or later."""
        for child in list(self._children):
            child.listen()
            code = child.popen.poll()
            if code is None:
                continue
            child.listen()
            child.close()
            self._children.remove(child)
            if child.process_id and not (child.left_in_order and code == EXIT_DRAINED):
                self._dead.append((child.process_id, stopping))
            if not stopping:
                self._replace(child, code)

    def _replace(self, child: Child, code: int) -> None:
        if code == EXIT_CONFIGURATION:
            logger.error("a worker process could not start; see its message above")
            self._code = EXIT_CONFIGURATION
        elif code == EXIT_DRAINED:
            if not self._options.drain:  # an operator asked this one to stop
                self._restart_at.append(time.monotonic() + FIRST_PAUSE)
        elif code == EXIT_RECYCLE:
            self._restart_at.append(0.0)
        else:
            logger.warning(
                "worker process %s ended with %s; starting another", child.process_id or child.popen.pid, code
            )
            self._restart_at.append(time.monotonic() + self._pause_after(child, code))

    def _pause_after(self, child: Child, code: int) -> float:
        """Return the seconds until the next start: none after a kill, longer each time while children fail by themselves."""
        if code < 0 and child.process_id:
            return 0.0  # a start takes longer than any pause that a loop of kills would deserve
        if time.monotonic() - child.started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE
        pause = self._pause
        # One that gives up by itself before it has a name will do so again; one that was killed need not.
        fails_to_boot = not child.process_id and code > 0
        self._pause = min(pause * 1.5, LONGEST_PAUSE if fails_to_boot else 1.0)
        return pause

    def _end_silent(self) -> None:
        """Kill a child none of whose threads got to run for half a lease: its handler holds the interpreter."""
        limit = get_settings().LEASE_SECONDS / 2
        now = time.monotonic()
        was_away = now - self._looked_at > limit / 2  # who was stopped or blocked heard nobody
        self._looked_at = now
        for child in self._children:
            if was_away:
                child.heard_at = now
            silent = now - child.heard_at
            if silent > (limit if child.process_id else max(limit, BOOT_SECONDS)):
                logger.error(
                    "worker process %s has been silent for %.0f seconds and is killed", child.process_id, silent
                )
                child.popen.kill()

    def _take_back(self) -> None:
        """Rescue the jobs of children that died; those that we ended ourselves are released instead."""
        while self._dead:
            process_id, released = self._dead[0]
            try:
                if released:
                    release_process(process_id)
                else:
                    rescue_process(process_id)
            except Error as error:
                self._trouble.after(error)
                connections.close_all()
                return
            self._trouble.over()
            self._dead.pop(0)

    def _stop(self, again: threading.Event) -> None:
        """Ask the children to finish, kill those that do not in time, and only then hand their jobs back."""
        for child in self._children:
            child.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + get_settings().SHUTDOWN_GRACE_SECONDS + KILL_MARGIN
        hurried = False
        while self._children and time.monotonic() < deadline:
            if again.is_set() and not hurried:
                hurried = True
                deadline = min(deadline, time.monotonic() + KILL_MARGIN)
                for child in self._children:
                    child.popen.send_signal(signal.SIGTERM)
            self._reap(stopping=True)
            self._take_back()
            time.sleep(LOOK_SECONDS / 2)
        for child in self._children:
            child.popen.kill()
        for child in self._children:
            child.popen.wait()
        self._reap(stopping=True)
        self._take_back()


def _arguments(options: Options) -> list[str]:
    """Return the command line of a child."""
    # The system checks were made when the supervisor started, and take longer than the rest of a start.
    arguments = ["--skip-checks", "--threads", str(options.threads)]
    for name, value in (
        ("--queues", ",".join(options.queues) if options.queues else None),
        ("--poll-interval", options.poll_interval),
        ("--max-jobs", options.max_jobs),
        ("--max-rss", options.max_rss),
    ):
        if value is not None:
            arguments += [name, str(value)]
    return [*arguments, "--drain"] if options.drain else arguments
