"""Bulk handlers: one call for many jobs, and each of them ends as if it had been alone."""

import asyncio
import threading
import time
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, transaction

from django_jobs import BulkFailure, Cancelled, Fail, Retry, Snooze, signals
from django_jobs.models import Attempt, DeadLetter, Job
from django_jobs.queue import JobQueue
from django_jobs.worker.local_process import stop_local_process
from tests.support.waiting import wait_until

from .conftest import Bench, let_its_time_be_over

pytestmark = pytest.mark.django_db(transaction=True)
Payloads = list[dict[str, Any]]


class Calls:
    """A bulk handler that keeps the lists that it got, and does what it is told with each."""

    def __init__(self, then: Any = lambda numbers: None) -> None:
        self.lists: list[list[int]] = []
        self._then = then

    def __call__(self, payloads: Payloads) -> Any:
        self.lists.append([payload["n"] for payload in payloads])
        return self._then(self.lists[-1])


def raising(error: BaseException) -> Any:
    def then(numbers: list[int]) -> None:
        raise error

    return then


def submit(bench: Bench, job_type: str, number: int, **options: Any) -> list[Job]:
    return [bench.submit(job_type, {"n": n}, **options) for n in range(number)]


def ended(jobs: list[Job]) -> list[tuple[str, Any]]:
    for job in jobs:
        job.refresh_from_db()
    return [(job.status, job.result) for job in jobs]


@pytest.mark.usefixtures("patience")
def test_one_call_runs_many_jobs_in_claim_order_and_gives_each_its_result(bench: Bench) -> None:
    calls = Calls(lambda numbers: [{"twice": 2 * n} for n in numbers])
    bench.handle("t.bulk", calls, bulk=30)
    jobs = submit(bench, "t.bulk", 70)
    assert set(bench.run(*jobs)) == {"completed"}
    assert calls.lists == [list(range(30)), list(range(30, 60)), list(range(60, 70))]
    assert [job.result for job in jobs] == [{"twice": 2 * n} for n in range(70)]
    assert [job.fence for job in jobs] == [2] * 70
    assert Attempt.objects.count() == 0


@pytest.mark.slow
def test_a_long_list_is_claimed_and_settled_in_parts(bench: Bench) -> None:
    calls = Calls()
    bench.handle("t.bulk", calls, bulk=1500)
    jobs = submit(bench, "t.bulk", 1500)
    assert set(bench.run(*jobs)) == {"completed"}
    assert [len(numbers) for numbers in calls.lists] == [1500]


def test_what_a_handler_raises_fails_all_of_its_jobs_each_by_its_own_retries(bench: Bench) -> None:
    calls = Calls(raising(ValueError("no")))
    bench.handle("t.bulk", calls, bulk=10, base_delay=0.01)
    jobs = [bench.submit("t.bulk", {"n": n}, max_retries=n) for n in (0, 1)]
    assert bench.run(*jobs) == ["dead", "dead"]
    assert calls.lists == [[0, 1], [1]]
    assert [job.attempts.count() for job in jobs] == [1, 2]
    assert set(DeadLetter.objects.values_list("error", "reason")) == {("ValueError: no", "retries exhausted")}


def test_jobs_that_a_handler_names_fail_alone_and_are_steered_alone(bench: Bench) -> None:
    seen = []

    def handler(payloads: Payloads) -> None:
        seen.append([payload["n"] for payload in payloads])
        if len(seen) == 1:
            errors = [ValueError("one"), "two", Retry(after=0), Snooze(0), Fail("five"), Cancelled()]
            raise BulkFailure(dict(enumerate(errors, start=1)))

    bench.handle("t.bulk", handler, bulk=10, max_retries=1, base_delay=0.01)
    jobs = submit(bench, "t.bulk", 8)
    statuses = bench.run(*jobs)
    assert statuses == [*["completed"] * 5, "dead", "cancelled", "completed"]
    assert sorted(n for numbers in seen[1:] for n in numbers) == [1, 2, 3, 4]
    outcomes = {job.payload["n"]: list(job.attempts.values_list("outcome", "error")) for job in jobs}
    assert outcomes[1] == [("failed", "ValueError: one")]
    assert outcomes[2] == [("failed", "JobsError: two")]
    assert [jobs[n].retry_count for n in range(8)] == [0, 1, 1, 1, 0, 0, 0, 0]
    assert outcomes[0] == outcomes[7] == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (BulkFailure({7: "no"}), "no place 7 in a list of 2"),
        (BulkFailure({"0": "no"}), "no place '0'"),  # type: ignore[dict-item]
        (BulkFailure({0: 5}), "exception or a text"),  # type: ignore[dict-item]
        (BulkFailure(["no"]), "give a dict"),  # type: ignore[arg-type]
    ],
    ids=["beyond", "no int", "no error", "no dict"],
)
def test_a_failure_that_names_no_job_of_the_list_fails_all(bench: Bench, error: BulkFailure, says: str) -> None:
    bench.handle("t.bulk", Calls(raising(error)), bulk=10, max_retries=0)
    jobs = submit(bench, "t.bulk", 2)
    assert bench.run(*jobs) == ["dead", "dead"]
    assert all(says in (job.error or "") for job in jobs)


