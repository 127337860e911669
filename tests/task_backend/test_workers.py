"""Tasks run by `runworkers`: found by a fresh process, in one order with jobs, in a subprocess, after a kill."""

from typing import Any

import pytest

import django_jobs
from django_jobs.compat import TaskResultStatus
from django_jobs.lifecycle.claim import claim
from tests.support.effects import tasks
from tests.support.effects.models import Effect
from tests.support.factories import WorkerProcessFactory
from tests.support.processes import manage, spawn_workers
from tests.support.waiting import dump_rows, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def _drain() -> None:
    done = manage("runworkers", "--drain")
    assert done.returncode == 0, done.stderr


def _is_finished(result: Any) -> bool:
    result.refresh()
    return bool(result.is_finished)


@pytest.mark.slow
def test_a_fresh_worker_process_knows_the_tasks_of_every_app() -> None:
    results = [
        tasks.add.enqueue(1, two=2),
        tasks.leave_async.enqueue(),
        tasks.isolated.enqueue(),
        tasks.isolated_async.enqueue(),
    ]
    _drain()
    for result in results:
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL, dump_rows()
    assert [result.return_value for result in results[:2]] == [3, None]
    assert Effect.objects.get(job_id=results[1].id).kind == "async"
    pid, attempt = results[2].return_value
    assert attempt == 1
    worker = int(results[2].worker_ids[0].split(":")[1])
    assert worker not in (pid, results[3].return_value), "both ran in a subprocess of the worker process"


def test_tasks_and_jobs_are_claimed_in_one_order() -> None:
    for priority in (5, 10):
        django_jobs.submit("effects.record", {"kind": f"job {priority}"}, priority=priority)
    for priority in (99, -1, 1):
        tasks.leave.using(priority=priority).enqueue(f"task {priority}")
    claimed = [job.payload for job in claim("default", 10, WorkerProcessFactory().id)]
    names = [payload.get("kind") or payload["args"][0] for payload in claimed]
    assert names == ["job 10", "task 99", "task 1", "job 5", "task -1"]


@pytest.mark.slow
def test_a_task_whose_worker_was_killed_runs_again_and_its_result_tells_so() -> None:
    result = tasks.kill_worker_once.enqueue()
    with spawn_workers("--processes", "1", settings={"LEASE_SECONDS": 60}):
        wait_until(lambda: _is_finished(result), 300, "the second attempt")
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 2), dump_rows()
    assert result.attempts == 2
    assert len(set(result.worker_ids)) == 2
    assert len(result.errors) == 1
    assert "died" in result.errors[0].traceback
