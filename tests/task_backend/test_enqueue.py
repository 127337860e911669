"""Enqueuing tasks: the job that is written, in whose transaction, what is refused, and what Django's signals say."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.utils import timezone

import django_jobs
from django_jobs.backends import JobsBackend, task
from django_jobs.compat import InvalidTask, TaskResultStatus, task_backends, task_enqueued
from django_jobs.db.server import product_and_version
from django_jobs.models import Job, JobStatus
from tests.support.effects import tasks
from tests.support.factories import JobFactory

pytestmark = pytest.mark.django_db
LOGGER = TaskResultStatus.__module__.removesuffix(".base")


class Receiver:
    """Keeps what a signal was sent with."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.senders: list[Any] = []

    def __call__(self, sender: Any, task_result: Any, **kwargs: Any) -> None:
        self.senders.append(sender)
        self.results.append(task_result)


@pytest.fixture
def enqueued() -> Iterator[Receiver]:
    receiver = Receiver()
    task_enqueued.connect(receiver)
    yield receiver
    task_enqueued.disconnect(receiver)


def test_an_enqueue_writes_a_job_of_the_tasks_type() -> None:
    result = tasks.add.using(priority=30, queue_name="sums", metadata={"tenant": "a"}).enqueue(1, two=2)
    job = Job.objects.get(pk=result.id)
    assert job.job_type == "tests.support.effects.tasks.add"
    assert job.payload == {"args": [1], "kwargs": {"two": 2}}
    assert (job.queue, job.rank, job.status) == ("sums", -30, JobStatus.PENDING)
    assert job.metadata == {"tenant": "a", "task_backend": "default"}
    assert result.job == job


def test_the_result_of_an_enqueue_says_what_was_written() -> None:
    result = tasks.add.enqueue(1, two=2)
    assert result.task == tasks.add
    assert (result.status, result.is_finished, result.attempts) == (TaskResultStatus.READY, False, 0)
    assert (result.args, result.kwargs, result.backend) == ([1], {"two": 2}, "default")
    assert (result.started_at, result.finished_at, result.last_attempted_at) == (None, None, None)
    assert (result.errors, result.worker_ids) == ([], [])
    assert result.enqueued_at == result.job.created_at
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value


def test_a_result_read_back_equals_the_one_of_the_enqueue(django_assert_num_queries: Any) -> None:
    made = tasks.add.using(priority=-5, queue_name="sums", run_after=timezone.now() + timedelta(hours=1))
    for added in (tasks.add, made):
        result = added.enqueue(1, two=2)
        with django_assert_num_queries(1):
            assert added.get_result(result.id) == result


def test_an_enqueue_is_one_query(django_assert_num_queries: Any) -> None:
    is_asked_for = product_and_version()[0] == "mysql"  # it does not return when the row was made
    with django_assert_num_queries(1 + is_asked_for):
        tasks.add.enqueue(1)


def test_an_enqueue_belongs_to_the_callers_transaction() -> None:
    with transaction.atomic():
        result = tasks.add.enqueue(1)
        transaction.set_rollback(True)
    assert not Job.objects.filter(pk=result.id).exists()


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_enqueues_and_reads_too() -> None:
    async def use() -> Any:
        result = await tasks.describe_async.aenqueue("a")
        await result.arefresh()
        return await tasks.describe_async.aget_result(result.id)

    result = async_to_sync(use)()
    assert (result.status, result.args) == (TaskResultStatus.READY, ["a"])
    assert result.job.queue == "other"


