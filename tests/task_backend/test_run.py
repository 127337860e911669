"""Tasks run by real worker threads in this process: values, errors, retries, contexts, and Django's signals."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

import django_jobs
from django_jobs.backends import JobsBackend, task
from django_jobs.compat import TaskResultStatus, task_backends, task_finished, task_started
from django_jobs.exceptions import Cancelled, Fail, JobsError
from django_jobs.models import Attempt, DeadLetter, Job
from tests.support.effects import tasks
from tests.support.effects.models import Effect
from tests.support.in_process import running_process
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
LOGGER = TaskResultStatus.__module__.removesuffix(".base")


def run(*results: Any) -> None:
    """Run until these results are finished, and refresh them."""
    with running_process():
        for result in results:
            wait_until(
                lambda result=result: _refreshed(result).is_finished, 60, f"the end of {result.task.module_path}"
            )


def _refreshed(result: Any) -> Any:
    result.refresh()
    return result


class Events:
    """What Django's signals were sent with: kind, task, status and sender, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.results: list[Any] = []
        self.senders: set[Any] = set()

    def started(self, sender: Any, task_result: Any, **kwargs: Any) -> None:
        self._note("started", sender, task_result)

    def finished(self, sender: Any, task_result: Any, **kwargs: Any) -> None:
        self._note("finished", sender, task_result)

    def _note(self, kind: str, sender: Any, result: Any) -> None:
        self.seen.append((kind, result.id, str(result.status)))
        self.results.append((kind, result))
        self.senders.add(sender)

    def of(self, result: Any) -> list[tuple[str, str]]:
        return [(kind, status) for kind, result_id, status in self.seen if result_id == result.id]


@pytest.fixture
def events() -> Iterator[Events]:
    events = Events()
    task_started.connect(events.started)
    task_finished.connect(events.finished)
    yield events
    task_started.disconnect(events.started)
    task_finished.disconnect(events.finished)


@pytest.mark.slow
def test_a_task_runs_and_its_result_tells_how(events: Events) -> None:
    result = tasks.add.enqueue(1, two=2)
    run(result)
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    assert (result.attempts, result.errors) == (1, [])
    assert result.worker_ids == [result.job.worker_id]
    assert events.of(result) == [("started", "RUNNING"), ("finished", "SUCCESSFUL")]
    assert events.senders == {JobsBackend}


@pytest.mark.slow
def test_the_signals_carry_the_result_as_it_stands(events: Events) -> None:
    result = tasks.add.enqueue(1, two=2)
    run(result)
    (_, first), (_, last) = events.results
    assert first is last, "one object, as it goes on"
    assert (last.return_value, last.args, last.kwargs) == (3, [1], {"two": 2})
    assert last.finished_at is not None
    assert last.worker_ids == result.worker_ids
    assert last.enqueued_at == result.enqueued_at
    assert last.task == tasks.add


@pytest.mark.slow
def test_the_end_is_told_after_it_was_written() -> None:
    statuses: list[str] = []

    def look(task_result: Any, **kwargs: Any) -> None:
        statuses.append(Job.objects.get(pk=task_result.id).status)

    task_finished.connect(look)
    try:
        run(tasks.add.enqueue(1), tasks.leave_atomically.enqueue(False), tasks.fail.enqueue("no"))
        wait_until(lambda: len(statuses) == 3, 60, "three ends")
    finally:
        task_finished.disconnect(look)
    assert sorted(statuses) == ["completed", "completed", "dead"]


@pytest.mark.slow
def test_the_context_tells_the_task_about_itself() -> None:
    result = tasks.describe.enqueue("a", b=[1])
    run(result)
    assert result.return_value == {
        "id": result.id,
        "attempt": 1,
        "status": "RUNNING",
        "backend": "default",
        "args": ["a"],
        "kwargs": {"b": [1]},
        "enqueued": True,
        "path": "tests.support.effects.tasks.describe",
        "job": result.id,
    }


