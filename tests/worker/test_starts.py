"""Threads that cannot start as they should: the process works around it, or ends with a message; it never just lives on."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from django_jobs import submit
from django_jobs.models import WorkerProcess
from django_jobs.worker import cleanup
from django_jobs.worker.state import EXIT_CONFIGURATION, EXIT_RECYCLE
from tests.support.processes import ROOT, manage, spawn
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_working_directory_that_cannot_be_opened_is_not_restored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(path: Any, *rest: Any, **options: Any) -> int:
        if path == ".":
            raise PermissionError(13, "Permission denied", path)
        return original(path, *rest, **options)

    monkeypatch.setattr(cleanup.os, "open", refuse)
    bench.handle("t.ok", lambda payload: None)
    assert bench.run(bench.submit("t.ok"), bench.submit("t.ok"), threads=2) == ["completed", "completed"]


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError(24, "Too many open files")])
def test_a_thread_that_breaks_at_its_start_recycles_its_process(
    error: Exception, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: cleanup.HandlerCleanup) -> None:
        raise error

    monkeypatch.setattr(cleanup.HandlerCleanup, "begin", fail)
    process = bench.start()
    wait_until(lambda: process.is_stopping, 60, "the process stops")
    assert process.state.exit_code == EXIT_RECYCLE
    assert "broke" in caplog.text
    process.stop(grace=5)


# A program that starts manage.py as somebody who may not read every directory, as root may: without root's rights to that.
AS_ANYBODY = """
import os, sys
command = [sys.executable, sys.argv[1], *sys.argv[2:]]
if os.geteuid() == 0:
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
os.execvp(command[0], command)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--processes", "1")], ids=["alone", "supervised"])
def test_workers_run_in_a_directory_that_may_not_be_read(arguments: tuple[str, ...], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o111)
    job = submit("effects.record")
    program = ["-c", AS_ANYBODY, str(ROOT / "manage.py")]
    environment = {"PYTHONPATH": str(ROOT)}
    with spawn("runworkers", "--threads", "2", *arguments, program=program, cwd=closed, env=environment) as workers:
        assert job.wait(60).status == "completed"
        assert not os.access(closed, os.R_OK) or os.geteuid() == 0
        workers.terminate()
        assert workers.wait() == 0
    assert workers.output() == ""


# As `ulimit` does: the soft and the hard limit of open files, then manage.py in the same process.
WITH_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
sys.argv = sys.argv[3:]
runpy.run_path("manage.py", run_name="__main__")
"""


def _with_files(soft: int, hard: int) -> list[str]:
    return ["-c", WITH_FILES, str(soft), str(hard), "manage.py"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--processes", "2")], ids=["alone", "supervised"])
def test_too_few_files_for_the_threads_are_refused_at_the_start(arguments: tuple[str, ...]) -> None:
    refused = manage("runworkers", "--threads", "40", "--drain", *arguments, program=_with_files(64, 64))
    assert refused.returncode == EXIT_CONFIGURATION
    assert refused.stderr.startswith("CommandError: 40 threads need ")
    assert refused.stderr.endswith(
        "this process may have 64: raise the limit (ulimit -n, LimitNOFILE in systemd) or lower --threads\n"
    )
    assert not WorkerProcess.objects.exists()


@pytest.mark.slow
def test_a_soft_limit_of_files_is_raised_as_far_as_the_threads_need() -> None:
    jobs = [submit("effects.record") for _ in range(50)]
    drained = manage("runworkers", "--threads", "40", "--drain", program=_with_files(64, 4096))
    assert (drained.returncode, drained.stderr) == (0, "")
    assert {job.wait(0).status for job in jobs} == {"completed"}


def test_a_process_that_runs_out_of_files_later_ends(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A database that cannot be reached for want of a file is no outage, which would be waited for."""
    process = bench.start(threads=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        process.state.backoff.after(OperationalError("unable to open database file"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert process.is_stopping
    assert process.state.exit_code == EXIT_RECYCLE
    # By whoever noticed it first, which may be the process's own thread.
    wait_until(lambda: "Too many open files" in caplog.text, 60, "it is logged")
