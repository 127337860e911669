"""The threat model: each row of it names tests that exist; and what no room of its own tests."""

import ast
import logging
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from django_jobs import job as declare
from django_jobs import submit
from django_jobs.db.transactions import database_now
from django_jobs.handlers import registry
from django_jobs.models import DeadLetter, Job, Schedule
from django_jobs.scheduling.ticks import tick
from django_jobs.testing import run_due
from django_jobs.text import format_traceback
from tests.support.factories import JobFactory
from tests.support.in_process import running_process
from tests.support.pages import DOCS, ROOT

SECRET = "hunter2-and-nothing-else"
ROWS = re.findall(r"^\| (?!threat|---)([^|]+)\|([^|]+)\|([^|]+)\|$", (DOCS / "SECURITY.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:50])
def test_each_row_of_the_threat_model_has_its_tests(row: tuple[str, str, str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[2])
    assert named
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        assert re.search(rf"^ *def {test}\(", path.read_text(), re.MULTILINE), f"{file} has no {test}"


def test_the_threat_model_has_its_rows() -> None:
    assert len(ROWS) >= 12


# --- what a row can do


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_no_row_makes_a_worker_import_or_call_what_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a job nor a schedule nor a task, whose type is the path of a function that is there."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'evidence')!r}, 'w')\ndef run(*a, **k): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    Schedule.objects.all().delete()
    job = JobFactory(job_type="evil_module.run", payload={})
    task = JobFactory(job_type="evil_module.run", payload={"args": [], "kwargs": {}})
    called = JobFactory(job_type="os.mkdir", payload={"path": str(tmp_path / "evidence")})
    Schedule.objects.create(name="evil", job_type="evil_module.run", kind="interval", interval_seconds=60)
    Schedule.objects.update(next_run_at=database_now() - timedelta(seconds=1))
    tick()
    jobs = [job, task, called, *Job.objects.filter(metadata__schedule="evil")]
    assert len(jobs) == 4
    with running_process():
        assert {one.wait(60).status for one in jobs} == {"failed"}
    assert set(DeadLetter.objects.values_list("reason", flat=True)) == {"no handler"}
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "evidence").exists()


ALLOWED = {
    "apps.py": {"import_string"},  # asks what the classes are that the setting TASKS names
    "db/server.py": {"import_module"},  # looks for the packages of migrations of installed apps
    "transfer/rows.py": {"marshal"},  # a temporary file that it has written itself
}
DANGEROUS = {"pickle", "marshal", "shelve", "eval", "exec", "import_string", "import_module", "__import__", "yaml"}


def test_nothing_unpickles_evaluates_or_imports_by_name() -> None:
    for path in sorted((ROOT / "django_jobs").rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names |= {node.name.split(".")[0], node.name.split(".")[-1]}
        own = str(path.relative_to(ROOT / "django_jobs"))
        assert names & DANGEROUS - ALLOWED.get(own, set()) == set(), own


def test_nothing_listens_for_connections() -> None:
    """Worker processes speak to their children over socket pairs, which have no address."""
    servers = re.compile(r"create_server|start_server|TCPServer|HTTPServer|sock\w*\.bind\(|line\w*\.bind\(")
    for path in sorted((ROOT / "django_jobs").rglob("*.py")):
        assert not servers.search(path.read_text()), path


# --- what is told of a payload


def fails(secret: str) -> None:
    held = secret  # noqa: F841  a local variable
    raise ValueError("no secret here")


def test_a_traceback_holds_no_values() -> None:
    with pytest.raises(ValueError) as caught:
        fails(SECRET)
    text = format_traceback(caught.value)
    assert "in fails" in text
    assert SECRET not in text


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_no_log_names_a_payload(caplog: pytest.LogCaptureFixture) -> None:
    """Of a job that completes, one that is retried and dies, one without a handler, and one with a payload that does not fit."""
    with caplog.at_level(logging.DEBUG, logger="django_jobs"):
        submit("effects.record", {"secret": SECRET}, metadata={"secret": SECRET})
        jobs = [
            JobFactory(job_type="effects.fail", payload={"secret": SECRET}, max_retries=0),
            JobFactory(job_type="effects.nobody", payload={"secret": SECRET}),
            JobFactory(job_type="security.misfit", payload={"not the parameter": SECRET}),
        ]
        declare("security.misfit")(fails)
        try:
            with running_process():
                for job in jobs:
                    job.wait(60)
        finally:
            registry.forget("security.misfit")
    assert len(caplog.records) >= 3
    told = [f"{record.getMessage()} {record.__dict__} {record.exc_text}" for record in caplog.records]
    assert [one for one in told if SECRET in one] == []


@pytest.mark.django_db
def test_of_a_payload_that_does_not_fit_the_keys_are_told_and_no_values() -> None:
    job: Any = JobFactory(job_type="effects.greet", payload={"a key": SECRET})
    run_due(reraise=False)
    job.refresh_from_db()
    assert "'a key' is too much" in job.error
    assert SECRET not in job.error
