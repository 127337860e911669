"""The supervisor: what a deploy may do to the files under it, what ends it, and how long it waits between starts."""

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_jobs.lifecycle.submit import submit
from django_jobs.models import Job, WorkerProcess
from django_jobs.worker import supervisor
from django_jobs.worker.flag import Flag
from django_jobs.worker.state import EXIT_CONFIGURATION, EXIT_DRAINED, EXIT_RECYCLE
from django_jobs.worker.supervisor import FIRST_PAUSE, LONGEST_PAUSE, SupervisedChild, Supervisor
from tests.support.proc import children
from tests.support.processes import Workers, manage, spawn
from tests.support.sites import site_program, write_site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
NOW = 0.0  # of a clock that stands still
PROGRAM = site_program("shop_settings.JOBS", "import shop_settings")
JOBS = """
import os
from django_jobs import job
@job("shop.who")
def who(payload):
    return {"pid": os.getpid(), "version": VERSION}
VERSION = 1
"""
SETTINGS = 'JOBS = {"LEASE_SECONDS": 60, "BASE_DELAY": 0.05}\n'
# What a deploy leaves for a moment: half a file, a module that is not there yet, one that raises.
BROKEN = {
    "half a file": ("shop/jobs.py", "@job('shop.who'\ndef who(payl"),
    "a missing module": ("shop/jobs.py", "import shop.not_there_yet\n"),
    "an error at import": ("shop/jobs.py", "raise RuntimeError('not yet')\n"),
    "an app that is gone": ("shop/__init__.py", "raise ImportError('not yet')\n"),
    "half the settings": ("shop_settings.py", "JOBS = {"),
    "wrong settings": ("shop_settings.py", 'JOBS = {"LEASE_SECONDS": -1}\n'),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of a site with its own program, settings and jobs."""
    files = {"site_program.py": PROGRAM, "shop_settings.py": SETTINGS, "shop/jobs.py": JOBS}
    write_site(tmp_path, monkeypatch, files)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


@contextmanager
def supervised(site: Path, *arguments: str) -> Iterator[Workers]:
    with spawn("runworkers", "--threads", "1", *arguments, program=[str(site / "site_program.py")]) as workers:
        yield workers


def _alive() -> set[int]:
    return set(WorkerProcess.objects.alive().values_list("pid", flat=True))


def _result() -> dict[str, Any]:
    job: Job = submit("shop.who", {}, any_type=True, options={}).wait(60)
    assert job.status == "completed"
    result: dict[str, Any] = job.result
    return result


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.databases("sqlite")
def test_a_child_that_cannot_be_imported_for_a_moment_is_started_again_until_it_can(what: str, site: Path) -> None:
    name, broken = BROKEN[what]
    good = (site / name).read_text()
    with supervised(site, "--processes", "2") as workers:
        workers.wait_ready(2)
        healthy, victim = sorted(_alive())
        (site / name).write_text(broken)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "ended with 1" in workers.output(), 60, "a start that failed")
        assert healthy in children(workers.pid), "its sibling lives"
        assert _result() == {"pid": healthy, "version": 1}
        (site / name).write_text(good.replace("VERSION = 1", "VERSION = 2"))
        wait_until(lambda: len(_alive() - {victim}) == 2, 60, "the child that comes back")
        assert workers.is_running()
        os.kill(healthy, signal.SIGTERM)
        wait_until(lambda: healthy not in _alive(), 60, "the sibling has left")
        assert _result()["version"] == (2 if name == "shop/jobs.py" else 1), "the new code runs"
        workers.terminate()
        assert workers.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.databases("sqlite")
def test_what_is_wrong_at_the_first_start_ends_it_with_a_message(what: str, site: Path) -> None:
    name, broken = BROKEN[what]
    (site / name).write_text(broken)
    refused = manage("runworkers", "--processes", "2", program=[str(site / "site_program.py")])
    assert refused.returncode == EXIT_CONFIGURATION
    assert refused.stderr
    assert not WorkerProcess.objects.exists()


@pytest.mark.slow
@pytest.mark.databases("sqlite")
def test_a_wrong_command_line_ends_it_with_a_message(site: Path) -> None:
    program = [str(site / "site_program.py")]
    refused = manage("runworkers", "--processes", "2", "--queues", "nowhere", program=program)
    assert (refused.returncode, refused.stderr.count("\n")) == (EXIT_CONFIGURATION, 1)
    assert "the queue 'nowhere'" in refused.stderr
    assert manage("runworkers", "--processes", "2", "--threads", "0", program=program).returncode == 2


class Refused:
    """Stands in for a child whose first start the system refuses; the second one drains at once."""

    starts = 0

    def __init__(self, arguments: Sequence[str]) -> None:
        type(self).starts += 1
        if self.starts == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self.process_id, self.left_in_order = "p", True
        self.popen = SimpleNamespace(pid=1, poll=lambda: EXIT_DRAINED)
        self.line = SimpleNamespace(close=lambda: None)

    def listen(self) -> None:
        """Nothing is sent."""


@pytest.mark.databases("sqlite")
def test_a_child_that_the_system_cannot_start_just_now_is_started_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "SupervisedChild", Refused)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(Refused, "starts", 0)
    with caplog.at_level("ERROR", "django_jobs"):
        assert Supervisor(1, [], is_drain=True).run(Flag(), Flag()) == EXIT_DRAINED
    assert Refused.starts == 2
    (told,) = caplog.messages
    assert told.startswith("a worker process could not be started: ")
    assert "Resource temporarily unavailable" in told


class TestItsPauses:
    """How long it waits after children that ended, without any being started."""

    @pytest.fixture(autouse=True)
    def _time_stands_still(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: NOW))

    def pauses(self, code: int, *, process_id: str = "", in_order: bool = False, times: int = 20) -> list[float]:
        """Return the pauses after so many children that ended with this code one after the other."""
        ours = Supervisor(0, [])
        child = SupervisedChild.__new__(SupervisedChild)
        child.process_id, child.left_in_order, child.popen = process_id, in_order, SimpleNamespace(pid=1)
        child.started = NOW
        ours._has_started = True
        found = []
        for _ in range(times):
            ours._replace(child, code)
            (moment,) = ours._restart_at
            ours._restart_at.clear()
            found.append(max(NOW, moment))
        return found

    def test_children_that_cannot_start_are_started_ever_more_seldom(self) -> None:
        pauses = self.pauses(EXIT_CONFIGURATION)
        assert pauses[0] == FIRST_PAUSE
        assert pauses == sorted(pauses)
        assert pauses[-1] == LONGEST_PAUSE

    def test_so_are_those_whose_threads_break(self) -> None:
        assert self.pauses(EXIT_RECYCLE, process_id="p")[-1] == LONGEST_PAUSE

    def test_one_that_is_recycled_in_order_is_replaced_at_once(self) -> None:
        assert set(self.pauses(EXIT_RECYCLE, process_id="p", in_order=True)) == {0.0}

    def test_one_that_is_killed_is_replaced_at_once(self) -> None:
        assert set(self.pauses(-signal.SIGKILL, process_id="p")) == {0.0}
