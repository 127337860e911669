"""An inline worker runs one job in the script's own thread: its outcome is settled before it goes on, or else by the watchdog."""

import os
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connections

from django_jobs.queue import JobQueue
from django_jobs.worker.local_process import local_process, stop_local_process
from django_jobs.worker.thread import Worker
from tests.support.locked import Locked
from tests.support.waiting import wait_until

from .conftest import let_its_time_be_over

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    yield JobQueue("default")
    stop_local_process()


@pytest.mark.databases("postgresql", "mariadb")
@pytest.mark.slow
def test_a_script_waits_for_the_row_of_its_own_job(queue: JobQueue) -> None:
    lock = Locked("mine")
    starts: list[int] = []

    def end_behind_a_lock(payload: dict[str, Any]) -> None:
        starts.append(1)
        lock.__enter__()
        threading.Timer(1.2, lock.__exit__).start()  # longer than a settle waits before it puts a row aside

    queue.register_handler("t.mine", end_behind_a_lock)
    queue.enqueue("t.mine", {}, job_id="mine")
    assert queue.process_next() == "mine"
    assert queue.get_job("mine").status == "completed"
    assert (len(starts), local_process().held()) == (1, {})


def test_what_a_script_has_run_is_settled_though_its_connection_breaks_then(queue: JobQueue) -> None:
    queue.register_handler("t.mine", lambda payload: {"done": True})
    queue.enqueue("t.mine", {}, job_id="mine")
    prepare, calls = Worker._prepare, []

    def break_after_the_run(worker: Worker) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OperationalError("the connection is broken")
        prepare(worker)
        worker._connection = None  # so that it is looked at after the run

    with mock.patch.object(Worker, "_prepare", break_after_the_run), pytest.raises(OperationalError):
        queue.process_next()
    wait_until(lambda: queue.get_job("mine").status == "completed", 60, "the watchdog to settle it")
    wait_until(lambda: not local_process().held(), 60, "the job to be let go")


@pytest.mark.databases("postgresql")
def test_a_script_that_is_stuck_in_its_job_does_not_hold_up_the_timeout(queue: JobQueue, settings: Any) -> None:
    settings.DJANGO_JOBS = {"TIMEOUT_GRACE_SECONDS": 0.2}
    began = threading.Event()
    reader, writer = os.pipe()

    def wait_in_c(payload: dict[str, Any]) -> None:
        began.set()
        os.read(reader, 1)  # nothing interrupts it

    queue.register_handler("t.stuck", wait_in_c)
    queue.enqueue("t.stuck", {}, job_id="stuck", timeout_seconds=600)
    thread = threading.Thread(target=lambda: (queue.process_next(), connections.close_all()), daemon=True)
    thread.start()
    try:
        assert began.wait(60)
        process = local_process()
        let_its_time_be_over(process)
        wait_until(lambda: queue.get_job("stuck").status == "dead", 60, "the job to be given up")
        assert local_process() is not process
        wait_until(
            lambda: not process.maintenance.is_alive(),
            60,
            "the process that is over to end, now that another one has taken its place",
        )
    finally:
        os.write(writer, b".")
        thread.join(60)
        os.close(reader)
        os.close(writer)
    assert queue.get_job("stuck").status == "dead"