def test_arguments_become_json() -> None:
    result = tasks.describe.enqueue((1, 2), b"text", nested={"a": (3,)})
    assert result.job.payload == {"args": [[1, 2], "text"], "kwargs": {"nested": {"a": [3]}}}
    assert (result.args, result.kwargs) == ([[1, 2], "text"], {"nested": {"a": [3]}})


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), TypeError),
        ({1, 2}, TypeError),
        (object(), TypeError),
        (b"\xff", ValueError),
        (float("nan"), ValueError),
        ("a\x00b", ValueError),
        (2**63, ValueError),
        ({1: "a"}, ValueError),
        ("x" * 300_000, ValueError),
    ],
    ids=["datetime", "set", "object", "bytes", "NaN", "NUL", "a large integer", "a key that is no string", "too large"],
)
def test_arguments_that_cannot_be_stored_are_refused(argument: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        tasks.describe.enqueue(argument)
    assert not Job.objects.exists()


@pytest.mark.parametrize("priority", [-100, -1, 0, 1, 7, 100])
def test_every_priority_is_kept(priority: int) -> None:
    result = tasks.add.using(priority=priority).enqueue(1)
    assert Job.objects.get(pk=result.id).rank == -priority
    assert tasks.add.get_result(result.id).task.priority == priority


def test_tasks_and_jobs_share_one_order() -> None:
    for priority in (5, 10, 1):
        django_jobs.submit("effects.record", {"kind": f"job {priority}"}, priority=priority)
    for priority in (99, -81, 0, 1, -1, 100):
        tasks.leave.using(priority=priority).enqueue(f"task {priority}")
    names = [job.payload.get("kind") or job.payload["args"][0] for job in Job.objects.ready()]
    expected = ["job 10", "task 100", "task 99", "task 1", "job 5", "task 0", "task -1", "job 1", "task -81"]
    assert sorted(names[:2]) == ["job 10", "task 100"], "the same rank, by submit"
    assert names == expected


def test_run_after_waits_until_then() -> None:
    then = timezone.now() + timedelta(hours=1)
    result = tasks.add.using(run_after=then).enqueue(1)
    assert (result.job.status, result.job.available_at) == (JobStatus.SCHEDULED, then)
    assert (result.status, result.task.run_after) == (TaskResultStatus.READY, then)


def test_run_after_in_the_past_waits_for_nothing() -> None:
    result = tasks.add.using(run_after=timezone.now() - timedelta(hours=1)).enqueue(1)
    assert result.job.status == JobStatus.PENDING


def test_run_after_as_a_wait_counts_from_the_enqueue_by_the_databases_clock() -> None:
    result = tasks.add.using(run_after=timedelta(minutes=5)).enqueue(1)
    assert result.job.status == JobStatus.SCHEDULED
    assert timedelta(0) <= result.job.created_at + timedelta(minutes=5) - result.task.run_after < timedelta(seconds=10)
    assert tasks.add.get_result(result.id) == result


def test_the_options_of_a_task_are_those_of_its_job() -> None:
    job = tasks.fail.using(timeout_seconds=5).enqueue("a").job
    assert (job.max_retries, job.timeout_seconds) == (0, 5)


def test_the_options_of_the_backend_hold_where_the_task_says_nothing() -> None:
    quiet = tasks.add.using(backend="strict").enqueue(1).job
    assert (quiet.max_retries, quiet.timeout_seconds) == (1, 30)
    says = tasks.add.using(backend="strict", max_retries=4).enqueue(1).job
    assert (says.max_retries, says.timeout_seconds, says.metadata) == (4, 30, {"task_backend": "strict"})


def test_a_live_unique_key_gives_back_the_result_that_holds_it(enqueued: Receiver) -> None:
    once = tasks.add.using(unique_key="sum")
    first, second = once.enqueue(1), once.enqueue(2)
    assert (second.id, second.args) == (first.id, [1])
    assert [result.id for result in enqueued.results] == [first.id]
    assert Job.objects.count() == 1


def test_a_unique_key_may_be_made_of_the_arguments() -> None:
    by_user = tasks.describe.using(unique_key=lambda user, **rest: f"welcome:{user}")
    ids = [by_user.enqueue(user, again=index).id for index, user in enumerate(["ann", "bob", "ann"])]
    assert ids[0] == ids[2] != ids[1]
    assert Job.objects.get(pk=ids[1]).unique_key == "welcome:bob"


def test_a_wrong_unique_key_of_a_function_is_refused() -> None:
    with pytest.raises(InvalidTask, match="unique_key"):
        tasks.add.using(unique_key=lambda value: value).enqueue(7)
    assert not Job.objects.exists()


def test_tasks_and_jobs_depend_on_each_other() -> None:
    first = tasks.add.enqueue(1)
    other = django_jobs.submit("effects.record", {}, depends_on=[first])
    last = tasks.sum_up.using(depends_on=[first, other, other.id][:2]).enqueue()
    alone = tasks.sum_up.using(depends_on=first).enqueue()
    assert Job.objects.get(pk=other.pk).depends_on == [first.id]
    assert last.job.depends_on == sorted([first.id, other.id])
    assert (alone.job.pending_dependencies, alone.status) == (1, TaskResultStatus.READY)


def test_a_task_whose_dependency_failed_before_is_failed_at_once() -> None:
    broken = JobFactory(status="dead", error="ValueError: no")
    result = tasks.sum_up.using(depends_on=[broken]).enqueue()
    assert (result.status, result.is_finished, result.attempts) == (TaskResultStatus.FAILED, True, 0)
    assert broken.id in result.errors[0].traceback
    runs = tasks.sum_up.using(depends_on=[broken], on_dependency_failure="run").enqueue()
    assert runs.status == TaskResultStatus.READY


def test_a_dependency_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidTask, match="nowhere"):
        tasks.sum_up.using(depends_on=["nowhere"]).enqueue()
    assert not Job.objects.exists()


