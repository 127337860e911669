"""Two sites on one database: neither switches off the other's schedules, nor ends the other's jobs."""

from pathlib import Path

import pytest

from django_jobs.models import DeadLetter, Job, Schedule
from tests.support.processes import ROOT, manage

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = """
from testproject.settings import *
INSTALLED_APPS = [*(app for app in INSTALLED_APPS if app != "testproject.catalogue"), "{app}"]
DJANGO_JOBS = {{**DJANGO_JOBS, **{jobs!r}}}
"""
JOBS = """
from django_jobs import job

@job("{name}.work", queue="{queue}", max_retries={retries})
def work(payload): return "by {name}"

@job("{name}.nightly", every=3600, queue="{queue}")
def nightly(payload): return "by {name}"
"""


class Site:
    """A site of its own: a project whose one app has jobs and schedules."""

    def __init__(self, directory: Path, name: str, **jobs: object) -> None:
        self.name = name
        self.directory = directory
        for package in (f"site_{name}", f"{name}_app"):
            (directory / package).mkdir()
            (directory / package / "__init__.py").touch()
        (directory / f"site_{name}" / "settings.py").write_text(SETTINGS.format(app=f"{name}_app", jobs=jobs))
        self.declare("default")

    def declare(self, queue: str, text: str = JOBS) -> None:
        (self.directory / f"{self.name}_app" / "jobs.py").write_text(
            text.format(name=self.name, queue=queue, retries=5)
        )

    def run(self, *args: str) -> str:
        env = {
            "DJANGO_SETTINGS_MODULE": f"site_{self.name}.settings",
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = manage(*args, env=env, program=("-m", "django"))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    return Site(tmp_path, "a"), Site(tmp_path, "b")


def enabled() -> set[str]:
    return set(Schedule.objects.filter(enabled=True).values_list("name", flat=True))


@pytest.mark.slow
def test_migrate_leaves_the_schedules_of_the_other_site_alone(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for site in (a, b, a, b):
        site.run("migrate", "--verbosity", "0")
    assert enabled() == {"a.nightly", "b.nightly"}
    assert set(Schedule.objects.values_list("name", "site")) == {("a.nightly", "site_a"), ("b.nightly", "site_b")}
    a.declare("default", JOBS.partition('@job("{name}.nightly"')[0])
    a.run("migrate", "--verbosity", "0")
    assert enabled() == {"b.nightly"}


@pytest.mark.slow
def test_workers_end_no_job_of_the_other_site(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for site in sites:
        site.run("migrate", "--verbosity", "0")
    ids = [a.run("jobs", "enqueue", "a.work").strip() for _ in range(2)]
    mine = b.run("jobs", "enqueue", "b.work").strip()
    b.run("runworkers", "--drain")
    assert Job.objects.get(pk=mine).result == "by b"
    assert not Job.objects.filter(pk__in=ids, status="failed").exists()
    assert not DeadLetter.objects.exists()
    Job.objects.filter(pk__in=ids).run_now()
    a.run("runworkers", "--drain")
    assert {job.result for job in Job.objects.filter(pk__in=ids)} == {"by a"}


@pytest.mark.slow
def test_a_site_may_end_what_it_does_not_know_at_once(tmp_path: Path) -> None:
    a, b = Site(tmp_path, "a"), Site(tmp_path, "b", UNKNOWN_TYPE_GRACE_SECONDS=0)
    for site in (a, b):
        site.run("migrate", "--verbosity", "0")
    job_id = a.run("jobs", "enqueue", "a.work").strip()
    b.run("runworkers", "--drain")
    assert Job.objects.get(pk=job_id).status == "failed"
    assert DeadLetter.objects.get().reason == "no handler"


@pytest.mark.slow
def test_a_site_that_ticks_for_the_other_submits_as_that_one_would(sites: tuple[Site, Site]) -> None:
    a, b = sites
    a.declare("reports")
    a.run("migrate", "--verbosity", "0")
    Schedule.objects.filter(name="a.nightly").update(next_run_at="2026-01-01T00:00:00Z")
    b.run("runworkers", "--drain")
    job = Job.objects.get(job_type="a.nightly")
    assert (job.queue, job.status == "failed") == ("reports", False)
    assert enabled() == {"a.nightly", "b.nightly"}


@pytest.mark.slow
def test_sites_in_packages_of_one_name_are_told_apart_by_the_setting(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Site(tmp_path / "one", "a", SITE="one"), Site(tmp_path / "two", "a", SITE="two")
    two.declare("default", JOBS.replace("{name}", "other"))
    for site in (one, two, one, two):
        site.run("migrate", "--verbosity", "0")
    assert enabled() == {"a.nightly", "other.nightly"}
