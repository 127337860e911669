"""Run the real `manage.py` in processes of its own, and never leave one behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django_jobs.models import WorkerProcess

from .proc import is_alive, with_environment
from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MANAGE = ("manage.py",)
MARK = "JOBS_TEST_SPAWN"  # in the environment of a process and all its descendants, whatever their parent or group


def manage(
    *args: str,
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    program: Sequence[str] = MANAGE,
) -> subprocess.CompletedProcess[str]:
    """Run `manage.py args`, or another program, to its end, on the database under test; return it with its output as text.

    `settings` is its DJANGO_JOBS. After `timeout` seconds it is killed with all it started: AssertionError.
    """
    command, environment = _command(program, args, settings, env)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            stderr.seek(0)
            raise AssertionError(
                f"{' '.join([*program, *args])} still runs after {timeout:g} s\n{stderr.read()}"
            ) from None
        finally:
            _kill_all(process, environment[MARK])
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, stdout.read(), stderr.read())


class Workers:
    """A running `manage.py runworkers` with all its descendants."""

    def __init__(self, process: subprocess.Popen[Any], mark: str, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._mark = mark
        self._log = log
        self._last_output = ""

    def wait_ready(self, processes: int = 1, timeout: float = 60) -> None:
        """Wait until this many of its processes hold a lease; an AssertionError when it ends before."""

        def ready() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(f"runworkers ended with {self._process.returncode}\n{self.output()}")
            leased = WorkerProcess.objects.alive().filter(pid__in=self.pids())
            return leased.count() >= processes

        wait_until(ready, timeout, f"{processes} worker processes; output:\n{self.output()}")

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end and return the exit code (negative: killed by that signal)."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"runworkers still runs after {timeout:g} s\n{self.output()}") from None

    def is_running(self) -> bool:
        """Say whether the process that was started (the supervisor, if there is one) is there."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, and to it alone."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to stop, as an operator does: SIGTERM to the process that was started."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it and all its descendants at once, and see them gone."""
        _kill_all(self._process, self._mark)

    def pids(self) -> list[int]:
        """Return the process numbers of all that live of it, descendants in other process groups included."""
        return _marked(self._process, self._mark)

    def output(self) -> str:
        """Return what it and its descendants have written so far to stdout and stderr."""
        if self._log.exists():
            self._last_output = self._log.read_text(errors="replace")
        return self._last_output


@contextmanager
def spawn_workers(
    *args: str, settings: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Workers]:
    """Start `manage.py runworkers args` on the database under test; see `spawn`."""
    with spawn("runworkers", *args, settings=settings, env=env) as workers:
        yield workers


@contextmanager
def spawn(
    *args: str,
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = MANAGE,
    cwd: Path = ROOT,
) -> Iterator[Workers]:
    """Start `manage.py args`, or another program, on the database under test; in the end kill whatever is left of it.

    `settings` is its DJANGO_JOBS. It has its own session, so a Ctrl-C of the tests does not reach it.
    """
    command, environment = _command(program, args, settings, env)
    with tempfile.TemporaryDirectory(prefix="workers") as directory:
        log = Path(directory) / "output"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=cwd, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        workers = Workers(process, environment[MARK], log)
        try:
            yield workers
        except AssertionError as error:
            error.add_note(f"--- {args[0]} wrote (the last 5,000 characters)\n{workers.output()[-5000:]}")
            raise
        finally:
            workers.kill()
            workers.output()  # kept: its file goes with the directory


def _command(
    program: Sequence[str],
    args: tuple[str, ...],
    settings: Mapping[str, object] | None,
    env: Mapping[str, str] | None,
) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {}), MARK: uuid.uuid4().hex}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed app is not compiled anew by each process either
    if settings is not None:
        environment["DJANGO_JOBS_JSON"] = json.dumps(settings)
    return [sys.executable, *program, *args], environment


def _marked(process: subprocess.Popen[Any], mark: str) -> list[int]:
    """Return the living processes that carry the mark in their environment."""
    own = {process.pid} if process.poll() is None else set()  # it may not have come to its exec yet
    return sorted(own | set(with_environment(f"{MARK}={mark}")))


def _kill_all(process: subprocess.Popen[Any], mark: str) -> None:
    """SIGKILL all that carry the mark, again for what was forked meanwhile, and return when none of them runs."""
    deadline = time.monotonic() + 60
    seen: set[int] = set()
    while alive := {*_marked(process, mark), *filter(is_alive, seen)}:  # a dying process loses its mark first
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen |= alive
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
        if time.monotonic() > deadline:
            raise AssertionError(f"processes {sorted(alive)} survive SIGKILL")
        time.sleep(0.005)
    process.wait()
