"""Shell jobs: off by default; their whole process group ends with them; their output costs no memory."""

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from django_jobs import shell
from django_jobs.exceptions import Cancelled, Fail, TimedOut
from django_jobs.handlers import registry
from django_jobs.models import DeadLetter, Job
from django_jobs.payloads import encode_result
from django_jobs.queue import JobQueue, Worker
from django_jobs.shell import CommandFailed, run_command
from django_jobs.worker.local_process import stop_local_process
from tests.support.proc import is_alive
from tests.support.waiting import wait_until

GRACE = 120  # seconds; whatever the machine is doing, nothing but waiting for it takes as long
SHELL_ON = {"SHELL_JOBS": True, "TIMEOUT_GRACE_SECONDS": 0.5}


class When:
    """A deadline that has passed as soon as a condition holds, however slow the machine is."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.has_come = condition

    def __lt__(self, now: float) -> bool:
        return self.has_come()


class FakeContext:
    """What a shell job asks of its context: its time is over, or it is cancelled, when a condition holds."""

    def __init__(
        self, timeout: Callable[[], bool] | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self.timeout = timeout
        self.cancelled = cancelled

    def take_over_deadline(self) -> When | None:
        return None if self.timeout is None else When(self.timeout)

    def check_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled


def run(command: str, **context: Any) -> dict[str, Any]:
    return run_command(FakeContext(**context), {"command": command})


@pytest.fixture
def _short_grace() -> Iterator[None]:
    with override_settings(DJANGO_JOBS=SHELL_ON):
        yield


def test_the_result_has_both_streams_and_the_exit_code() -> None:
    assert run("echo 'Hello World'; echo problems >&2") == {
        "exit_code": 0, "stdout": "Hello World\n", "stderr": "problems\n",
    }  # fmt: skip


def test_a_command_reads_nothing_from_the_workers_input() -> None:
    assert run("cat; echo done")["stdout"] == "done\n"


def test_another_exit_code_is_a_failure_with_the_end_of_the_output() -> None:
    with pytest.raises(CommandFailed, match=r"^exit code 3: the last line$"):
        run("echo 'the last line' >&2; exit 3")
    with pytest.raises(CommandFailed) as failed:
        run("seq 1 100000; exit 1")
    assert str(failed.value).endswith("99999\n100000")
    assert len(str(failed.value)) < 2000
    with pytest.raises(CommandFailed, match="killed by SIGKILL"):
        run("kill -KILL $$")
    with pytest.raises(CommandFailed, match="exit code 127"):
        run("no-such-command-anywhere")


@pytest.mark.parametrize("payload", [{}, {"command": ""}, {"command": ["ls"]}, {"command": "  "}])
def test_a_payload_without_a_command_is_not_tried_again(payload: dict[str, Any]) -> None:
    with pytest.raises(Fail):
        run_command(FakeContext(), payload)


def test_output_that_is_no_text_is_kept_as_far_as_it_can_be() -> None:
    result = run(r"printf 'a\000b\377c'")
    assert result["stdout"] == "a\ufffdb\ufffdc"
    encode_result(result)


def test_only_the_tail_is_kept_and_it_always_fits() -> None:
    result = run("head -c 200000 /dev/zero | tr '\\0' x; echo end")
    assert len(result["stdout"]) == shell.TAIL_BYTES
    assert result["stdout"].endswith("xend\n")
    hostile = run(r"head -c 300000 /dev/zero | tr '\0' '\033' | tee /dev/stderr")
    encode_result(hostile)
    assert len(hostile["stdout"]) > 10_000


@pytest.mark.usefixtures("_short_grace")
def test_a_group_that_ignores_term_is_gone_soon_after_the_grace(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = (
        f"echo 'as far as it came'; trap '' TERM; "
        f"(echo $(exec sh -c 'echo $PPID') >> {pids}; while :; do sleep 0.05; done) & "
        f"echo $$ >> {pids}; while :; do sleep 0.05; done"
    )
    with pytest.raises(TimedOut, match="as far as it came"):
        run(command, timeout=lambda: pids.exists() and pids.read_text().count("\n") == 2)
    both = [int(pid) for pid in pids.read_text().split()]
    wait_until(lambda: not any(is_alive(pid) for pid in both))


def test_a_polite_command_gets_its_grace_and_is_not_waited_for_longer(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    started = time.monotonic()
    command = f"trap 'echo cleaned up >&2; exit 0' TERM; echo > {ready}; while :; do sleep 0.02; done"
    with (
        override_settings(DJANGO_JOBS={**SHELL_ON, "TIMEOUT_GRACE_SECONDS": GRACE}),
        pytest.raises(TimedOut, match="cleaned up"),
    ):
        run(command, timeout=ready.exists)
    assert time.monotonic() - started < GRACE


@pytest.mark.usefixtures("_short_grace")
def test_a_cancelled_command_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(Cancelled):
        run(f"echo $$ > {pid}; exec sleep 600", cancelled=lambda: pid.exists() and bool(pid.read_text()))
    assert not is_alive(int(pid.read_text()))


def test_what_the_command_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert run(f"sleep 600 & echo $! > {pid}; echo done")["stdout"] == "done\n"
    wait_until_gone(int(pid.read_text()))


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_daemon_that_keeps_the_pipes_open_holds_nobody_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    try:
        # It is in a session of its own before the command ends, or else it would end with the group.
        command = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & until [ -s {pid} ]; do sleep 0.01; done; echo done"
        assert run(command)["stdout"] == "done\n"
        assert is_alive(int(pid.read_text())), "it is not of the group"
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_the_group_dies_with_its_worker(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = os.fork()
    if child == 0:
        try:
            run(f"echo $$ > {file}; trap '' TERM; while :; do sleep 0.05; done")
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(file.read_text())
        assert is_alive(pid)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    wait_until_gone(pid)


@pytest.mark.parametrize("amount", ["500M", pytest.param("5G", marks=pytest.mark.load)])
def test_gigabytes_of_output_cost_no_memory(amount: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(f"head -c {amount} /dev/zero")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown <= 10 * 1024, f"{grown} KiB"


def test_a_command_that_cannot_be_started_leaves_no_file_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="too long"):
            run("x" * 200_000)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


def test_the_job_type_is_there_when_the_setting_is_on_and_only_then() -> None:
    assert registry.find("shell") is None
    with override_settings(DJANGO_JOBS=SHELL_ON):
        assert registry.find("shell") is not None
    assert registry.find("shell") is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_shell_jobs_complete_fail_and_time_out_as_other_jobs_do() -> None:
    queue = JobQueue("commands", max_retries=0)
    with override_settings(DJANGO_JOBS=SHELL_ON):
        good = queue.enqueue("shell", {"command": "echo Hello"})
        bad = queue.enqueue("shell", {"command": "echo oops; exit 4"})
        slow = queue.enqueue("shell", {"command": "sleep 600"}, timeout_seconds=0.3)
        for _ in range(3):
            queue.process_next()
        stop_local_process()
    assert queue.get_job(good).result == {"exit_code": 0, "stdout": "Hello\n", "stderr": ""}
    assert (queue.get_job(bad).status, queue.get_job(bad).error) == ("dead", "CommandFailed: exit code 4: oops")
    assert DeadLetter.objects.get(job=slow).reason == "timeout"


@pytest.mark.django_db(transaction=True)
@pytest.mark.slow
def test_a_running_shell_job_is_cancelled() -> None:
    queue = JobQueue("cancel-command")
    with override_settings(DJANGO_JOBS={**SHELL_ON, "LEASE_SECONDS": 2}):
        job_id = queue.enqueue("shell", {"command": "sleep 600"})
        worker = Worker(queue)
        worker.start()
        wait_until(lambda: Job.objects.get().status == "running")
        assert queue.cancel(job_id)
        assert queue.wait_for_completion(job_id, timeout=60)
        stop_local_process()
    assert Job.objects.get().status == "cancelled"