def test_a_failure_of_nobody_completes_all(bench: Bench) -> None:
    bench.handle("t.bulk", Calls(raising(BulkFailure({}))), bulk=10)
    assert bench.run(*submit(bench, "t.bulk", 3)) == ["completed"] * 3


@pytest.mark.parametrize(
    ("results", "says"), [([1, 2, 3], "3 results for 2 jobs"), ({"a": 1}, "list of 2 results"), (5, "int")]
)
def test_results_that_are_not_one_for_each_fail_the_attempt_of_all(bench: Bench, results: Any, says: str) -> None:
    bench.handle("t.bulk", Calls(lambda numbers: results), bulk=10, max_retries=1, base_delay=0.01)
    jobs = submit(bench, "t.bulk", 2)
    assert bench.run(*jobs) == ["dead", "dead"]
    assert [job.retry_count for job in jobs] == [1, 1]
    assert all(says in attempt.error for attempt in Attempt.objects.filter(number=1))


def test_a_result_that_is_no_json_makes_its_own_job_dead(bench: Bench) -> None:
    bench.handle("t.bulk", Calls(lambda numbers: (1, object(), 3)), bulk=10)
    jobs = submit(bench, "t.bulk", 3)
    assert bench.run(*jobs) == ["completed", "dead", "completed"]
    assert [job.result for job in jobs] == [1, None, 3]
    assert DeadLetter.objects.get().reason == "bad result"


def test_contexts_tell_of_their_jobs_report_progress_and_have_no_steps(bench: Bench) -> None:
    def handler(contexts: list[Any]) -> list[Any]:
        for context in contexts:
            context.report_progress(0.5, context.payload["n"])
        with pytest.raises(Fail, match="no steps"):
            contexts[0].step("one", int)
        return [[context.job_id, context.attempt, context.metadata] for context in contexts]

    bench.handle("t.bulk", handler, bulk=10, takes_context=True)
    jobs = [bench.submit("t.bulk", {"n": f"{n}"}, metadata={"m": n}) for n in range(3)]
    assert set(bench.run(*jobs)) == {"completed"}
    assert [job.result for job in jobs] == [[job.id, 1, {"m": n}] for n, job in enumerate(jobs)]
    assert [(job.progress, job.progress_message) for job in jobs] == [(0.5, "0"), (0.5, "1"), (0.5, "2")]


def test_the_shortest_timeout_ends_the_call_and_all_of_its_jobs_spend_a_try(bench: Bench) -> None:
    began = threading.Event()

    def handler(payloads: Payloads) -> None:
        began.set()
        while True:
            time.sleep(0.01)

    bench.handle("t.bulk", handler, bulk=10, max_retries=0)
    jobs = [bench.submit("t.bulk", timeout_seconds=seconds) for seconds in (3600, 600, None)]
    process = bench.start()
    assert began.wait(60)
    assert let_its_time_be_over(process).timeout_seconds == 600
    assert [job.wait(60).status for job in jobs] == ["dead"] * 3
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"timed out"}
    assert set(DeadLetter.objects.values_list("reason", flat=True)) == {"timeout"}


def test_a_list_that_ignores_its_timeout_is_given_up_as_a_whole(bench: Bench, settings: Any) -> None:
    settings.DJANGO_JOBS = {**settings.DJANGO_JOBS, "TIMEOUT_GRACE_SECONDS": 0.1}
    go = threading.Event()

    def handler(payloads: Payloads) -> None:
        while not go.is_set():
            try:
                go.wait(60)
            except BaseException:
                pass

    bench.handle("t.bulk", handler, bulk=10, max_retries=0)
    jobs = [bench.submit("t.bulk", timeout_seconds=0.1) for _ in range(3)]
    process = bench.start()
    assert [job.wait(60).status for job in jobs] == ["dead"] * 3
    go.set()
    assert process.state.exit_code == 75


