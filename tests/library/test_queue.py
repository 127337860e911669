"""JobQueue: a queue as an object, in scripts that run no worker command."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.handlers import JobOptions
from django_jobs.models import DeadLetter, Job
from django_jobs.queue import JobQueue, JobQueueManager
from django_jobs.worker.local_process import stop_local_process
from tests.support.invariants import check_drained
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_database(transactional_db: None) -> Iterator[None]:
    yield
    stop_local_process()


def drain(queue: JobQueue) -> list[str]:
    ran = []
    while (job_id := queue.process_next()) is not None:
        ran.append(job_id)
    return ran


def test_a_registered_handler_runs_the_oldest_job_and_its_result_is_kept() -> None:
    queue = JobQueue()
    seen: list[Any] = []
    queue.register_handler("email", lambda payload: seen.append(payload) or len(seen))
    first = queue.enqueue("email", {"to": "a@example.org"})
    second = queue.enqueue("email", {"to": "b@example.org"})
    assert drain(queue) == [first, second]
    assert seen == [{"to": "a@example.org"}, {"to": "b@example.org"}]
    stored = queue.get_job(first).to_dict()
    assert (stored["status"], stored["result"]) == ("completed", 1)
    assert queue.process_next() is None
    check_drained([first, second])


def test_a_coroutine_and_a_handler_with_a_context_run_too() -> None:
    async def double(payload: dict[str, Any]) -> int:
        return 2 * int(payload["n"])

    queue = JobQueue("mixed")
    queue.register_handler("double", double)
    queue.register_handler("who", lambda context, payload: context.job_id, takes_context=True)
    doubled, who = queue.enqueue("double", {"n": 21}), queue.enqueue("who")
    drain(queue)
    assert queue.get_job(doubled).result == 42
    assert queue.get_job(who).result == who


def test_a_handler_of_a_queue_object_gets_the_whole_payload_in_place_of_a_declared_one() -> None:
    queue = JobQueue("mail")
    queue.register_handler("effects.greet", lambda letter: letter)
    job_id = queue.enqueue("effects.greet", {"anything": 1})
    assert queue.process_next() == job_id
    assert queue.get_job(job_id).result == {"anything": 1}


def test_what_a_handler_raises_is_not_raised_by_process_next() -> None:
    queue = JobQueue()
    queue.register_handler("bad", lambda payload: 1 // 0)
    job_id = queue.enqueue("bad")
    assert queue.process_next() == job_id
    job = queue.get_job(job_id)
    assert (job.status, job.error) == ("dead", "ZeroDivisionError: integer division or modulo by zero")
    assert DeadLetter.objects.get().reason == "retries exhausted"


def test_a_type_enqueued_by_name_is_retried_only_where_somebody_says_so(settings: Any) -> None:
    plain, configured = JobQueue("plain"), JobQueue("configured", max_retries=2)
    plain.register_handler("eager", lambda payload: None, max_retries=4)
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "MAX_RETRIES": 9, "QUEUES": {"site": {"max_retries": 7}}}
    stored = [
        plain.enqueue("t"),
        plain.enqueue("t", max_retries=None),
        plain.enqueue("t", max_retries=1),
        plain.enqueue("eager"),
        configured.enqueue("t"),
        JobQueue("site").enqueue("t"),
        plain.enqueue(Job.create("t", {})),
        JobQueueManager().submit("t", {}),
    ]
    retries = dict(Job.objects.values_list("pk", "max_retries"))
    assert [retries[job_id] for job_id in stored] == [0, 0, 1, 4, 2, 7, 9, 9]


def test_the_options_of_its_jobs_are_worked_out_once_and_follow_handlers_and_settings(settings: Any) -> None:
    queue = JobQueue("kept", max_retries=2)

    def options() -> JobOptions:
        return queue.handlers.job_options(queue.handlers.find("t"), "kept")

    queue.register_handler("t", lambda payload: None)
    assert options().max_retries == 2
    assert options() is options()
    queue.register_handler("t", lambda payload: None, max_retries=5)
    assert options().max_retries == 5
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "BASE_DELAY": 7.0}
    assert options().base_delay == 7.0


def test_a_job_without_a_handler_fails_with_a_dead_letter() -> None:
    queue = JobQueue()
    job_id = queue.enqueue("nobody.knows", {})
    assert queue.process_next() == job_id
    assert queue.get_job(job_id).status == "failed"
    assert DeadLetter.objects.get().reason == "no handler"


def test_a_failed_job_is_retried_until_it_completes() -> None:
    queue = JobQueue("retry", base_delay=0.001, max_delay=0.005, max_retries=3)
    tries: list[int] = []

    def flaky(payload: Any) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return "done"

    queue.register_handler("flaky", flaky)
    job_id = queue.enqueue("flaky")
    wait_until(lambda: queue.process_next() and queue.get_job(job_id).status == "completed")
    assert queue.get_job(job_id).retry_count == 2


def test_a_queue_without_dead_letters_ends_its_jobs_failed() -> None:
    queue = JobQueue("quiet", dead_letter=False)
    queue.register_handler("bad", lambda payload: 1 // 0)
    job_id = queue.enqueue("bad")
    drain(queue)
    assert queue.get_job(job_id).status == "failed"
    assert not DeadLetter.objects.exists()


def test_higher_priority_runs_first_and_the_queue_has_a_default() -> None:
    queue = JobQueue("order", default_priority=7)
    queue.register_handler("t", lambda payload: None)
    low, default, high = queue.enqueue("t", priority=1), queue.enqueue("t"), queue.enqueue("t", priority=10)
    assert queue.get_job(default).priority == 7
    peeked = queue.peek()
    assert peeked is not None
    assert peeked.id == high
    assert drain(queue) == [high, default, low]


def test_the_smaller_job_is_the_one_that_is_claimed_first() -> None:
    queue = JobQueue("less")
    for priority in (5, 9, 5, 1):
        queue.enqueue(Job.create("t", {}, priority=priority))
    jobs = sorted(queue.jobs())
    queue.register_handler("t", lambda payload: None)
    assert drain(queue) == [job.id for job in jobs]


def test_two_queues_of_one_process_do_not_take_each_others_jobs() -> None:
    queue, other = JobQueue("one"), JobQueue("other")
    queue.register_handler("t", lambda payload: "one")
    other.register_handler("t", lambda payload: "other")
    in_one, in_other = queue.enqueue("t"), other.enqueue("t")
    assert queue.process_next() == in_one
    assert queue.process_next() is None
    assert other.process_next() == in_other
    assert (queue.get_job(in_one).result, other.get_job(in_other).result) == ("one", "other")
    with pytest.raises(JobNotFound):
        queue.get_job(in_other)


def test_a_built_job_becomes_the_stored_one() -> None:
    queue = JobQueue("built")
    job = Job.create("t", {"n": 1}, priority=9, max_retries=1, timeout_seconds=5, metadata={"tenant": "a"})
    assert queue.enqueue(job) == job.id
    assert (job.queue, queue.get_job(job.id).to_dict()) == ("built", job.to_dict())
    with pytest.raises(InvalidJob, match="not new"):
        queue.enqueue(job)
    assert job.cancel() == "cancelled"


def test_a_scheduled_time_may_be_given_in_unix_seconds() -> None:
    queue = JobQueue("later")
    when = timezone.now().timestamp() + 3600
    job_id = queue.enqueue("t", scheduled_at=when)
    assert queue.get_job(job_id).to_dict()["scheduled_at"] == pytest.approx(when)
    assert (queue.ready_count(), queue.size, queue.process_next()) == (0, 1, None)


def test_a_due_job_is_peeked_counted_and_run() -> None:
    queue = JobQueue("due")
    queue.register_handler("t", lambda payload: None)
    job_id = queue.enqueue("t", delay=0.01)
    wait_until(lambda: queue.ready_count() == 1)
    peeked = queue.peek()
    assert peeked is not None
    assert peeked.id == job_id
    wait_until(lambda: queue.process_next() == job_id)  # None as long as it is due, and not made ready


def test_a_dependent_runs_after_its_dependency() -> None:
    queue = JobQueue("steps")
    queue.register_handler("t", lambda payload: None)
    first = queue.enqueue("t", job_id="b", priority=1)
    second = queue.enqueue("t", job_id="a", priority=10, depends_on=[first])
    assert drain(queue) == [first, second]
    check_drained()


def test_a_dequeued_job_is_settled_by_update_status() -> None:
    queue = JobQueue("manual")
    assert queue.dequeue() is None
    for status in ("completed", "failed", "dead", "cancelled", "pending", "scheduled"):
        job_id = queue.enqueue("t")
        job = queue.dequeue()
        assert job is not None
        assert (job.id, job.status) == (job_id, "running")
        queue.update_status(job_id, status)
        assert queue.get_job(job_id).status == status
        if not queue.get_job(job_id).is_finished:
            assert queue.cancel(job_id)
    assert queue.get_stats()["cancelled"] == 3
    assert DeadLetter.objects.count() == 1


def test_a_job_is_claimed_by_hand_and_replayed_by_hand() -> None:
    queue = JobQueue("hand")
    job_id = queue.enqueue("t")
    queue.update_status(job_id, "running")
    queue.update_status(job_id, "dead")
    queue.update_status(job_id, "pending")
    assert queue.get_job(job_id).status == "pending"
    assert DeadLetter.objects.get().replayed_at is not None


@pytest.mark.parametrize("status", ["completed", "failed", "dead", "scheduled", "pending", "nonsense"])
def test_an_arrow_that_does_not_exist_is_refused(status: str) -> None:
    queue = JobQueue("transitions")
    job_id = queue.enqueue("t")
    with pytest.raises(InvalidJob):
        queue.update_status(job_id, status)
    assert queue.get_job(job_id).status == "pending"
    with pytest.raises(JobNotFound):
        queue.update_status("no such job", "completed")


def test_a_job_that_another_process_runs_is_not_settled_here() -> None:
    queue = JobQueue("others")
    job_id = queue.enqueue("t")
    queue.update_status(job_id, "running")
    Job.objects.filter(pk=job_id).update(worker_id="elsewhere:1:a")
    with pytest.raises(InvalidJob, match="elsewhere"):
        queue.update_status(job_id, "completed")


def test_nothing_is_claimed_inside_a_transaction() -> None:
    queue = JobQueue("inside")
    queue.enqueue("t")
    with transaction.atomic(), pytest.raises(JobsError, match="inside a transaction"):
        queue.process_next()
    assert queue.ready_count() == 1


def test_waiting_tells_whether_the_job_finished_in_time() -> None:
    queue = JobQueue("wait", max_retries=0)
    queue.register_handler("bad", lambda payload: 1 // 0)
    job_id = queue.enqueue("bad")
    assert not queue.wait_for_completion(job_id, timeout=0.02)
    drain(queue)
    assert queue.wait_for_completion(job_id, timeout=0)
    with pytest.raises(JobNotFound):
        queue.wait_for_completion("no such job", timeout=1)


def test_cancel_says_whether_there_was_anything_to_cancel() -> None:
    queue = JobQueue("cancel")
    job_id = queue.enqueue("t")
    assert queue.cancel(job_id)
    assert not queue.cancel(job_id)
    assert not queue.cancel("no such job")


def test_the_figures_of_a_queue_are_its_own() -> None:
    queue, other = JobQueue("stats"), JobQueue("others")
    queue.register_handler("t", lambda payload: None)
    for _ in range(3):
        queue.enqueue("t")
    other.enqueue("t")
    queue.process_next()
    assert queue.get_stats() == {
        "pending": 2, "scheduled": 0, "running": 0, "completed": 1, "failed": 0, "dead": 0, "cancelled": 0,
    }  # fmt: skip
    assert (queue.size, len(queue), queue.ready_count(), bool(JobQueue("empty"))) == (2, 2, 2, True)


@pytest.mark.parametrize(
    ("name", "config", "problem"),
    [
        ("", {}, "queue ''"),
        ("a;drop", {}, "use letters"),
        ("q" * 65, {}, "at most 64"),
        ("ok", {"max_worker": 2}, "Did you mean 'max_workers'"),
        ("ok", {"default_priority": 11}, "from 1 to 10"),
        ("ok", {"max_retries": -1}, "max_retries"),
    ],
)
def test_a_bad_name_or_configuration_is_refused(name: str, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        JobQueue(name, **config)
    assert problem in str(refused.value)


def test_a_bad_submit_writes_nothing() -> None:
    queue = JobQueue("bad")
    with pytest.raises(InvalidJob) as refused:
        queue.enqueue("t", {"when": timezone.now()}, prioriy=3, max_retries=-1)
    assert len(refused.value.problems) == 3
    with pytest.raises(InvalidJob, match="this is the queue"):
        queue.enqueue("t", queue="elsewhere")
    assert not Job.objects.exists()
