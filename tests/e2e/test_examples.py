"""The examples of deploying: run as far as a machine without a container engine can, and parsed by their own tools."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from django.core.management import load_command_class

from django_jobs import submit
from django_jobs.conf import JobsSettings
from django_jobs.models import Attempt
from tests.support.processes import spawn
from tests.support.waiting import wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
GRACE = JobsSettings().SHUTDOWN_GRACE_SECONDS
AS_PID_1 = "import os, sys; os.execvp('unshare', ['unshare', '-fp', '--mount-proc', sys.executable, *sys.argv[1:]])"


def read(name: str) -> str:
    return (EXAMPLES / name).read_text()


def commands() -> list[tuple[str, list[str]]]:
    """Return each command of ours in the examples: where it stands, and what comes after `manage.py`."""
    found: list[tuple[str, list[str]]] = []
    for name in ("Dockerfile", "compose.yaml", "kubernetes.yaml"):
        for words in re.findall(r"\[(?:\"[^\"\n]*\",? ?)+\]", read(name)):
            command = json.loads(words)
            if "manage.py" in command:
                found.append((name, command[command.index("manage.py") + 1 :]))
    (start,) = re.findall(r"^ExecStart=\S+/python manage\.py (.*)$", read("mysite-workers.service"), re.MULTILINE)
    return [*found, ("mysite-workers.service", start.split())]


@pytest.mark.parametrize(("name", "command"), commands())
def test_each_command_of_the_examples_is_understood(name: str, command: list[str]) -> None:
    app = "django_jobs" if command[0] in ("jobs", "runworkers") else "django.core"
    parser = load_command_class(app, command[0]).create_parser("manage.py", command[0])
    parser.parse_args(command[1:])


def test_every_kind_of_command_was_found() -> None:
    firsts = [command[0] for _, command in commands()]
    assert (firsts.count("runworkers"), firsts.count("jobs"), firsts.count("migrate")) == (4, 3, 1)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("compose.yaml", r"stop_grace_period: (\d+)s"),
        ("kubernetes.yaml", r"terminationGracePeriodSeconds: (\d+)"),
        ("mysite-workers.service", r"TimeoutStopSec=(\d+)"),
    ],
)
def test_nobody_is_killed_before_the_grace_of_the_workers_is_over(name: str, pattern: str) -> None:
    (seconds,) = re.findall(pattern, read(name))
    assert int(seconds) > GRACE + 5


def test_the_image_starts_the_program_itself_and_stops_it_by_sigterm() -> None:
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    assert "STOPSIGNAL SIGTERM" in lines
    assert re.fullmatch(r'CMD \["python", .*\]', lines[-1]), "without brackets a shell is PID 1, and keeps the signal"
    assert "USER site" in lines


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(read("mysite-workers.service"))
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["Restart"] == "always"
    if shutil.which("systemd-analyze"):
        here = tmp_path / "mysite-workers.service"
        here.write_text(read(here.name).replace("/srv/mysite/.venv/bin/python", sys.executable))
        verified = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, timeout=60)
        assert verified.returncode == 0, verified.stderr
        assert here.name not in verified.stderr, verified.stderr


def test_the_manifest_is_one_that_kubectl_reads() -> None:
    text = read("kubernetes.yaml")
    assert re.findall(r"^kind: (\w+)$", text, re.MULTILINE) == ["Deployment", "ScaledObject"]
    (metric,) = re.findall(r"query: .*?(django_jobs_\w+)", text)
    assert f"`{metric}`" in (EXAMPLES.parent / "reference/metrics.md").read_text()
    if shutil.which("kubectl"):
        built = subprocess.run(["kubectl", "kustomize", EXAMPLES], capture_output=True, text=True, timeout=60)
        assert built.returncode == 0, built.stderr
        assert built.stdout.count("kind: ") == 2


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_command_of_the_image_ends_in_order_as_pid_1() -> None:
    """In a PID namespace of its own, as in a container; as a plain process where the system allows none."""
    (command,) = (words for name, words in commands() if name == "Dockerfile")
    is_allowed = (
        shutil.which("unshare")
        and not subprocess.run(["unshare", "-fp", "--mount-proc", "true"], capture_output=True, timeout=20).returncode
    )
    program = ("-c", AS_PID_1, "manage.py") if is_allowed else ("manage.py",)
    job = submit("effects.sleep", {"seconds": 60})
    with spawn(*command, program=program, settings={"SHUTDOWN_GRACE_SECONDS": 0.5}) as workers:

        def is_running() -> bool:
            assert workers.is_running(), workers.output()
            job.refresh_from_db()
            return job.status == "running"

        wait_until(is_running, 60, "the job runs")
        os.kill(first_process(workers.pids()) if is_allowed else workers.pids()[0], signal.SIGTERM)
        assert workers.wait(60) == 0, workers.output()
    job.refresh_from_db()
    assert job.status in ("pending", "scheduled")
    assert Attempt.objects.get().outcome == "released"


def first_process(pids: list[int]) -> int:
    """Return the process that is 1 in its own namespace, by its number in ours."""
    for pid in pids:
        numbers = re.search(r"^NSpid:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if numbers and len(numbers[1].split()) > 1 and numbers[1].split()[-1] == "1":
            return pid
    raise AssertionError(f"none of {pids} is the first of a namespace")