@pytest.mark.slow
def test_a_request_to_cancel_one_of_a_list_is_for_its_context_alone(bench: Bench) -> None:
    started = threading.Event()

    def handler(contexts: list[Any]) -> None:
        started.set()
        errors: dict[int, BaseException] = {}
        while not errors:
            for number, context in enumerate(contexts):
                try:
                    context.check_cancelled()
                except Cancelled as error:
                    errors[number] = error
            time.sleep(0.01)
        raise BulkFailure(errors)

    bench.handle("t.bulk", handler, bulk=10, takes_context=True)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    bench.start()
    assert started.wait(60)
    assert jobs[1].cancel() == "running"
    assert [job.wait(60).status for job in jobs] == ["completed", "cancelled", "completed"]


@pytest.mark.slow
def test_a_handler_that_lets_the_request_end_its_call_has_the_others_run_again(bench: Bench) -> None:
    started = threading.Event()
    sizes = []

    def handler(contexts: list[Any]) -> None:
        sizes.append(len(contexts))
        started.set()
        while len(sizes) == 1:
            for context in contexts:
                context.check_cancelled()
            time.sleep(0.01)

    bench.handle("t.bulk", handler, bulk=10, takes_context=True)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    bench.start()
    assert started.wait(60)
    jobs[1].cancel()
    assert [job.wait(60).status for job in jobs] == ["completed", "cancelled", "completed"]
    assert sizes == [3, 2]
    assert sorted(Attempt.objects.values_list("outcome", flat=True)) == ["cancelled", "released", "released"]


def test_jobs_that_another_worker_took_are_dropped_and_the_others_run_again(bench: Bench) -> None:
    def handler(contexts: list[Any]) -> None:
        if len(contexts) == 3:
            Job.objects.filter(pk=contexts[1].job_id).update(fence=50)  # as a rescuer would have done
            for context in contexts:
                context.report_progress(0.5)

    bench.handle("t.bulk", handler, bulk=10, takes_context=True)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    bench.start()
    assert [jobs[n].wait(60).status for n in (0, 2)] == ["completed"] * 2
    assert [job.attempts.get().outcome for job in (jobs[0], jobs[2])] == ["released"] * 2
    jobs[1].refresh_from_db()
    assert jobs[1].status == "running"


# --- atomic


def mark(text: str) -> None:
    Job.objects.filter(pk="mark").update(progress_message=text)


def marked() -> str:
    return Job.objects.get(pk="mark").progress_message


def test_an_atomic_call_commits_its_writes_with_the_ends_of_all_its_jobs_or_nothing(bench: Bench) -> None:
    def handler(payloads: Payloads) -> None:
        mark(payloads[0]["text"])
        if payloads[0]["fail"]:
            raise ValueError("after the write")

    bench.handle("t.bulk", handler, bulk=10, atomic=True, max_retries=0)
    bench.submit("t.bulk", {"text": "", "fail": False}, job_id="mark", delay=3600)
    bad = [bench.submit("t.bulk", {"text": "bad", "fail": True}) for _ in range(3)]
    assert bench.run(*bad) == ["dead"] * 3
    assert marked() == ""
    good = [bench.submit("t.bulk", {"text": "good", "fail": False}) for _ in range(3)]
    assert bench.run(*good) == ["completed"] * 3
    assert marked() == "good"


def test_an_atomic_call_that_names_failed_jobs_commits_what_it_did_for_the_others(bench: Bench) -> None:
    def handler(payloads: Payloads) -> None:
        errors: dict[int, BaseException] = {}
        for number, payload in enumerate(payloads):
            try:
                with transaction.atomic():
                    mark(f"{payload['n']}")
                    if payload["n"] == 2:
                        raise ValueError("undo this one")
            except ValueError as error:
                errors[number] = error
        raise BulkFailure(errors)

    bench.handle("t.bulk", handler, bulk=10, atomic=True, max_retries=0)
    bench.submit("t.bulk", {"n": 0}, job_id="mark", delay=3600)
    jobs = submit(bench, "t.bulk", 3)
    assert bench.run(*jobs) == ["completed", "completed", "dead"]
    assert marked() == "1"


