"""Children start as their parent was started: whatever sets Django up, and wherever the parent was called."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_jobs.lifecycle.submit import submit
from django_jobs.models import Attempt, Job, WorkerProcess
from django_jobs.worker.child import start
from tests.support.databases import Database
from tests.support.effects import tasks
from tests.support.in_process import running_process
from tests.support.proc import children
from tests.support.processes import manage, spawn
from tests.support.sites import site_program, write_site
from tests.support.waiting import dump_rows, wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
PROGRAM = site_program('{"LEASE_SECONDS": 60, "BASE_DELAY": 0.05}')
JOBS = """
import os, signal, sys
from django_jobs import job
@job("shop.plain")
def plain(payload):
    return {"pid": os.getpid(), "alone": "--isolated" in sys.argv, "path": os.environ.get("PYTHONPATH")}
@job("shop.isolated", isolation="process")
def isolated(payload):
    return plain(payload)
@job("shop.killer", takes_context=True, max_retries=0)
def killer(context, payload):
    if context.attempt == 1 and context.fence < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(payload)
"""


@pytest.fixture
def site(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of a site whose own program configures it; nothing in the environment names its settings."""
    files = {"shop/jobs.py": JOBS, "site_program.py": PROGRAM, "site_package/__main__.py": PROGRAM}
    write_site(tmp_path, monkeypatch, files)
    return tmp_path


WAYS: dict[str, Callable[[Path], list[str]]] = {
    "script": lambda site: [str(site / "site_program.py")],
    "module": lambda site: ["-m", "site_program"],
    "package": lambda site: ["-m", "site_package"],
    "directory": lambda site: [str(site / "site_package")],
}


def _submit(job_type: str, **options: Any) -> Job:
    return submit(job_type, {}, any_type=True, options=options)


def _result(job: Job) -> dict[str, Any]:
    job.refresh_from_db()
    assert job.status == "completed", dump_rows()
    result: dict[str, Any] = job.result
    return result


@pytest.mark.slow
@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_configures_itself_runs_supervised_isolated_and_suspect_jobs(way: str, site: Path) -> None:
    plain, isolated = (_submit(job_type) for job_type in ("shop.plain", "shop.isolated"))
    suspect = _submit("shop.killer", depends_on=[plain, isolated])  # it takes nobody along
    drained = manage("runworkers", "--processes", "2", "--drain", program=WAYS[way](site))
    assert drained.returncode == 0, drained.stderr
    assert [_result(job)["alone"] for job in (plain, isolated, suspect)] == [False, True, True]
    assert {_result(job)["path"] for job in (plain, isolated, suspect)} == {os.environ["PYTHONPATH"]}
    assert set(Attempt.objects.filter(job=suspect).values_list("outcome", flat=True)) == {"crashed"}


@pytest.mark.slow
@pytest.mark.databases("sqlite")
def test_children_start_although_the_working_directory_is_deleted(site: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    way = [os.path.relpath(site / "site_program.py", gone)]
    with spawn("runworkers", "--processes", "1", program=way, cwd=gone) as workers:
        workers.wait_ready()
        gone.rmdir()
        before = _result(_submit("shop.isolated").wait(60))
        (worker,) = children(workers.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: WorkerProcess.objects.alive().exclude(pid=worker).exists(), 60, "another worker process")
        after = [_submit(job_type) for job_type in ("shop.plain", "shop.isolated")]
        pids = [_result(job.wait(60))["pid"] for job in after]
        workers.terminate()
        assert workers.wait(60) == 0
    assert len({before["pid"], worker, *pids}) == 4


@pytest.mark.slow
def test_a_program_that_runs_no_commands_starts_children_by_djangos_own() -> None:
    result = tasks.isolated.enqueue()
    with running_process():
        job = Job.objects.get(pk=result.id).wait(60)
    assert job.status == "completed", dump_rows()
    assert job.result[0] != os.getpid()


def test_only_the_command_line_of_the_process_itself_tells_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_program", None)
    monkeypatch.setattr(sys, "argv", ["/srv/site/run.py", "import_orders"])
    start.remember_program(["manage.py", "runworkers"])  # as `call_command` and tests have it
    assert start.command("runworkers")[-5:] == ["-m", "django", "runworkers", "--settings", "tests.settings"]


@pytest.mark.slow
def test_an_isolated_job_that_only_this_process_knows_runs_here_and_within_its_timeout(bench: Bench) -> None:
    def loop(payload: dict[str, Any]) -> None:
        while True:
            time.sleep(0.01)

    bench.handle("t.here", lambda payload: os.getpid(), isolation="process")
    bench.handle("t.loop", loop, isolation="process", max_retries=0)
    here, late = bench.submit("t.here"), bench.submit("t.loop", timeout_seconds=0.3)
    assert bench.run(here, late) == ["completed", "dead"]
    assert here.result == os.getpid()
    assert set(late.attempts.values_list("outcome", flat=True)) == {"timed out"}
