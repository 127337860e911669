"""The schedules of the demo site: a scan each night, and every ten minutes a count of what has changed."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from django_jobs.models import Job, Schedule
from django_jobs.scheduling import spec
from django_jobs.scheduling.store import sync_declared
from django_jobs.scheduling.ticks import run_schedule_now
from testproject.catalogue import jobs
from testproject.catalogue.models import Scan, SourceFile
from tests.support.processes import manage

pytestmark = pytest.mark.django_db


@pytest.fixture
def _declared(monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    monkeypatch.setattr(spec, "_declared", {})
    jobs.declare_schedules()
    sync_declared()


@pytest.fixture
def scanned(tmp_path: Path) -> Scan:
    """A folder with four files, scanned a minute ago."""
    scan = Scan.objects.create(job_id="a", folder=str(tmp_path), started_at=timezone.now() - timedelta(minutes=1))
    for number in range(4):
        path = tmp_path / f"{number}.txt"
        path.write_text("text")
        os.utime(path, (0, 0))
        SourceFile.objects.create(scan=scan, path=path.name)
    return scan


@pytest.mark.usefixtures("_declared")
def test_the_site_scans_by_itself_each_night(scanned: Scan) -> None:
    row = Schedule.objects.get(name="catalogue.nightly")
    assert (row.cron, row.timezone, row.enabled, row.declared) == ("0 3 * * *", "Europe/Berlin", True, True)
    job = run_schedule_now(row.name)
    assert job.metadata["schedule"] == "catalogue.nightly"
    made = jobs.rescan(**job.payload)
    assert Job.objects.get(pk=made["scan"]).payload == {"folder": scanned.folder}


@pytest.mark.usefixtures("_declared")
def test_a_site_without_a_scan_has_nothing_to_scan_again() -> None:
    assert Schedule.objects.get(name="catalogue.changes").interval_seconds == 600
    assert jobs.rescan() == {"scan": None}
    assert jobs.changes() == {"changed": 0, "removed": 0}
    assert not Job.objects.exists()


def test_changed_and_removed_files_are_counted(scanned: Scan) -> None:
    assert jobs.changes() == {"changed": 0, "removed": 0}
    Path(scanned.folder, "0.txt").write_text("other")
    Path(scanned.folder, "1.txt").unlink()
    Path(scanned.folder, "2.txt").unlink()
    assert jobs.changes() == {"changed": 1, "removed": 2}


@pytest.mark.slow
@pytest.mark.databases("sqlite")
def test_migrating_the_demo_site_writes_its_schedules(tmp_path: Path) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "testproject.settings", "DATABASE_URL": f"sqlite:///{tmp_path}/demo.sqlite3"}
    assert manage("migrate", "-v", "0", env=env).returncode == 0
    shown = manage(
        "shell", "-v", "0", "-c",
        "from django_jobs.models import Schedule; print(*Schedule.objects.values_list('name', flat=True))", env=env,
    )  # fmt: skip
    assert shown.stdout.split() == ["catalogue.changes", "catalogue.nightly"]
