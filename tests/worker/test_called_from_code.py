"""`call_command("runworkers", …)` leaves its caller's process as it was, in any thread and with any streams."""

import signal
import sys
import threading
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

import django_jobs
from django_jobs import submit
from django_jobs.models import WorkerProcess
from tests.support.factories import QueueFactory
from tests.support.processes import ROOT, spawn
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def test_it_drains_and_gives_the_signal_handlers_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    for _ in range(2):
        job = submit("effects.record", {})
        call_command("runworkers", drain=True, threads=1, skip_checks=True)
        job.refresh_from_db()
        assert job.status == "completed"
    assert [signal.getsignal(number) for number in NUMBERS] == before
    wait_until(lambda: not WorkerProcess.objects.exists(), what="the processes to leave in order")


def test_it_logs_a_line_at_its_start_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    submit("effects.record", {})
    with caplog.at_level("INFO", "django_jobs"), override_settings(DJANGO_JOBS={"RELEASE": "2026.11.3"}):
        QueueFactory(name="mail")
        call_command("runworkers", drain=True, threads=2, queues=["default", "mail"], skip_checks=True)
    started, *_, stopped = [record.getMessage() for record in caplog.records]
    for part in (
        f"django_jobs {django_jobs.__version__}",
        "'default'",
        "queues default, mail",
        "2 threads",
        "release 2026.11.3",
    ):
        assert part in started
    assert stopped.endswith("stopped: 1 jobs completed, 0 attempts failed, exit code 0")
    assert started.split()[2] == stopped.split()[2], "the name of the process"


@pytest.mark.slow
def test_its_last_line_counts_what_failed_in_a_child(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for to in (tmp_path, tmp_path / "nowhere"):
        submit("effects.go_to", {"to": str(to)}, max_retries=0)
    with caplog.at_level("INFO", "django_jobs"):
        call_command("runworkers", drain=True, threads=1, skip_checks=True)
    assert caplog.messages[-1].endswith("stopped: 1 jobs completed, 1 attempts failed, exit code 0")


def test_it_works_in_a_thread_that_is_not_the_main_one() -> None:
    job = submit("effects.record", {})
    ended = []

    def call() -> None:
        try:
            call_command("runworkers", drain=True, threads=1, skip_checks=True)
            ended.append(True)
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    job.refresh_from_db()
    assert (ended, job.status) == ([True], "completed")


def test_an_exit_code_is_an_exception_and_not_the_end_of_the_caller() -> None:
    submit("effects.record", {})
    submit("effects.record", {})
    with pytest.raises(SystemExit) as end:
        call_command("runworkers", max_jobs=1, threads=1, skip_checks=True)
    assert end.value.code == 75


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_do_not_matter(closed: str) -> None:
    job = submit("effects.record", {})
    line = f"exec {sys.executable} {ROOT}/manage.py runworkers --drain --threads 1 {closed}"
    with spawn("-c", f"import os; os.execv('/bin/sh', ['sh', '-c', {line!r}])", program=()) as process:
        assert process.wait(60) == 0
    job.refresh_from_db()
    assert job.status == "completed"
