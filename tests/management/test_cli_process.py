"""`manage.py jobs` as a process: exit codes, what goes to stderr, and shell jobs under the real workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from django_jobs.models import Job
from django_jobs.testing import make_job
from tests.support.databases import create_database, drop_database, new_url
from tests.support.factories import JobFactory
from tests.support.processes import ROOT, manage

VERBS = (
    "enqueue", "wait", "list", "show", "stats", "queues", "graph", "cancel", "retry", "pause", "resume", "prune",
    "dlq", "schedules", "export", "import", "check", "health",
)  # fmt: skip


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_commands_are_enqueued_run_and_looked_at_from_the_command_line() -> None:
    settings = {"SHELL_JOBS": True}
    spec = '{"id":"job-1","command":"echo Hello; exit 0","max_retries":2}'
    assert manage("jobs", "enqueue", "--json", spec, settings=settings).stdout == "job-1\n"
    bad = ("--command", "echo no >&2; exit 3", "--id", "bad", "--max-retries", "0")
    assert manage("jobs", "enqueue", *bad, settings=settings).returncode == 0
    assert manage("runworkers", "--drain", settings=settings).returncode == 0
    waited = manage("jobs", "wait", "job-1", "--json")
    assert waited.returncode == 0
    assert json.loads(waited.stdout)["result"] == {"exit_code": 0, "stdout": "Hello\n", "stderr": ""}
    failed = manage("jobs", "wait", "bad")
    assert (failed.returncode, failed.stdout) == (1, "dead\n")
    assert failed.stderr == "job 'bad' ended dead: CommandFailed: exit code 3: no\n"
    (dead_letter,) = [json.loads(line) for line in manage("jobs", "dlq", "list", "--json").stdout.splitlines()]
    assert (dead_letter["job_id"], dead_letter["reason"]) == ("bad", "retries exhausted")
    assert manage("jobs", "dlq", "replay", "bad").stdout == "bad replayed\n"
    (job,) = [json.loads(line) for line in manage("jobs", "list", "--status", "pending", "--json").stdout.splitlines()]
    assert (job["id"], job["command"], job["attempts"]) == ("bad", "echo no >&2; exit 3", 1)


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_what_is_refused_is_a_line_for_each_problem_and_an_exit_code() -> None:
    refused = manage("jobs", "enqueue", "effects.record", "--priority", "0", "--max-retries", "-1")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 2
    assert all(not line.startswith(("CommandError", "Traceback")) for line in refused.stderr.splitlines())
    usage = manage("jobs", "lst")
    assert usage.returncode == 2
    assert "usage: manage.py jobs" in usage.stderr
    assert manage("jobs").returncode == 2
    assert not Job.objects.exists()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "\udcff\udcfe"),
        ("list", "--queue", "\udcff"),
        ("cancel", "a\udc80"),
        ("export", "-", "--queue", "\udcff"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_argument_that_is_no_utf_8_is_one_line(arguments: tuple[str, ...]) -> None:
    refused = manage("jobs", *arguments)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.endswith("is not text in UTF-8, as all names, ids and keys are")


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_terminal_cannot_show_is_escaped(encoding: str) -> None:
    make_job("effects.record", {"text": "日本"}, job_id="j日")
    for verb in (["list"], ["show", "j日"], ["show", "j日", "--json"], ["cancel", "j日"]):
        done = manage("jobs", *verb, env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
        assert "j\\u65e5" in done.stdout


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_help_lists_the_verbs_and_each_verb_has_examples() -> None:
    help_text = manage("jobs", "--help").stdout
    assert all(f"    {verb} " in help_text for verb in VERBS)
    assert "manage.py jobs enqueue --command" in manage("jobs", "enqueue", "--help").stdout


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    JobFactory.create_batch(300, payload={"long": "x" * 1000})
    command = f"{sys.executable} manage.py jobs list --limit 0 --json | head -n 1"
    piped = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert len(piped.stdout.splitlines()) == 1
    assert piped.stderr == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.databases("sqlite")
@pytest.mark.slow
def test_broken_settings_are_reported_without_a_traceback() -> None:
    refused = manage("jobs", "stats", settings={"THREDS": 3})
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "Did you mean 'THREADS'" in refused.stderr
    workers = manage("runworkers", "--drain", settings={"THREDS": 3})
    assert workers.returncode == 1
    assert "Traceback" not in workers.stderr
    assert "Did you mean 'THREADS'" in workers.stderr


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_not_migrated_or_not_there_is_one_line(database: object, tmp_path: Path) -> None:
    vendor = database.vendor  # type: ignore[attr-defined]
    url = new_url(vendor, tmp_path, suffix="_bare")
    create_database(url)
    try:
        commands = (("jobs", "list"), ("jobs", "health"), ("runworkers", "--drain"), ("runworkers", "--processes", "2"))
        refused = {command: manage(*command, env={"DATABASE_URL": url}, timeout=60) for command in commands}
    finally:
        drop_database(url)
    for command, bare in refused.items():
        assert bare.returncode == 1, command
        lines = [line for line in bare.stderr.splitlines() if not line.startswith("health: ")]  # the log's line
        assert len(lines) == 1, command
        assert "lacks django_jobs.0001_initial: run" in lines[0], command
    away = f"sqlite:///{tmp_path}/no/such/directory/db" if vendor == "sqlite" else url
    gone = manage("jobs", "list", env={"DATABASE_URL": away})
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1
    assert "cannot be used" in gone.stderr
