"""Results of tasks read from rows: every status, every id that is none, and rows that outlive what they name."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings

from django_jobs.backends import JobsTask, TaskRefused
from django_jobs.compat import TaskResultDoesNotExist, TaskResultStatus, task_backends
from django_jobs.db.transactions import database_now
from django_jobs.encryption import as_stored
from django_jobs.exceptions import Cancelled, EncryptionError, JobsError, LeaseLost, TimedOut
from django_jobs.models import Job
from django_jobs.testing import make_job
from tests.support.effects import tasks
from tests.support.factories import AttemptFactory, JobFactory

pytestmark = pytest.mark.django_db
ADD = "tests.support.effects.tasks.add"


def _row(**columns: Any) -> Job:
    columns = {"job_type": ADD, "payload": {"args": [1], "kwargs": {"two": 2}}, **columns}
    job: Job = JobFactory(metadata={"task_backend": "default"}, **columns)
    return job


@pytest.mark.parametrize(
    ("status", "expected", "finished"),
    [
        ("pending", TaskResultStatus.READY, False),
        ("scheduled", TaskResultStatus.READY, False),
        ("running", TaskResultStatus.RUNNING, False),
        ("completed", TaskResultStatus.SUCCESSFUL, True),
        ("failed", TaskResultStatus.FAILED, True),
        ("dead", TaskResultStatus.FAILED, True),
        ("cancelled", TaskResultStatus.FAILED, True),
    ],
)
def test_every_status_of_a_job_is_one_of_a_result(status: str, expected: Any, finished: bool) -> None:
    job = _row(status=status, fence=1)
    result = tasks.add.get_result(job.id)
    assert (result.status, result.is_finished) == (expected, finished)
    assert (result.finished_at is not None) is finished
    assert (result.args, result.kwargs) == ([1], {"two": 2})


def test_a_completed_task_has_its_value_and_its_one_worker() -> None:
    job = _row(status="completed", fence=2, result={"sum": 3}, worker_id="host:1:a")
    result = tasks.add.get_result(job.id)
    assert result.return_value == {"sum": 3}
    assert (result.worker_ids, result.attempts, result.errors) == (["host:1:a"], 1, [])
    assert result.started_at == result.last_attempted_at == job.started_at


def test_a_value_of_none_is_told_from_no_value() -> None:
    assert tasks.add.get_result(_row(status="completed", fence=2).id).return_value is None
    with pytest.raises(ValueError, match="Task failed"):
        _ = tasks.add.get_result(_row(status="dead", fence=2).id).return_value


def test_each_start_of_a_task_is_an_attempt_and_each_failure_an_error() -> None:
    now = database_now()
    job = _row(status="running", fence=9, worker_id="host:4:d", started_at=now)
    for number, (outcome, exception_class) in enumerate(
        [
            ("failed", "builtins.LookupError"),
            ("timed out", ""),
            ("crashed", ""),
            ("lease lost", ""),
            ("released", ""),
            ("snoozed", ""),
        ]
    ):
        AttemptFactory(
            job=job,
            outcome=outcome,
            exception_class=exception_class,
            error=f"{outcome}!",
            traceback="Traceback…" if exception_class else "",
            worker_id=f"host:{number}",
            started_at=now - timedelta(minutes=9 - number),
        )
    result = tasks.add.get_result(job.id)
    assert result.worker_ids == [*(f"host:{number}" for number in range(6)), "host:4:d"]
    assert result.attempts == 7
    assert result.started_at == now - timedelta(minutes=9)
    assert result.last_attempted_at == now
    assert [error.exception_class for error in result.errors] == [LookupError, TimedOut, JobsError, LeaseLost]
    assert [error.traceback for error in result.errors] == ["Traceback…\n", "timed out!", "crashed!", "lease lost!"]


def test_a_task_that_ended_without_a_start_says_why() -> None:
    failed = tasks.add.get_result(_row(status="failed", error="dependency x (y) ended dead", fence=1).id)
    assert [(error.exception_class, error.traceback) for error in failed.errors] == [
        (JobsError, "dependency x (y) ended dead")
    ]
    cancelled = tasks.add.get_result(_row(status="cancelled", fence=1).id)
    assert [error.exception_class for error in cancelled.errors] == [Cancelled]


@pytest.mark.parametrize(
    "result_id",
    [
        "",
        " ",
        "x" * 65,
        "a\x00b",
        "\ud800",
        "no such id",
        None,
        7,
        b"bytes",
        uuid.UUID(int=7),
        ["a"],
        "01a22769-7e3c-7ab1-8000-000000000000",
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else ascii(value)[:12],
)
def test_an_id_that_is_none_of_a_task_does_not_exist(result_id: Any) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(result_id)


def test_a_job_that_is_no_task_has_no_result() -> None:
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(JobFactory().id)


def test_a_job_of_a_tasks_type_has_a_result_however_it_was_submitted() -> None:
    job = JobFactory(job_type=ADD, payload={"args": [1], "kwargs": {}})
    assert tasks.add.get_result(job.id).args == [1]


def test_the_result_of_another_task_does_not_match() -> None:
    with pytest.raises(Exception, match="does not match") as caught:
        tasks.describe.get_result(_row().id)
    assert type(caught.value).__name__ == "TaskResultMismatch"


def test_a_row_outlives_its_task_its_queue_and_its_backend(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "django_jobs.backends.JobsBackend", "QUEUES": ["default"]}}
    job = JobFactory(
        job_type="shop.tasks.Gone.method",
        queue="gone",
        rank=-100,
        payload={"args": [1], "kwargs": {"a": 2}},
        metadata={"task_backend": "gone", "options": "unknown"},
        status="completed",
        fence=2,
        result=[3],
    )
    result = task_backends["default"].get_result(job.id)
    assert isinstance(result.task, JobsTask)
    assert result.task.module_path == "shop.tasks.Gone.method"
    assert (result.task.name, result.task.priority, result.task.queue_name) == ("method", 100, "gone")
    assert (result.args, result.kwargs, result.return_value) == ([1], {"a": 2}, [3])
    assert result.backend == "default"
    result.refresh()
    assert repr(result)
    with pytest.raises(TaskRefused, match="does not know"):
        result.task.call()


def test_refresh_shows_what_became_of_the_task() -> None:
    job = _row()
    result = tasks.add.get_result(job.id)
    Job.objects.filter(pk=job.pk).update(
        status="completed",
        finished_at=database_now(),
        result=5,
        fence=2,
        worker_id="host:1:a",
        started_at=database_now(),
    )
    assert result.status == TaskResultStatus.READY
    result.refresh()
    assert (result.return_value, result.worker_ids) == (5, ["host:1:a"])
    assert result == tasks.add.get_result(job.id)
    Job.objects.all().delete()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()


def test_a_result_of_a_first_run_costs_one_query(django_assert_num_queries: Any) -> None:
    first = [_row(), _row(status="running", fence=1), _row(status="completed", fence=2)]
    with django_assert_num_queries(len(first)):
        for job in first:
            tasks.add.get_result(job.id)


def test_a_task_of_an_encrypted_type_has_its_arguments_and_its_value_until_the_key_is_gone() -> None:
    with override_settings(DJANGO_JOBS={"ENCRYPT": True}):
        id_ = tasks.add.enqueue(1, two="rosebud").id
        with as_stored():
            assert set(Job.objects.get().payload) == {"$encrypted"}
        assert tasks.add.get_result(id_).kwargs == {"two": "rosebud"}
        done = make_job(ADD, {"args": [], "kwargs": {}}, status="completed", result="rosebud")
        assert tasks.add.get_result(done.pk).return_value == "rosebud"
        with override_settings(SECRET_KEY="another"), pytest.raises(EncryptionError):
            tasks.add.get_result(done.pk)
