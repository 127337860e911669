"""The tests' own tools, tested: a tool that cannot fail would let everything pass."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from importlib import import_module
from pathlib import Path

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection, connections

from django_jobs.models import DeadLetter, Job
from tests.support import databases, threads
from tests.support.databases import VENDORS, Database
from tests.support.factories import AttemptFactory, DeadLetterFactory, JobDependencyFactory, JobFactory
from tests.support.invariants import check_drained
from tests.support.points import POINTS
from tests.support.proc import is_alive
from tests.support.processes import ROOT, manage, spawn_workers
from tests.support.servers import PrivateServer
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

# --- one run, all databases


def run_pytest(directory: Path, source: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a test file under this suite's conftest and configuration."""
    (directory / "conftest.py").write_text("from tests.conftest import *  # noqa: F403\n")
    (directory / "test_inner.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--rootdir", ".", "-p", "no:cacheprovider"]
    command += ["--basetemp", str(directory / "inner")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBS_TEST_REQ")}
    return subprocess.run(
        [*command, *options, str(directory)],
        cwd=ROOT,
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


ORDER = """
    import pytest
    from django.db import connection, connections

    def tell(request, what):
        with open(request.config.rootpath / LOG, "a") as log:
            log.write(f"{what} {connection.vendor} {connection.settings_dict['NAME']}\\n")

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("number", [1, 2])
    def test_marked(request, number):
        tell(request, "marked")

    def test_by_fixture(request, db):
        tell(request, "fixture")

    @pytest.mark.django_db
    @pytest.mark.databases("sqlite")
    def test_restricted(request):
        tell(request, "restricted")

    def test_without_a_database(request):
        with open(request.config.rootpath / LOG, "a") as log:
            log.write("without - -\\n")
"""


@pytest.mark.slow
def test_a_database_test_runs_once_on_each_database_and_each_is_made_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = run_pytest(
        tmp_path, f"LOG = {str(log)!r}\n" + textwrap.dedent(ORDER), "-n", "0", JOBS_TEST_DATABASES=",".join(VENDORS)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
    reachable = [vendor for vendor in VENDORS if databases.why_unreachable(vendor) is None]
    expected = sorted(["marked", "marked", "fixture"] * len(reachable) + ["restricted", "without"])
    assert sorted(what for what, _, _ in lines) == expected
    used = [(vendor, name) for _, vendor, name in lines if name != "-"]
    turns = [key for place, key in enumerate(used) if place == 0 or used[place - 1] != key]
    assert len(turns) == len(reachable), f"a database was left and made anew: {turns}"
    assert f"databases: {', '.join(f'{vendor} ran' for vendor in reachable)}" in result.stdout


NOWHERE = {
    "JOBS_TEST_POSTGRESQL": "postgresql://postgres:secret@127.0.0.1:1/",
    "JOBS_TEST_DATABASES": "sqlite,postgresql",
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_an_unreachable_server_is_reported_and_the_rest_runs(tmp_path: Path, processes: str) -> None:
    result = run_pytest(tmp_path, "def test_it(db): pass", "-n", processes, **NOWHERE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
    assert "databases: sqlite ran, postgresql not run (JOBS_TEST_POSTGRESQL at 127.0.0.1:1: " in result.stdout
    assert "mariadb not run (not chosen)" in result.stdout
    assert "secret" not in result.stdout


@pytest.mark.slow
def test_an_unreachable_server_that_is_required_is_an_error(tmp_path: Path) -> None:
    for options, env in (((), {"JOBS_TEST_REQUIRE": "1"}), (("--database", "postgresql"), {})):
        result = run_pytest(tmp_path, "def test_it(db): pass", *options, **NOWHERE, **env)
        assert result.returncode == pytest.ExitCode.USAGE_ERROR
        assert "postgresql is required and cannot be used: JOBS_TEST_POSTGRESQL at 127.0.0.1:1" in result.stderr


def test_a_missing_driver_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(databases.DRIVERS, "mariadb", ("no_such_driver", "install it"))
    assert databases.why_unreachable("mariadb") == "install it"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("many_rows", [2, 1000])
def test_emptying_leaves_content_types_and_permissions(monkeypatch: pytest.MonkeyPatch, many_rows: int) -> None:
    monkeypatch.setattr(databases, "MANY_ROWS", many_rows)
    kept = Permission.objects.count(), ContentType.objects.count()
    for name in ("ann", "bob", "eve"):
        user = User.objects.create(username=name)
        LogEntry.objects.create(user=user, action_flag=1, object_repr=name)
    DeadLetterFactory(acknowledged_by=user)
    AttemptFactory(job=JobDependencyFactory().job)
    databases.empty_tables(connection)
    assert not any(model.objects.exists() for model in (User, LogEntry, Job, DeadLetter))
    assert (Permission.objects.count(), ContentType.objects.count()) == kept
    assert all(kept)


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("postgresql", "mariadb")
def test_the_databases_of_dead_runs_are_dropped_and_those_of_living_ones_are_not(database: Database) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    base = databases.server_url(database.vendor)
    leftover = databases.new_url(database.vendor, Path(), base).replace(str(os.getpid()), str(ended.pid))
    databases.create_database(leftover)
    assert leftover.rpartition("/")[2] in databases.drop_leftovers(base)
    assert leftover.rpartition("/")[2] not in databases.drop_leftovers(base)  # others may have left theirs since
    assert User.objects.count() == 0


# --- waiting and threads


@pytest.mark.django_db
def test_wait_until_returns_what_came_and_shows_the_rows_when_nothing_does() -> None:
    answers = iter([0, None, "here"])
    assert wait_until(lambda: next(answers)) == "here"
    attempt = AttemptFactory(job__job_type="shop.settle", job__status="running", job__fence=7, outcome="lease lost")
    with pytest.raises(AssertionError, match=r"waited 0.05 s for the end of days") as failure:
        wait_until(lambda: False, 0.05, "the end of days")
    assert f"job {attempt.job_id} shop.settle running fence=7 retry_count=0" in str(failure.value)
    assert f"attempt {attempt.job_id} #1 lease lost" in str(failure.value)


@pytest.mark.django_db(transaction=True)
def test_threads_run_at_the_same_time_and_close_their_connections() -> None:
    together = threading.Barrier(3)
    wrappers = []

    def work() -> int:
        together.wait(60)
        wrappers.append(connections["default"])
        return User.objects.count()

    assert run_in_threads(work, 3) == [0, 0, 0]
    assert [wrapper.connection for wrapper in wrappers] == [None, None, None]
    assert run_in_threads([lambda: "a", lambda: "b"]) == ["a", "b"]


def test_a_thread_that_fails_fails_the_test() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_threads([lambda: 1, lambda: 1 // 0])


def test_a_thread_that_hangs_is_shown_with_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, released = threading.Event(), threading.Event()
    stacks = threads._stacks

    def wait_for_good() -> None:
        waits.set()
        released.wait(600)

    def stacks_once_one_waits() -> str:
        assert waits.wait(60)
        return stacks()

    monkeypatch.setattr(threads, "_stacks", stacks_once_one_waits)
    with pytest.raises(AssertionError, match=r"threads still run after 0\.1 s[\s\S]*wait_for_good"):
        run_in_threads(wait_for_good, 2, timeout=0.1)
    released.set()


# --- processes and servers


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_a_subprocess_talks_to_the_database_under_test() -> None:
    User.objects.create(username="ann")
    code = "from django.contrib.auth.models import User; from django.conf import settings as s; "
    result = manage("shell", "-c", code + "print(User.objects.get(), s.DJANGO_JOBS)", settings={"LEASE_SECONDS": 2})
    assert result.stdout.splitlines()[-1] == "ann {'LEASE_SECONDS': 2}", result.stderr
    assert manage("no_such_command").returncode == 1


@pytest.mark.slow
def test_a_command_that_hangs_is_killed_with_the_daemons_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import pathlib, subprocess, time
daemon = subprocess.Popen(["sleep", "300"], start_new_session=True)
written = pathlib.Path({str(pid_file)!r} + ".new")
written.write_text(str(daemon.pid))
written.rename({str(pid_file)!r})
time.sleep(300)
"""
    wait = subprocess.Popen.wait

    def wait_once_the_daemon_is_there(process: subprocess.Popen[str], timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        wait_until(pid_file.exists, 60, "the daemon")
        assert is_alive(int(pid_file.read_text()))
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_once_the_daemon_is_there)
    with pytest.raises(AssertionError, match=r"time\.sleep[\s\S]* still runs after 0\.5 s"):
        manage(program=("-c", code), timeout=0.5)
    assert not is_alive(int(pid_file.read_text()))


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_spawned_workers_get_ready_run_jobs_and_leave_no_process() -> None:
    with spawn_workers("--threads", "2") as workers:
        workers.wait_ready()
        assert workers.is_running()
        job = JobFactory(job_type="effects.record", payload={"result": 42})
        wait_until(lambda: Job.objects.get(pk=job.pk).status == "completed", 60, "the job to complete")
        assert Job.objects.get(pk=job.pk).result == 42
        pids = workers.pids()
        workers.terminate()
        assert workers.wait() == 0
    assert pids
    assert not any(map(is_alive, pids))
    check_drained([job.pk], output=workers.output())


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_workers_that_cannot_start_say_so_instead_of_never_getting_ready() -> None:
    with (
        pytest.raises(AssertionError, match=r"runworkers ended with [12]"),
        spawn_workers("--no-such-option") as workers,
    ):
        workers.wait_ready()
    assert "--no-such-option" in workers.output()


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_workers_are_killed_with_all_their_children() -> None:
    with spawn_workers() as workers:
        workers.wait_ready()
        pids = workers.pids()
        workers.kill()
        assert pids
        assert workers.wait() == -signal.SIGKILL
        assert not any(map(is_alive, pids))


@pytest.mark.fault
def test_a_private_server_keeps_its_commits_when_it_is_killed(private_server: PrivateServer) -> None:
    User.objects.create(username="ann")
    private_server.kill()
    with pytest.raises(Exception, match=r"onnect|gone|closed|server"):
        User.objects.count()
    private_server.start()
    connection.close()
    assert User.objects.get().username == "ann"
    private_server.restart()
    connection.close()
    assert User.objects.get().username == "ann"


@pytest.mark.parametrize("point", POINTS)
def test_each_point_where_tests_kill_is_there(point: str) -> None:
    """The tests that kill there are long: a function that was renamed once kept two of them from doing so for days."""
    module, function, _, _ = POINTS[point]
    assert callable(getattr(import_module(module), function))
