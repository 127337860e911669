"""`runworkers --drain` ends when nothing is left that is due, and the jobs of a process that died are."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_jobs import submit
from django_jobs.due import has_due_work
from django_jobs.models import Job, WorkerProcess
from tests.support.factories import JobFactory, WorkerProcessFactory
from tests.support.processes import manage

pytestmark = pytest.mark.django_db(transaction=True)
SHORT_LEASE = {"LEASE_SECONDS": 4}  # which a process on a busy machine can hold


def _held_by(worker_id: str, queue: str = "default") -> Job:
    return JobFactory(job_type="effects.record", queue=queue, status="running", worker_id=worker_id, fence=1)


def _silent() -> str:
    return str(WorkerProcessFactory(lease_expires_at=timezone.now() - timedelta(seconds=1)).pk)


def _declared_dead() -> str:
    return str(WorkerProcessFactory(lease_expires_at=None).pk)


def _gone() -> str:
    return "host:1:gone"


@pytest.mark.parametrize("died", [_silent, _declared_dead, _gone])
@pytest.mark.slow
def test_it_takes_the_jobs_of_a_dead_process_back_and_runs_them(died) -> None:
    job = _held_by(died())
    other = submit("effects.record")
    drained = manage("runworkers", "--drain", "--threads", "1", settings=SHORT_LEASE)
    assert drained.returncode == 0
    assert {each.wait(0).status for each in (job, other)} == {"completed"}
    assert not WorkerProcess.objects.exists()


@pytest.mark.slow
def test_it_does_not_wait_for_what_a_process_alive_runs() -> None:
    job = _held_by(WorkerProcessFactory(lease_expires_at=timezone.now() + timedelta(hours=1)).pk)
    assert manage("runworkers", "--drain", "--threads", "1", settings=SHORT_LEASE).returncode == 0
    job.refresh_from_db()
    assert job.status == "running"


def test_jobs_of_a_dead_process_are_due_in_their_own_queue() -> None:
    _held_by(_gone(), queue="mail")
    assert has_due_work()
    assert has_due_work(["mail"])
    assert not has_due_work(["default"])


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize(("before", "after"), [("running", "scheduled"), ("scheduled", "pending")])
def test_a_job_that_moves_on_between_two_looks_is_due(before: str, after: str, look: int) -> None:
    """Rescue and promotion once moved a job past both the look that was too early for it and the one that was too late."""
    job = JobFactory(status=before, worker_id="host:1:gone", fence=1, available_at=timezone.now() - timedelta(hours=1))
    looks = 0

    def move_after_look(execute: Any, sql: str, *rest: Any) -> Any:
        nonlocal looks
        result = execute(sql, *rest)
        if sql.startswith("SELECT") and "django_jobs_job" in sql.partition("WHERE")[0]:
            looks += 1
            if looks == look:
                Job.objects.filter(pk=job.pk).update(status=after)
        return result

    with connection.execute_wrapper(move_after_look):
        assert has_due_work()
