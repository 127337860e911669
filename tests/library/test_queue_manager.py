"""JobQueueManager: queues, worker threads and events in one object."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import Job, WorkerProcess
from django_jobs.queue import EventHandler, JobQueue, JobQueueManager, Worker, WorkerPool
from django_jobs.worker.local_process import stop_local_process
from tests.support.invariants import check_drained
from tests.support.threads import run_in_threads
from tests.support.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_database(transactional_db: None) -> Iterator[None]:
    yield
    stop_local_process()


class Recorder(EventHandler):
    """Keeps the events, each with the thread that it was called in."""

    def __init__(self) -> None:
        self.received: list[tuple[Any, ...]] = []
        self.threads: list[str] = []

    def keep(self, *what: Any) -> None:
        self.received.append(what)
        self.threads.append(threading.current_thread().name)

    def on_job_submitted(self, job: Job) -> None:
        self.keep("submitted", job.id)

    def on_job_started(self, job: Job, worker_id: str) -> None:
        self.keep("started", job.id, bool(worker_id))

    def on_job_completed(self, job: Job, result: Any) -> None:
        self.keep("completed", job.id, result)

    def on_job_failed(self, job: Job, error: str) -> None:
        self.keep("failed", job.id, error)

    def on_job_retried(self, job: Job, next_scheduled_at: Any) -> None:
        self.keep("retried", job.id, next_scheduled_at > job.created_at)

    def on_job_dead(self, job: Job) -> None:
        self.keep("dead", job.id)


@pytest.mark.slow
def test_producers_and_worker_threads_share_ten_thousand_jobs() -> None:
    ran: Counter[str] = Counter()
    lock = threading.Lock()

    def handler(context: Any, payload: dict[str, Any]) -> int:
        with lock:
            ran[context.job_id] += 1
        return int(payload["n"])

    with JobQueueManager({"queues": {"load": {"max_workers": 5}}}) as manager:
        manager.register_handler("count", handler, queue="load", takes_context=True)
        manager.start_workers("load")
        assert manager.get_stats()["workers_per_queue"] == {"load": 5}

        def produce() -> list[str]:
            return [manager.submit("count", {"n": number}) for number in range(1000)]

        submitted = [job_id for ids in run_in_threads(produce, count=10, timeout=240) for job_id in ids]
        wait_until(lambda: manager.get_stats()["total_completed"] == 10_000, timeout=240)
        stats = manager.get_stats()
    assert set(ran.values()) == {1}
    assert len(ran) == len(set(submitted)) == 10_000
    assert stats == {
        "total_submitted": 10_000, "total_completed": 10_000, "total_failed": 0, "total_dead": 0,
        "jobs_per_queue": {"load": 0}, "workers_per_queue": {"load": 5},
    }  # fmt: skip
    assert manager.get_stats()["workers_per_queue"] == {"load": 0}
    check_drained(submitted)


def test_the_event_handler_is_called_with_the_documented_arguments() -> None:
    events = Recorder()
    with JobQueueManager({"queues": {"events": {"base_delay": 0.001, "max_delay": 0.01}}}, events) as manager:
        manager.register_handler("good", lambda payload: payload["x"], queue="events")
        manager.register_handler("bad", lambda payload: {}["missing"], queue="events")
        good = manager.submit("good", {"x": [5]})
        bad = manager.submit("bad", {}, max_retries=1)
        manager.start_workers("events")  # only now: a worker may start a job before its submitter has told of it
        wait_until(lambda: ("dead", bad) in events.received and ("completed", good, [5]) in events.received)
    assert [event for event in events.received if event[1] == good] == [
        ("submitted", good), ("started", good, True), ("completed", good, [5]),
    ]  # fmt: skip
    assert [event for event in events.received if event[1] == bad] == [
        ("submitted", bad),
        ("started", bad, True), ("failed", bad, "KeyError: 'missing'"), ("retried", bad, True),
        ("started", bad, True), ("failed", bad, "KeyError: 'missing'"), ("dead", bad),
    ]  # fmt: skip
    submitter = threading.current_thread().name
    assert all(
        (thread == submitter) == (event[0] == "submitted")
        for event, thread in zip(events.received, events.threads, strict=True)
    )


def test_an_event_handler_that_raises_breaks_no_job(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EventHandler):
        def on_job_started(self, job: Job, worker_id: str) -> None:
            raise RuntimeError("in the handler")

        def on_job_completed(self, job: Job, result: Any) -> None:
            raise RuntimeError("in the handler")

    with JobQueueManager(event_handler=Broken()) as manager:
        manager.register_handler("t", lambda payload: None)
        manager.start_workers()
        job_id = manager.submit("t", {})
        assert manager.queue("default").wait_for_completion(job_id, timeout=60)
    assert Job.objects.get().status == "completed"
    assert "in the handler" in caplog.text


def test_the_event_handler_hears_nothing_of_other_queues() -> None:
    events = Recorder()
    manager = JobQueueManager({"queues": {"mine": {}}}, events)
    JobQueue("not mine".replace(" ", "-")).enqueue("t")
    mine = manager.submit("t", {}, queue="mine")
    assert events.received == [("submitted", mine)]
    del manager
    JobQueue("mine").enqueue("t")
    assert len(events.received) == 1, "a manager that is gone notifies nobody"


def test_stopping_gracefully_finishes_the_current_job_and_leaves_the_others() -> None:
    started = threading.Event()

    def slow(payload: Any) -> str:
        started.set()
        worker = threading.current_thread()
        assert isinstance(worker, Worker)
        wait_until(lambda: worker.is_stopping, 60, "the worker to be told")
        time.sleep(0.2)  # whoever does not wait for it goes by meanwhile
        return "finished"

    with JobQueueManager({"queues": {"slow": {"max_workers": 1}}}) as manager:
        manager.register_handler("slow", slow, queue="slow")
        first, second = manager.submit("slow", {}), manager.submit("slow", {})
        manager.start_workers()
        assert started.wait(60)
        manager.stop_workers(graceful=True)
        queue = manager.queue("slow")
        assert (queue.get_job(first).result, queue.get_job(second).status) == ("finished", "pending")


@pytest.mark.slow
def test_workers_of_several_queues_each_find_their_own_work_from_outside() -> None:
    with JobQueueManager({"queues": {"a": {"max_workers": 2}, "b": {"max_workers": 2}}}) as manager:
        for name in ("a", "b"):
            manager.register_handler(f"t.{name}", lambda payload: None, queue=name)
        manager.start_workers()
        wait_until(lambda: WorkerProcess.objects.exists())
        for _ in range(3):
            time.sleep(0.05)  # they have gone to rest, which is when somebody must still look
            jobs = [Job.create(f"t.{name}", {}, queue=name) for name in ("a", "b")]
            Job.objects.bulk_create(jobs)  # as another process would: nobody here is notified
            ids = [job.id for job in jobs]
            wait_until(lambda ids=ids: Job.objects.filter(pk__in=ids, status="completed").count() == 2)  # type: ignore[misc]


def test_a_dead_job_is_replayed_by_its_id() -> None:
    fail = [True]

    def handler(payload: Any) -> None:
        if fail[0]:
            raise ValueError("for now")

    manager = JobQueueManager({"queues": {"q": {"max_retries": 0}}})
    manager.register_handler("t", handler, queue="q")
    job_id = manager.submit("t", {})
    queue = manager.queue("q")
    queue.process_next()
    assert [dead_letter.job_id for dead_letter in manager.dead_letters] == [job_id]
    assert manager.get_stats()["total_dead"] == 1
    fail[0] = False
    assert manager.replay_dead_letter(job_id).status == "pending"
    queue.process_next()
    assert (queue.get_job(job_id).status, list(manager.dead_letters)) == ("completed", [])
    with pytest.raises(JobNotFound):
        manager.replay_dead_letter(job_id)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"queue": {}}, "Did you mean 'queues'"),
        ({"queues": []}, "dict of queue names"),
        ({"queues": {"a": {"max_workers": 0}}}, "max_workers"),
        (7, "give a dict"),
    ],
)
def test_a_bad_configuration_is_refused(config: Any, problem: str) -> None:
    with pytest.raises(InvalidJob, match=problem):
        JobQueueManager(config)


def test_an_unknown_queue_and_a_second_one_of_a_name_are_refused() -> None:
    manager = JobQueueManager({"queues": {"mail": {}}})
    with pytest.raises(InvalidJob, match="Did you mean 'mail'"):
        manager.submit("t", {}, queue="mial")
    with pytest.raises(InvalidJob, match="there already"):
        manager.create_queue("mail")
    assert not Job.objects.exists()


@pytest.mark.parametrize("queues", [{"mail": {}}, {"mail": {}, "feeds": {"max_workers": 1}}])
def test_a_manager_whose_config_names_queues_counts_and_runs_no_others(queues: dict[str, Any]) -> None:
    others = [JobQueue("default").enqueue("site.only"), JobQueue("reports").enqueue("site.only")]
    with JobQueueManager({"queues": queues}) as manager:
        manager.register_handler("mine", lambda payload: None, queue="mail")
        manager.start_workers()
        assert manager.queue("mail").wait_for_completion(manager.submit("mine"), timeout=60)
        stats = manager.get_stats()
        assert (stats["total_submitted"], stats["total_completed"], stats["total_failed"]) == (1, 1, 0)
        assert set(stats["jobs_per_queue"]) == set(stats["workers_per_queue"]) == set(queues)
        with pytest.raises(InvalidJob, match="no queue 'default' here"):
            manager.start_workers("default")
    assert list(Job.objects.filter(pk__in=others).values_list("status", flat=True)) == ["pending", "pending"]


def test_the_default_queue_is_there_without_named_queues_or_once_it_is_used() -> None:
    assert list(JobQueueManager().queues) == list(JobQueueManager({"queues": {}}).queues) == ["default"]
    registered, submitted, created = (JobQueueManager({"queues": {"mail": {}}}) for _ in range(3))
    registered.register_handler("t", lambda payload: None)
    submitted.submit("t")
    created.create_queue("default", max_retries=7)
    for manager in (registered, submitted, created):
        assert list(manager.queues) == ["mail", "default"]
        assert manager.get_stats()["jobs_per_queue"] == {"mail": 0, "default": 1}
    created.submit("t")
    assert Job.objects.get(max_retries=7).queue == "default"


def test_what_is_refused_adds_no_default_queue() -> None:
    events = Recorder()
    manager = JobQueueManager({"queues": {"mail": {}}}, events)
    with pytest.raises(InvalidJob):
        manager.submit("t", {"when": object()})
    with pytest.raises(InvalidJob):
        manager.submit("t", depends_on=["nobody"])
    with pytest.raises(InvalidJob):
        manager.register_handler("t", lambda payload: None, max_retries=-1)
    assert (list(manager.queues), Job.objects.count()) == (["mail"], 0)
    assert events.received == []
    job_id = manager.submit("t")
    assert events.received == [("submitted", job_id)], "the first use is an event as well"


def test_first_uses_of_the_default_queue_from_several_threads_are_one_queue() -> None:
    manager = JobQueueManager({"queues": {"mail": {}}})

    def use() -> list[str]:
        with pytest.raises(InvalidJob):
            manager.submit("t", {"when": object()})
        return [manager.submit("t") for _ in range(5)]

    ids = [job_id for found in run_in_threads(use, count=4) for job_id in found]
    assert manager.get_stats()["jobs_per_queue"] == {"mail": 0, "default": 20}
    assert {manager.queue("default").get_job(job_id).status for job_id in ids} == {"pending"}


def test_a_worker_takes_its_handlers_from_a_dict_and_stops() -> None:
    queue = JobQueue("one-worker")
    worker = Worker(queue, {"t": lambda payload: "by the dict"}, 0.01)
    job_id = queue.enqueue("t")
    worker.start()
    assert queue.wait_for_completion(job_id, timeout=60)
    worker.stop()
    worker.join(60)
    assert not worker.is_alive()
    assert queue.get_job(job_id).result == "by the dict"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda queue: Worker(queue, poll_interval=0), "poll_interval=0: give a positive"),
        (lambda queue: Worker(queue, poll_interval="1"), "poll_interval='1'"),
        (lambda queue: Worker("a;b"), "queue 'a;b'"),
        (lambda queue: Worker(5), "queue=5"),
        (lambda queue: Worker(queue, [len]), "give a dict of job types"),
        (lambda queue: WorkerPool(queue, 0), "num_workers=0"),
        (lambda queue: WorkerPool(7, 1), "queue=7"),
    ],
)
def test_a_worker_that_could_not_work_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(InvalidJob, match=problem):
        make(JobQueue("one-worker"))


def test_a_pool_starts_and_stops_its_threads() -> None:
    queue = JobQueue("pool")
    queue.register_handler("t", lambda payload: None)
    pool = WorkerPool(queue, 3)
    pool.start()
    workers = list(pool.workers)
    assert len({worker.worker_id for worker in workers}) == 3
    assert queue.wait_for_completion(queue.enqueue("t"), timeout=60)
    pool.stop()
    assert not any(worker.is_alive() for worker in workers)