@pytest.mark.slow
def test_a_coroutine_task_runs_with_its_context(events: Events) -> None:
    result = tasks.describe_async.enqueue("a")
    run(result)
    assert result.return_value == ["a", 1]
    assert events.of(result) == [("started", "RUNNING"), ("finished", "SUCCESSFUL")]


@pytest.mark.slow
def test_a_failure_is_kept_with_its_class_and_traceback(events: Events) -> None:
    result, of_coroutine = tasks.fail.enqueue("as asked"), tasks.fail_async.enqueue()
    run(result, of_coroutine)
    assert result.status == of_coroutine.status == TaskResultStatus.FAILED
    assert [found.exception_class for found in result.errors] == [ValueError]
    assert [error.exception_class for error in of_coroutine.errors] == [KeyError]
    assert "raise ValueError(message)" in result.errors[0].traceback
    assert result.errors[0].traceback.endswith("ValueError: as asked\n")
    assert events.of(result) == events.of(of_coroutine) == [("started", "RUNNING"), ("finished", "FAILED")]
    assert DeadLetter.objects.open().count() == 2


@pytest.mark.slow
def test_a_retried_task_starts_each_time_and_finishes_once(events: Events) -> None:
    result = tasks.fail_twice.enqueue()
    run(result)
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert (result.attempts, len(set(result.worker_ids))) == (3, 1)
    assert [found.exception_class for found in result.errors] == [LookupError, LookupError]
    assert "attempt 2" in result.errors[1].traceback
    assert result.started_at < result.last_attempted_at
    assert events.of(result) == [("started", "RUNNING")] * 3 + [("finished", "SUCCESSFUL")]
    at_third = [result for kind, result in events.results if kind == "started"][2]
    assert (at_third.attempts, len(at_third.errors), at_third.started_at) == (3, 2, result.started_at)


@pytest.mark.parametrize(
    ("enqueue", "error"),
    [
        (lambda: tasks.divide.enqueue(1, 0), ZeroDivisionError),
        (lambda: tasks.give_up.enqueue(), Fail),
        (lambda: tasks.return_what_is_no_json.enqueue(), TypeError),
    ],
    ids=["an exception of fail_on", "Fail", "a result that is not JSON"],
)
@pytest.mark.slow
def test_what_would_not_get_better_is_not_tried_again(enqueue: Any, error: type[Exception], events: Events) -> None:
    result = enqueue()
    run(result)
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 1)
    assert [found.exception_class for found in result.errors] == [error]
    assert events.of(result) == [("started", "RUNNING"), ("finished", "FAILED")]


@pytest.mark.slow
def test_a_result_that_is_not_json_has_a_letter_that_says_so() -> None:
    result = tasks.return_what_is_no_json.enqueue()
    run(result)
    dead_letter = DeadLetter.objects.get(job_id=result.id)
    assert dead_letter.reason == "bad result"
    assert "Unsupported type" in dead_letter.error


@pytest.mark.slow
def test_a_value_becomes_json() -> None:
    result = tasks.return_what_becomes_json.enqueue()
    run(result)
    assert result.return_value == {"bytes": "text", "tuple": [1, [2, 3]]}


@pytest.mark.slow
def test_an_atomic_task_takes_its_writes_back_when_it_fails(events: Events) -> None:
    kept, undone = tasks.leave_atomically.enqueue(False), tasks.leave_atomically.enqueue(True)
    run(kept, undone)
    assert list(Effect.objects.values_list("job_id", flat=True)) == [kept.id]
    assert events.of(kept)[-1] == ("finished", "SUCCESSFUL")
    assert events.of(undone)[-1] == ("finished", "FAILED")


@pytest.mark.slow
def test_a_task_reads_the_results_it_depended_on() -> None:
    django_jobs.submit("effects.record", {"result": 4}, job_id="four")
    last = tasks.sum_up.using(depends_on=[tasks.add.enqueue(1, 2), "four"]).enqueue()
    run(last)
    assert last.return_value == 7


@pytest.mark.slow
def test_a_failed_dependency_finishes_a_task_that_never_started(events: Events) -> None:
    last = tasks.sum_up.using(depends_on=[tasks.fail.enqueue("no")]).enqueue()
    run(last)
    assert (last.status, last.attempts) == (TaskResultStatus.FAILED, 0)
    assert [error.exception_class for error in last.errors] == [JobsError]
    assert events.of(last) == [("finished", "FAILED")]