def test_the_signal_of_an_enqueue_names_the_backends_class(enqueued: Receiver) -> None:
    result = tasks.add.enqueue(1)
    assert enqueued.senders == [JobsBackend]
    assert enqueued.results == [result]


def test_a_receiver_that_raises_does_not_fail_the_enqueue() -> None:
    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a receiver's own trouble")

    task_enqueued.connect(broken)
    try:
        result = tasks.add.enqueue(1)
    finally:
        task_enqueued.disconnect(broken)
    assert Job.objects.filter(pk=result.id).exists()


def test_an_enqueue_is_logged_as_django_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER):
        result = tasks.add.enqueue(1)
    assert f"Task id={result.id} path=tests.support.effects.tasks.add enqueued backend=default" in caplog.messages


def test_a_queue_that_is_no_longer_listed_is_refused_at_the_enqueue(settings: Any) -> None:
    made = tasks.add.using(queue_name="sums")
    settings.TASKS = {"default": {"BACKEND": "django_jobs.backends.JobsBackend", "QUEUES": ["other"]}}
    with pytest.raises(InvalidTask, match="sums"):
        made.enqueue(1)


def later(text: str) -> str:
    """A function that becomes a task of another backend first."""
    return text


def test_a_task_of_another_backend_is_enqueued_through_ours(settings: Any) -> None:
    settings.TASKS = {
        "default": {"BACKEND": f"{LOGGER}.backends.dummy.DummyBackend"},
        "jobs": {"BACKEND": "django_jobs.backends.JobsBackend"},
    }
    result = task(later).using(backend="jobs", priority=4).enqueue("a")
    assert result.backend == "jobs"
    assert result.job.payload == {"args": ["a"], "kwargs": {}}
    assert task_backends["jobs"].get_result(result.id).task.func is later


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("flag", "task_of", "said"),
    [
        ("supports_async_task", lambda: tasks.describe_async, "does not support async (?i:tasks)"),
        ("supports_priority", lambda: tasks.add.using(priority=7), "does not support setting priority"),
        ("supports_defer", lambda: tasks.add.using(run_after=timedelta(hours=1)), "does not support run_after"),
    ],
)
def test_what_the_backend_can_do_is_asked_at_each_enqueue(
    flag: str, task_of: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, task = task_backends["default"], task_of()
    backend.validate_task(task)
    monkeypatch.setattr(backend, flag, False)
    with pytest.raises(InvalidTask, match=said):
        backend.validate_task(task)
    with pytest.raises(InvalidTask, match=said):
        task.enqueue(1, 2)
    monkeypatch.setattr(backend, flag, True)
    backend.validate_task(task)
    assert not Job.objects.exists()
