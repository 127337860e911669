"""`runworkers` in a terminal: one live line, Ctrl-C, and code that changes while it runs."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import django_jobs
from django_jobs.lifecycle import leases
from django_jobs.lifecycle.claim import claim
from django_jobs.models import Job, WorkerProcess
from tests.support.processes import ROOT
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]


class Terminal:
    """A program in a terminal of its own, and what it has written there."""

    def __init__(self, *args: str, env: dict[str, str] | None = None) -> None:
        self._us, its = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", *args],
            stdin=its, stdout=its, stderr=its, cwd=ROOT, env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
        os.close(its)
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the end of the terminal's last program
            while data := os.read(self._us, 4096):
                self.written += data

    def interrupt(self) -> None:
        """Do what Ctrl-C does: SIGINT to all in the terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        os.close(self._us)


@contextmanager
def terminal(*args: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    one = Terminal(*args, env=env)
    try:
        yield one
    except AssertionError as error:
        error.add_note(one.written.decode(errors="replace")[-5000:])
        raise
    finally:
        one.close()


def is_ready() -> bool:
    return WorkerProcess.objects.alive().exists()


def test_the_live_line_is_one_line_below_what_has_started() -> None:
    with terminal("runworkers") as one:
        wait_until(lambda: one.written.count(b"\r\x1b[K") >= 4, 60, "four looks")
        one.interrupt()
        assert one.process.wait(60) == 0
        line = one.written[one.written.index(b"\r\x1b[K") :]
        assert one.written.startswith(b"worker process ")
        assert b" 4 threads; Ctrl-C stops it\r\n" in one.written
    assert line.count(b"\n") == 1
    assert line.endswith(b" jobs/s\r\n")


def test_who_drains_a_queue_is_told_of_what_others_run() -> None:
    leases.register("other", queues=[], threads=1)
    django_jobs.submit("effects.record")
    claim("default", 1, "other")
    with terminal("runworkers", "--drain") as one:
        assert one.process.wait(60) == 0
        wait_until(lambda: b"1 still running in other processes" in one.written, 10, "a word about it")


def test_control_c_ends_a_worker_under_the_reloader() -> None:
    with terminal("runworkers", "--reload") as one:
        wait_until(is_ready, 60, "a worker")
        one.interrupt()
        assert one.process.wait(60) == 0
        assert b"Traceback" not in one.written
    assert not WorkerProcess.objects.exists()


def _change(code: Path) -> None:
    """Give a file the time of this second: the reloader sees what changes after its first look, and does not say when that is."""
    now = int(time.time())
    os.utime(code, (now, now))


def test_a_change_of_code_hands_back_what_runs_and_starts_the_worker_anew(tmp_path: Path) -> None:
    code = tmp_path / "changed.py"
    code.write_text("from tests.settings import *\n")
    job = django_jobs.submit("effects.sleep", {"seconds": 600})
    env = {"DJANGO_SETTINGS_MODULE": "changed", "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    with terminal("runworkers", "--reload", env=env) as one:
        runs = Job.objects.filter(pk=job.pk, status="running")
        wait_until(runs.exists, 60, "the job's run")
        before = runs.get().worker_id
        wait_until(lambda: _change(code) or runs.exclude(worker_id=before).exists(), 60, "its run on a new process")
        assert not WorkerProcess.objects.filter(pk=before).exists()
        assert b"Traceback" not in one.written