def test_an_atomic_call_in_a_broken_transaction_is_rolled_back_and_the_others_run_again(bench: Bench) -> None:
    def handler(payloads: Payloads) -> None:
        errors: dict[int, BaseException] = {}
        for number, payload in enumerate(payloads):
            if payload["n"] != 2:
                mark(f"{payload['n']}")
                continue
            try:
                with transaction.atomic(savepoint=False):  # any error in it breaks the whole transaction
                    Job.objects.create(pk="mark")
            except IntegrityError as error:
                errors[number] = error
        if errors:
            raise BulkFailure(errors)

    bench.handle("t.bulk", handler, bulk=10, atomic=True, max_retries=0)
    bench.submit("t.bulk", {"n": 0}, job_id="mark", delay=3600)
    jobs = submit(bench, "t.bulk", 3)
    assert bench.run(*jobs) == ["completed", "completed", "dead"]
    assert [job.attempts.values_list("outcome", flat=True)[0] for job in jobs] == ["released", "released", "failed"]
    assert marked() == "1"


def test_an_atomic_call_that_lost_one_of_its_jobs_leaves_nothing(bench: Bench) -> None:
    def handler(contexts: list[Any]) -> None:
        mark(f"{len(contexts)}")
        if len(contexts) == 3:
            Job.objects.filter(pk=contexts[1].job_id).update(fence=50)

    bench.handle("t.bulk", handler, bulk=10, atomic=True, takes_context=True)
    bench.submit("t.bulk", job_id="mark", delay=3600)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    process = bench.start()
    # The fence of the third is as it was: what moved it was rolled back with the call.
    wait_until(
        lambda: Job.objects.filter(status="completed").count() == 0 and process.state.jobs_done >= 3, what="the end"
    )
    process.stop(grace=10)
    assert marked() == ""
    assert {job for job, _ in ended(jobs)} <= {"pending", "running"}


# --- lists


def test_a_list_waits_for_others_up_to_its_time_and_is_running_meanwhile(bench: Bench) -> None:
    calls = Calls()
    bench.handle("t.bulk", calls, bulk=3, bulk_wait=60)
    first = submit(bench, "t.bulk", 2)
    bench.start(threads=2)
    wait_until(lambda: Job.objects.filter(status="running").count() == 2, what="the claim of both")
    other = bench.submit("t.bulk", {"n": 2})
    assert [job.wait(60).status for job in (*first, other)] == ["completed"] * 3
    assert [sorted(numbers) for numbers in calls.lists] == [[0, 1, 2]]


@pytest.mark.usefixtures("patience")
def test_a_list_starts_when_its_time_is_over_and_holds_up_no_other_jobs(bench: Bench) -> None:
    calls = Calls()
    bench.handle("t.bulk", calls, bulk=3, bulk_wait=3600)
    bench.handle("t.plain", lambda payload: len(calls.lists))
    bulk = submit(bench, "t.bulk", 2)
    plain = [bench.submit("t.plain") for _ in range(20)]
    process = bench.start()
    assert {job.wait(60).status for job in plain} == {"completed"}
    assert calls.lists == []
    assert [job.result for job in plain] == [0] * 20, "they ran on the one thread while the list waited"
    (waiting,) = process.buffers()[0]._lists
    waiting.closes_at = 0.0
    process.state.pollers.wake()
    assert [job.wait(60).status for job in bulk] == ["completed"] * 2
    assert calls.lists == [[0, 1]]


@pytest.mark.slow
def test_a_drain_waits_for_a_list_that_waits_for_others(bench: Bench) -> None:
    calls = Calls()
    bench.handle("t.bulk", calls, bulk=3, bulk_wait=0.3)
    jobs = submit(bench, "t.bulk", 2)
    process = bench.start()
    wait_until(process.has_nothing_to_do, what="the end of the work")
    assert ended(jobs) == [("completed", None)] * 2
    assert calls.lists == [[0, 1]]


def test_lists_are_of_one_queue_and_one_type(bench: Bench) -> None:
    one, other = Calls(), Calls()
    bench.handle("t.one", one, bulk=100)
    bench.handle("t.other", other, bulk=100)
    jobs = [
        bench.submit(job_type, {"n": number}, queue=queue)
        for number, queue in enumerate(("a", "b"))
        for _ in range(5)
        for job_type in ("t.one", "t.other")
    ]
    assert set(bench.run(*jobs, threads=2)) == {"completed"}
    for calls in (one, other):
        assert all(len(set(numbers)) == 1 for numbers in calls.lists)
        assert sorted(n for numbers in calls.lists for n in numbers) == [0] * 5 + [1] * 5