def test_a_cancelled_task_is_finished(events: Events) -> None:
    result = tasks.add.enqueue(1)
    result.job.cancel()
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 0)
    assert [found.exception_class for found in result.errors] == [Cancelled]
    assert events.of(result) == [("finished", "FAILED")]


@pytest.mark.slow
def test_a_task_without_a_letter_is_finished_once(events: Events) -> None:
    result = quiet.enqueue()
    run(result)
    assert (result.status, result.job.status) == (TaskResultStatus.FAILED, "failed")
    assert events.of(result) == [("started", "RUNNING"), ("finished", "FAILED")]
    assert not DeadLetter.objects.exists()


@task(max_retries=0, dead_letter=False)
def quiet() -> None:
    """Fail without a dead letter."""
    raise ValueError("nobody has to look")


@pytest.mark.slow
def test_a_task_that_no_worker_knows_fails_with_a_letter(events: Events) -> None:
    result = tasks.add.enqueue(1)
    Job.objects.filter(pk=result.id).update(job_type="shop.tasks.gone")
    with running_process():
        wait_until(lambda: task_backends["default"].get_result(result.id).is_finished, 60, "its end")
        wait_until(lambda: events.of(result), 60, "the signal")
    assert events.of(result) == [("finished", "FAILED")]
    assert DeadLetter.objects.get(job_id=result.id).reason == "no handler"


@pytest.mark.slow
def test_plain_jobs_send_no_signals_of_tasks(events: Events) -> None:
    job = django_jobs.submit("effects.record", {})
    broken = django_jobs.submit("effects.fail", {}, max_retries=0)
    with running_process():
        job.wait(60)
        broken.wait(60)
    assert events.seen == []


@pytest.mark.slow
def test_a_task_is_also_a_job_type_for_submits_and_schedules() -> None:
    job = django_jobs.submit(tasks.add.module_path, {"args": [1], "kwargs": {"two": 4}})
    bad = django_jobs.submit(tasks.add.module_path, {"user": 7})
    with running_process():
        assert job.wait(60).result == 5
        assert bad.wait(60).status == "dead"
    assert tasks.add.get_result(job.pk).return_value == 5
    assert "user" in (bad.error or "")


@pytest.mark.slow
def test_replay_runs_a_dead_task_again_and_finishes_it_again(events: Events) -> None:
    result = tasks.fail.enqueue("no")
    run(result)
    result.job.replay()
    assert _refreshed(result).status == TaskResultStatus.READY
    run(result)
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 2)
    assert events.of(result) == [("started", "RUNNING"), ("finished", "FAILED")] * 2


@pytest.mark.slow
def test_a_receiver_that_raises_does_not_fail_the_task() -> None:
    def broken(**kwargs: Any) -> None:
        raise RuntimeError("a receiver's own trouble")

    task_started.connect(broken)
    task_finished.connect(broken)
    try:
        result = tasks.add.enqueue(1)
        run(result)
    finally:
        task_started.disconnect(broken)
        task_finished.disconnect(broken)
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert not Attempt.objects.exists()


@pytest.mark.slow
def test_starts_and_ends_are_logged_as_django_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER):
        good, bad = tasks.add.enqueue(1), tasks.fail.enqueue("as asked")
        run(good, bad)
        wait_until(
            lambda: len([record for record in caplog.records if record.levelno == logging.ERROR]) > 0, 60, "the error"
        )
    path = "path=tests.support.effects.tasks."
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert f"Task id={good.id} {path}add state=RUNNING" in messages
    assert f"Task id={good.id} {path}add state=SUCCESSFUL" in messages
    ended = next(
        record for record in caplog.records if record.getMessage() == f"Task id={bad.id} {path}fail state=FAILED"
    )
    assert ended.levelno == logging.ERROR
    assert "ValueError: as asked" in (ended.exc_text or str(ended.exc_info))
