"""Two neighbouring versions on one database: the wheel of the commit before and that of this tree, a worker of each.

`LEGS=rolling .ci/matrix` runs it; JOBS_TEST_BEFORE names another commit than the one before.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from django_jobs.models import Attempt, Job, WorkerProcess
from tests.support.databases import Database
from tests.support.waiting import dump_rows, wait_until

from .test_wheel import ROOT, run

pytestmark = [pytest.mark.load, pytest.mark.django_db(transaction=True)]
BEFORE, AFTER = "before", "after"
MIGRATION = "django_jobs/migrations/0001_initial.py"
SETTINGS = """
import os
from database import database_from_url
SECRET_KEY, USE_TZ = "x", True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_jobs", "shop"]
DATABASES = {"default": database_from_url(os.environ["DATABASE_URL"])}
DJANGO_JOBS = {"LEASE_SECONDS": 4, "BASE_DELAY": 0.05, "MAX_DELAY": 0.1}
"""
JOBS = """
import os, time
from django_jobs import job

@job("shop.who", takes_context=True)
def who(context, payload):
    time.sleep(payload.get("seconds", 0) if context.fence == 1 else 0)  # a crash is no attempt of the handler's
    if payload.get("fails") and context.attempt == 1:
        raise ValueError("once")
    return os.environ["SIDE"]
"""
SUBMIT = """
import json, os, sys, django
django.setup()
from django_jobs import submit
last = None
for payload in json.loads(sys.argv[1]):
    last = submit("shop.who", payload, depends_on=[last] if last and payload.get("waits") else [])
"""


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Install the wheel of each version into an environment of its own; give their interpreters."""
    scratch = tmp_path_factory.mktemp("versions")
    before = os.environ.get("JOBS_TEST_BEFORE", "HEAD~1")
    trees = {name: scratch / name for name in (BEFORE, AFTER)}
    trees[BEFORE].mkdir()
    archive = subprocess.run(["git", "archive", before], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", trees[BEFORE]], input=archive, check=True)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (trees[AFTER] / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, trees[AFTER] / name)
    if (trees[BEFORE] / MIGRATION).read_bytes() != (trees[AFTER] / MIGRATION).read_bytes():
        pytest.skip("the tables differ: the initial migration is edited until 1.0, and frozen from then on")
    drivers = ["mysqlclient"] if find_spec("MySQLdb") else []
    pythons = {}
    for name, tree in trees.items():
        run(sys.executable, "-m", "venv", scratch / f"{name}-venv")
        pythons[name] = scratch / f"{name}-venv/bin/python"
        run(pythons[name], "-m", "pip", "install", "-q", f"{tree}[postgres]", *drivers)
    return pythons


class Site:
    """A site that both versions serve."""

    def __init__(self, folder: Path, pythons: dict[str, Path], url: str) -> None:
        (folder / "shop").mkdir()
        for name, text in {
            "settings.py": SETTINGS,
            "shop/jobs.py": JOBS,
            "shop/__init__.py": "",
            "submit.py": SUBMIT,
        }.items():
            (folder / name).write_text(text)
        shutil.copy(ROOT / "testproject/database.py", folder)
        self._folder, self._pythons = folder, pythons
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "DJANGO_SETTINGS_MODULE": "settings", "DATABASE_URL": url, "PYTHONPATH": str(folder),
        }  # fmt: skip

    def run(self, side: str, *command: str) -> str:
        """Run Python with a version to its end; return what it wrote."""
        done = subprocess.run(
            [self._pythons[side], *command], cwd=self._folder, env=self._environment | {"SIDE": side},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, side: str, *payloads: dict[str, object]) -> None:
        self.run(side, "submit.py", json.dumps(payloads))

    @contextmanager
    def worker(self, side: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a worker of a version, until it has ended in order or was killed."""
        with (self._folder / f"{side}.log").open("ab") as log:
            process = subprocess.Popen(
                [self._pythons[side], "-m", "django", "runworkers", "--threads", "2"], cwd=self._folder,
                env=self._environment | {"SIDE": side}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_until(lambda: process.pid in WorkerProcess.objects.alive().values_list("pid", flat=True), what=side)
            yield process
            process.terminate()
            assert process.wait(120) in (0, -signal.SIGKILL), (self._folder / f"{side}.log").read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path, pythons: dict[str, Path], database: Database) -> Site:
    site = Site(tmp_path, pythons, database.url)
    where = {side: site.run(side, "-c", "import django_jobs; print(django_jobs.__file__)") for side in pythons}
    assert "before-venv" in where[BEFORE]
    assert "after-venv" in where[AFTER]
    return site


def all_are_over() -> bool:
    return not Job.objects.live().exists()


def test_workers_of_both_versions_share_jobs_that_either_submits(site: Site) -> None:
    for side in (BEFORE, AFTER):
        site.run(side, "-m", "django", "migrate", "-v0")
    payloads = [{"seconds": 0.02, "fails": n % 10 == 0, "waits": n % 5 != 0} for n in range(100)]
    with site.worker(BEFORE), site.worker(AFTER):
        for side in (BEFORE, AFTER):
            site.submit(side, *payloads)
        wait_until(all_are_over, 240, "all jobs")
    assert set(Job.objects.values_list("status", flat=True)) == {"completed"}, dump_rows()
    assert set(Job.objects.values_list("result", flat=True)) == {BEFORE, AFTER}
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"failed"}
    assert Attempt.objects.count() == 20, "each that failed once, and nothing ran twice"
    assert not WorkerProcess.objects.exists(), "both have left in order"
    for side in (BEFORE, AFTER):
        site.run(side, "-m", "django", "jobs", "check")


@pytest.mark.parametrize(("first", "then"), [(BEFORE, AFTER), (AFTER, BEFORE)])
def test_each_version_takes_back_what_a_killed_worker_of_the_other_held(site: Site, first: str, then: str) -> None:
    site.submit(first, {"seconds": 600})
    with site.worker(first) as killed:
        wait_until(lambda: Job.objects.get().status == "running", what="the job runs")
        killed.kill()
        with site.worker(then):
            wait_until(all_are_over, 120, "the job")
    job = Job.objects.get()
    assert (job.status, job.result) == ("completed", then), dump_rows()
    assert list(job.attempts.values_list("outcome", flat=True)) == ["crashed"]