def test_a_stop_hands_back_what_waits_in_a_list(bench: Bench) -> None:
    bench.handle("t.bulk", Calls(), bulk=3, bulk_wait=60)
    jobs = submit(bench, "t.bulk", 2)
    process = bench.start()
    wait_until(lambda: Job.objects.filter(status="running").count() == 2, what="the claim of both")
    process.stop(grace=5)
    assert ended(jobs) == [("pending", None)] * 2
    assert Attempt.objects.count() == 0


def test_dependents_of_a_list_wake_with_it(bench: Bench) -> None:
    calls = Calls(raising(BulkFailure({1: Fail("no")})))
    bench.handle("t.bulk", calls, bulk=10)
    bench.handle("t.after", lambda payload: None)
    jobs = submit(bench, "t.bulk", 2)
    after = [bench.submit("t.after", depends_on=[job]) for job in jobs]
    assert bench.run(*after) == ["completed", "failed"]


# --- coroutines


def test_a_coroutine_handler_runs_a_list_too(bench: Bench) -> None:
    seen = []

    async def handler(contexts: list[Any]) -> list[int]:
        await asyncio.sleep(0.01)
        seen.append(len(contexts))
        if len(seen) == 1:
            raise BulkFailure({1: "no"})
        return [7] * len(contexts)

    bench.handle("t.bulk", handler, bulk=10, takes_context=True, max_retries=1, base_delay=0.01)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    assert bench.run(*jobs) == ["completed"] * 3
    assert seen == [3, 1]
    assert [job.result for job in jobs] == [None, 7, None]


@pytest.mark.slow
def test_a_coroutine_list_times_out_as_a_whole_and_is_not_cancelled_for_one(bench: Bench) -> None:
    started = threading.Event()

    async def handler(payloads: Payloads) -> None:
        started.set()
        await asyncio.sleep(60)

    bench.handle("t.bulk", handler, bulk=10, max_retries=0)
    jobs = [bench.submit("t.bulk", timeout_seconds=1) for _ in range(3)]
    process = bench.start()
    assert started.wait(60)
    jobs[0].cancel()
    process.maintenance.look_at_requests()
    assert [job.wait(60).status for job in jobs] == ["dead"] * 3
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"timed out"}


def test_a_coroutine_list_that_lost_a_job_has_the_others_run_again(bench: Bench) -> None:
    async def handler(contexts: list[Any]) -> None:
        if len(contexts) == 3:
            await sync_to_async(Job.objects.filter(pk=contexts[1].job_id).update)(fence=50)
            await sync_to_async(contexts[1].report_progress)(0.5)

    bench.handle("t.bulk", handler, bulk=10, takes_context=True)
    jobs = [bench.submit("t.bulk") for _ in range(3)]
    bench.start()
    assert [jobs[n].wait(60).status for n in (0, 2)] == ["completed"] * 2
    assert [job.attempts.get().outcome for job in (jobs[0], jobs[2])] == ["released"] * 2


# --- other faces


def test_a_queue_object_runs_a_list_of_one() -> None:
    calls = Calls(lambda numbers: numbers)
    queue = JobQueue("bulk")
    queue.register_handler("t.bulk", calls, bulk=10, bulk_wait=60)
    ids = [queue.enqueue("t.bulk", {"n": n}) for n in range(2)]
    try:
        assert [queue.process_next(), queue.process_next(), queue.process_next()] == [*ids, None]
    finally:
        stop_local_process()
    assert calls.lists == [[0], [1]]
    assert [queue.get_job(job_id).result for job_id in ids] == [0, 1]


def test_signals_tell_of_a_call_and_of_each_job(bench: Bench) -> None:
    calls, started = [], []

    def called(sender: Any, job_ids: list[str], **kwargs: Any) -> None:
        calls.append((kwargs["job_type"], kwargs["queue"], job_ids))

    def start(sender: Any, job: Job, **kwargs: Any) -> None:
        started.append(job.id)

    signals.bulk_started.connect(called)
    signals.job_started.connect(start)
    try:
        bench.handle("t.bulk", Calls(), bulk=10)
        jobs = submit(bench, "t.bulk", 3)
        bench.run(*jobs)
    finally:
        signals.bulk_started.disconnect(called)
        signals.job_started.disconnect(start)
    ids = [job.id for job in jobs]
    assert (calls, started) == ([("t.bulk", "default", ids)], ids)
