"""The supervisor: keeps N worker processes alive, takes back the jobs of a dead one at once, ends them in order."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence

from django_jobs.conf import get_settings

from .bounded import RELEASE_SECONDS
from .child.protocol import Child
from .flag import Flag
from .recovery import Recovery
from .state import EXIT_CONFIGURATION, EXIT_DRAINED, EXIT_RECYCLE

logger = logging.getLogger("django_jobs")
LOOK_SECONDS = 0.05
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
BOOT_SECONDS = 60.0
KILL_MARGIN = 1.0


class SupervisedChild(Child):
    """A worker process, seen from its supervisor."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__("--supervised", arguments)
        self.started = self.heard_at = time.monotonic()
        self.process_id = ""
        self.left_in_order = False

    def listen(self) -> None:
        """Read what the child has sent since."""
        while messages := self.line.receive(0.0):
            self.heard_at = time.monotonic()
            for word, text in messages:
                if word == "hello":
                    self.process_id = text
                elif word == "bye":
                    self.left_in_order = True


class Supervisor:
    """Runs in the main thread of `runworkers --processes N`.

    Args:
        processes: how many children to keep.
        arguments: their command line.
        is_drain: whether a child that has drained is not replaced.
        databases: the aliases of the databases that each child serves; None: that of the routers.
    """

    def __init__(
        self,
        processes: int,
        arguments: Sequence[str],
        *,
        is_drain: bool = False,
        databases: Sequence[str | None] = (None,),
    ) -> None:
        self._arguments = arguments
        self._is_drain = is_drain
        self._children: list[SupervisedChild] = []
        self._restart_at = [0.0] * processes
        self._pause = FIRST_PAUSE
        self._looked_at = 0.0
        self._recoveries = [Recovery(database) for database in databases]
        self._has_started = False
        self._code = EXIT_DRAINED

    def run(self, stop: Flag, stop_now: Flag) -> int:
        """Keep the children running until `stop` is set; return the exit code. `stop_now` cuts their grace short."""
        while not stop.is_set() and self._code == EXIT_DRAINED and (self._children or self._restart_at):
            self._start_due()
            self._reap(is_stopping=False)
            self._end_silent()
            stop.wait(LOOK_SECONDS)
        self._stop(stop_now)
        deadline = time.monotonic() + RELEASE_SECONDS
        for recovery in self._recoveries:
            recovery.finish(max(0.0, deadline - time.monotonic()))
        return self._code

    def _start_due(self) -> None:
        now = time.monotonic()
        due = [moment for moment in self._restart_at if moment <= now]
        self._restart_at = [moment for moment in self._restart_at if moment > now]
        for _ in due:
            try:
                self._children.append(SupervisedChild(self._arguments))
            except OSError as error:  # no process, no memory or no file is free just now
                logger.error("a worker process could not be started: %s", error)
                self._restart_at.append(now + LONGEST_PAUSE)

    def _reap(self, *, is_stopping: bool) -> None:
        """Note the children that ended: their jobs are to be taken back, and each is replaced, soon or later."""
        for child in list(self._children):
            child.listen()
            self._has_started |= bool(child.process_id)
            code = child.popen.poll()
            if code is None:
                continue
            child.listen()
            child.line.close()
            self._children.remove(child)
            if child.process_id and not (child.left_in_order and code == EXIT_DRAINED):
                self._take_back(child, is_stopping=is_stopping)
            if not is_stopping:
                self._replace(child, code)

    def _take_back(self, child: SupervisedChild, *, is_stopping: bool) -> None:
        # A child of several databases has a name in each.
        for recovery, process_id in zip(self._recoveries, child.process_id.split(), strict=True):
            (recovery.release if is_stopping else recovery.rescue)(process_id)

    def _replace(self, child: SupervisedChild, code: int) -> None:
        # Once a child has come up, the command line and the settings are good: a file may be half-written in a deployment.
        if code == EXIT_CONFIGURATION and not self._has_started:
            logger.error("a worker process could not start; see its message above")
            self._code = EXIT_CONFIGURATION
        elif code == EXIT_DRAINED:
            if not self._is_drain:  # an operator asked this one to stop
                self._restart_at.append(time.monotonic() + FIRST_PAUSE)
        elif code == EXIT_RECYCLE and child.left_in_order:
            self._restart_at.append(0.0)
        else:
            logger.warning(
                "worker process %s ended with %s; starting another", child.process_id or child.popen.pid, code
            )
            self._restart_at.append(time.monotonic() + self._pause_after(child, code))

    def _pause_after(self, child: SupervisedChild, code: int) -> float:
        """Return the seconds until the next start: none after a kill, longer each time while children fail by themselves."""
        if code < 0 and child.process_id:
            return 0.0  # a start takes longer than any pause that a loop of kills would deserve
        if time.monotonic() - child.started > STEADY_SECONDS:
            self._pause = FIRST_PAUSE
        pause = self._pause
        # One that gives up by itself before it has a name, or because it broke, will do so again; one that was killed need not.
        fails_to_boot = (not child.process_id and code > 0) or code == EXIT_RECYCLE
        self._pause = min(pause * 1.5, LONGEST_PAUSE if fails_to_boot else 1.0)
        return pause

    def _end_silent(self) -> None:
        """Kill a child none of whose threads got to run for half a lease: its handler holds the interpreter."""
        limit = get_settings().LEASE_SECONDS / 2
        now = time.monotonic()
        was_away = now - self._looked_at > limit / 2  # a supervisor that was stopped or blocked has read nothing
        self._looked_at = now
        for child in self._children:
            if was_away:
                child.heard_at = now
            silent = now - child.heard_at
            if silent > (limit if child.process_id else max(limit, BOOT_SECONDS)):
                logger.error(
                    "worker process %s has been silent for %.0f seconds and is killed",
                    child.process_id or child.popen.pid,
                    silent,
                )
                child.popen.kill()

    def _stop(self, stop_now: Flag) -> None:
        """Ask the children to finish, kill those that do not in time, and only then hand their jobs back.

        The signals go to the children alone: what their handlers have started is theirs to end.
        """
        for child in self._children:
            child.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + get_settings().SHUTDOWN_GRACE_SECONDS + KILL_MARGIN
        is_cut_short = False
        while self._children and time.monotonic() < deadline:
            if stop_now.is_set() and not is_cut_short:
                is_cut_short = True
                deadline = min(deadline, time.monotonic() + KILL_MARGIN)
                for child in self._children:
                    child.popen.send_signal(signal.SIGTERM)
            self._reap(is_stopping=True)
            time.sleep(LOOK_SECONDS / 2)
        for child in self._children:
            child.popen.kill()
        for child in self._children:
            child.popen.wait()
        self._reap(is_stopping=True)
