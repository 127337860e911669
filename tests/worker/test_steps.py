"""Steps of a workflow: done once, recorded under the run's fence, matched by name and order of use."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from django_jobs import Fail, Retry, Snooze, emit
from django_jobs.exceptions import JobsError, LeaseLost, StepMismatch
from django_jobs.lifecycle.prune import prune
from django_jobs.models import Attempt, DeadLetter, Job, JobStep
from django_jobs.models.fields import DbNow
from tests.support.databases import Database
from tests.support.effects.models import Effect, leave_effect
from tests.support.waiting import wait_until

from .conftest import Bench

pytestmark = pytest.mark.django_db(transaction=True)
FAST = {"max_retries": 3, "base_delay": 0.01, "max_delay": 0.02}


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


def handle(bench: Bench, function: Callable[..., Any], **options: Any) -> Job:
    """Register a workflow and submit a job for it."""
    bench.handle("t.flow", function, takes_context=True, **{**FAST, **options})
    return bench.submit("t.flow", job_id="flow")


def steps() -> list[tuple[int, str, str, Any]]:
    return [*JobStep.objects.values_list("position", "name", "kind", "result")]


def dead() -> tuple[str, str]:
    """Return the reason of the one dead letter, and the error of the one job."""
    return DeadLetter.objects.get().reason, str(Job.objects.get().error)


def count(calls: Counter[str], name: str, value: Any = None) -> Any:
    calls[name] += 1
    return value


# --- what is on record


def test_a_recorded_step_does_not_run_again_and_gives_its_result(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> Any:
        charged = context.step("charge", count, calls, "charge", {"id": 7, "tags": ("a", "b")})
        calls["runs"] += 1
        if calls["runs"] < 3:
            raise ValueError("not yet")
        return [charged, context.step("mail", lambda: count(calls, "mail"))]

    job = handle(bench, flow)
    assert bench.run(job) == ["completed"]
    job.refresh_from_db()
    assert job.result == [{"id": 7, "tags": ["a", "b"]}, None]
    assert calls == {"charge": 1, "mail": 1, "runs": 3}
    assert steps() == [(1, "charge", "step", {"id": 7, "tags": ["a", "b"]}), (2, "mail", "step", None)]
    step = JobStep.objects.first()
    assert step is not None
    assert step.ended_at is not None
    assert step.started_at <= step.ended_at
    assert step.state == "done"


def test_the_first_call_returns_the_value_as_it_will_be_read_back(bench: Bench) -> None:
    seen = []

    def flow(context: Any, payload: Any) -> None:
        seen.append(context.step("tuple", lambda: (1, 2)))

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert seen == [[1, 2]]


def test_a_name_that_is_used_again_gets_a_number(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> Any:
        found = [context.step("part", count, calls, "part", number) for number in range(3)]
        calls["runs"] += 1
        if calls["runs"] == 1:
            raise ValueError
        return found

    job = handle(bench, flow)
    assert bench.run(job) == ["completed"]
    assert [name for _, name, _, _ in steps()] == ["part", "part#2", "part#3"]
    assert calls["part"] == 3
    assert Job.objects.get().result == [0, 1, 2]


def test_what_a_step_raises_reaches_the_handler_and_it_runs_again(bench: Bench, calls: Counter[str]) -> None:
    def flaky() -> str:
        if count(calls, "flaky") is None and calls["flaky"] == 1:
            raise ZeroDivisionError("first")
        return "second"

    def flow(context: Any, payload: Any) -> Any:
        try:
            return context.step("flaky", flaky)
        except ZeroDivisionError as error:
            raise Retry(after=0) from error

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert Job.objects.get().result == "second"
    assert calls["flaky"] == 2


@pytest.mark.parametrize(
    ("steer", "outcome", "status"),
    [(Retry(after=0), "failed", "completed"), (Snooze(0), "snoozed", "completed"), (Fail("no"), "failed", "dead")],
    ids=["retry", "snooze", "fail"],
)
def test_steering_from_a_step_means_what_it_means_in_the_handler(
    bench: Bench, calls: Counter[str], steer: Exception, outcome: str, status: str
) -> None:
    def steered() -> None:
        if count(calls, "steered") is None and calls["steered"] == 1:
            raise steer

    assert bench.run(handle(bench, lambda context, payload: context.step("steered", steered))) == [status]
    assert Attempt.objects.get().outcome == outcome


def test_arguments_reach_the_function_and_atomic_does_not(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> Any:
        return context.step("add", lambda *args, **kwargs: [args, kwargs], 1, 2, atomic=True, name="x", function=3)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert Job.objects.get().result == [[1, 2], {"name": "x", "function": 3}]


def test_a_result_that_is_no_json_makes_the_job_dead_and_records_nothing(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        try:
            context.step("bad", lambda: {1, 2})
        except JobsError:
            pass  # swallowing it does not help

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert dead()[0] == "bad result"
    assert "step 'bad'" in dead()[1]
    assert steps() == []


# --- atomic steps


def test_an_atomic_step_and_its_record_commit_together(bench: Bench, calls: Counter[str]) -> None:
    def flow(context: Any, payload: Any) -> None:
        context.step("effect", leave_effect, context.job_id, context.fence, "step", atomic=True)
        calls["runs"] += 1
        if calls["runs"] == 1:
            raise ValueError

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert (Effect.objects.count(), len(steps()), calls["runs"]) == (1, 1, 2)


def test_an_atomic_step_that_raises_leaves_nothing(bench: Bench) -> None:
    def fail(context: Any) -> None:
        leave_effect(context.job_id, context.fence, "step")
        raise ValueError

    def flow(context: Any, payload: Any) -> None:
        context.step("effect", fail, context, atomic=True)

    assert bench.run(handle(bench, flow, max_retries=0)) == ["dead"]
    assert (Effect.objects.count(), steps()) == (0, [])


def test_a_bad_result_rolls_an_atomic_step_back(bench: Bench) -> None:
    def bad(context: Any) -> Any:
        leave_effect(context.job_id, context.fence, "step")
        return object()

    assert bench.run(handle(bench, lambda context, payload: context.step("bad", bad, context, atomic=True))) == ["dead"]
    assert (dead()[0], Effect.objects.count(), steps()) == ("bad result", 0, [])


def test_a_commit_in_an_atomic_step_makes_the_job_dead(bench: Bench, database: Database) -> None:
    def commits() -> None:
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
            cursor.execute("BEGIN")

    assert bench.run(handle(bench, lambda context, payload: context.step("commits", commits, atomic=True))) == ["dead"]
    assert dead()[0] == "failed by handler"
    assert "committed or rolled back its transaction" in dead()[1]
    assert steps() == []


@pytest.mark.databases("postgresql", "mariadb")  # SQLite's one writer is the step itself
def test_a_step_that_lost_its_job_meanwhile_is_rolled_back(bench: Bench, calls: Counter[str]) -> None:
    lost: list[BaseException] = []

    def effect(context: Any) -> None:
        leave_effect(context.job_id, context.fence, "step")
        take_away(context.job_id)

    def flow(context: Any, payload: Any) -> None:
        try:
            context.step("effect", effect, context, atomic=True)
        except LeaseLost as error:
            lost.append(error)
            raise

    bench.handle("t.flow", flow, takes_context=True)
    bench.submit("t.flow", job_id="flow")
    bench.handle("t.next", lambda payload: None)
    assert bench.run(bench.submit("t.next")) == ["completed"]
    assert len(lost) == 1
    assert (Effect.objects.count(), steps()) == (0, [])


def take_away(job_id: str) -> None:
    """Give a running job to another process, as a rescue and a claim do."""
    thread = threading.Thread(target=_take_away, args=(job_id,))
    thread.start()
    thread.join()


def _take_away(job_id: str) -> None:
    try:
        Job.objects.filter(pk=job_id).update(fence=50, worker_id="other")
    finally:
        connection.close()


def test_a_plain_step_of_a_lost_run_is_not_recorded_and_the_next_one_not_called(
    bench: Bench, calls: Counter[str]
) -> None:
    def flow(context: Any, payload: Any) -> None:
        try:
            context.step("lost", take_away, context.job_id)
        except LeaseLost:
            calls["lost"] += 1
        try:
            context.step("next", count, calls, "next")
        except LeaseLost:
            calls["lost"] += 1
            raise

    bench.handle("t.flow", flow, takes_context=True)
    bench.submit("t.flow", job_id="flow")
    bench.handle("t.next", lambda payload: None)
    assert bench.run(bench.submit("t.next")) == ["completed"]
    assert (calls, steps()) == ({"lost": 2}, [])
    assert Job.objects.get(pk="flow").fence == 50


# --- code that is not the one of the records


def recorded(bench: Bench, *names: str) -> Job:
    """Submit a job with records of an earlier run."""
    job = bench.submit("t.flow", job_id="flow")
    Job.objects.filter(pk=job.pk).update(fence=4)
    for position, name in enumerate(names, 1):
        JobStep.objects.create(
            job=job, position=position, name=name, kind="step", result=name, started_at=DbNow(), ended_at=DbNow()
        )
    return job


MISMATCHES: dict[str, tuple[list[str], list[str], str]] = {
    "another name": (["a", "b"], ["a", "c"], "step 2 is on record as step 'b', and the code asks for step 'c'"),
    "another order": (["a", "b"], ["b", "a"], "step 1 is on record as step 'a'"),
    "one left out": (["a", "b", "c"], ["a", "c"], "step 2 is on record as step 'b'"),
    "a return too early": (["a", "b"], ["a"], "the handler returned before it"),
}


@pytest.mark.parametrize("case", MISMATCHES)
@pytest.mark.parametrize("swallows", [False, True])
def test_code_that_no_longer_fits_its_records_makes_the_job_dead(bench: Bench, case: str, swallows: bool) -> None:
    on_record, asked, message = MISMATCHES[case]
    errors: list[Exception] = []

    def flow(context: Any, payload: Any) -> None:
        for name in asked:
            try:
                assert context.step(name, lambda: 1) == name
            except StepMismatch as error:
                errors.append(error)
                if not swallows:
                    raise

    bench.handle("t.flow", flow, takes_context=True, **FAST)
    assert bench.run(recorded(bench, *on_record)) == ["dead"]
    assert dead()[0] == "step mismatch"
    assert message in dead()[1]
    assert Job.objects.get().retry_count == 0
    assert Attempt.objects.count() == 1
    assert JobStep.objects.count() == len(on_record)


def test_another_kind_is_a_mismatch(bench: Bench) -> None:
    bench.handle("t.flow", lambda context, payload: context.sleep("a", 1), takes_context=True)
    assert bench.run(recorded(bench, "a")) == ["dead"]
    assert "the code asks for sleep 'a'" in dead()[1]


def test_a_recorded_name_at_a_new_position_is_a_mismatch(bench: Bench) -> None:
    bench.handle("t.flow", lambda context, payload: context.step("b", int), takes_context=True)
    job = recorded(bench, "a", "b")
    JobStep.objects.filter(name="a").delete()  # as when it failed, and a step after it did not
    assert bench.run(job) == ["dead"]
    assert "'b' is on record at another position than 1" in dead()[1]


# --- what is refused


def test_steps_in_steps_are_refused(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        context.step("outer", lambda: context.step("inner", int))

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "a step's function cannot ask for steps" in dead()[1]
    assert dead()[0] == "failed by handler"


def test_steps_of_another_thread_are_refused(bench: Bench) -> None:
    errors: list[str] = []

    def ask(context: Any) -> None:
        try:
            context.step("elsewhere", int)
        except JobsError as error:
            errors.append(str(error))

    def flow(context: Any, payload: Any) -> None:
        thread = threading.Thread(target=ask, args=(context,))
        thread.start()
        thread.join()

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "the handler's own thread" in errors[0]
    assert "the handler's own thread" in dead()[1]


def test_steps_of_an_atomic_handler_are_refused(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        leave_effect(context.job_id, context.fence, "start")
        try:
            context.step("one", int)
        except JobsError:
            pass

    assert bench.run(handle(bench, flow, atomic=True)) == ["dead"]
    assert "an atomic handler has no steps" in dead()[1]
    assert Effect.objects.count() == 0


def test_steps_in_a_transaction_of_the_handler_are_refused(bench: Bench) -> None:
    def flow(context: Any, payload: Any) -> None:
        with transaction.atomic():
            context.step("one", int)

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "a transaction is open" in dead()[1]


@pytest.mark.parametrize("name", ["", "x" * 201, "a#2", "a\0b", 7, None])
def test_bad_names_make_the_job_dead(bench: Bench, name: Any) -> None:
    assert bench.run(handle(bench, lambda context, payload: context.step(name, int))) == ["dead"]
    assert "step" in dead()[1]


def test_names_of_every_storable_kind_are_taken(bench: Bench) -> None:
    names = ["x" * 200, "mit Leer zeichen", "日本", "A", "a", " a"]

    def flow(context: Any, payload: Any) -> None:
        for name in names:
            context.step(name, int)

    assert bench.run(handle(bench, flow)) == ["completed"]
    assert [name for _, name, _, _ in steps()] == names


# --- coroutines


def test_coroutine_steps_are_coroutines_or_run_in_a_thread(bench: Bench, calls: Counter[str]) -> None:
    async def fetch(number: int) -> int:
        await asyncio.sleep(0)
        return count(calls, "fetch", number)  # type: ignore[no-any-return]

    async def flow(context: Any, payload: Any) -> Any:
        first = await context.astep("fetch", fetch, 1)
        second = await context.astep("plain", lambda: count(calls, "plain", threading.get_ident()))
        third = await context.astep("effect", leave_effect, context.job_id, 1, "step", atomic=True)
        both = await asyncio.gather(context.astep("a", fetch, 2), context.astep("b", fetch, 3))
        calls["runs"] += 1
        if calls["runs"] == 1:
            raise ValueError
        return [first, second != threading.get_ident(), third, both]

    job = handle(bench, flow)
    assert bench.run(job) == ["completed"]
    assert Job.objects.get().result == [1, True, None, [2, 3]]
    assert calls == {"fetch": 3, "plain": 1, "runs": 2}
    assert Effect.objects.count() == 1
    assert [name for _, name, _, _ in steps()] == ["fetch", "plain", "effect", "a", "b"]


def test_the_sync_forms_are_refused_in_a_coroutine_with_a_hint(bench: Bench) -> None:
    async def flow(context: Any, payload: Any) -> None:
        context.step("one", int)

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "await context.astep(…)" in dead()[1]


def test_a_coroutine_is_no_atomic_step_and_has_no_steps_inside(bench: Bench) -> None:
    async def nothing() -> None: ...

    async def flow(context: Any, payload: Any) -> None:
        await context.astep("one", nothing, atomic=True)

    assert bench.run(handle(bench, flow)) == ["dead"]
    assert "a coroutine cannot be atomic" in dead()[1]
    Job.objects.all().delete()

    async def nested(context: Any) -> None:
        await context.astep("inner", nothing)

    async def nesting(context: Any, payload: Any) -> None:
        await context.astep("outer", nested, context)

    assert bench.run(handle(bench, nesting)) == ["dead"]
    assert "a step's function cannot ask for steps" in dead()[1]


def test_a_task_group_waits_as_its_steps_do_and_spends_no_retry(bench: Bench) -> None:
    async def flow(context: Any, payload: Any) -> Any:
        async with asyncio.TaskGroup() as outer:
            nap = outer.create_task(context.asleep("nap", 0.2))
            async with asyncio.TaskGroup() as inner:
                waits = [inner.create_task(context.await_event(name)) for name in ("left", "right")]
        return [nap.result(), *(wait.result()["n"] for wait in waits)]

    job = handle(bench, flow, max_retries=0)
    bench.start()
    wait_until(lambda: Attempt.objects.exists(), 60, "the job to wait")
    job.refresh_from_db()
    assert (job.retry_count, job.crash_count, job.error) == (0, 0, None)
    for number, name in enumerate(("left", "right")):
        emit(name, payload={"n": number})
    assert job.wait(60).status == "completed"
    assert job.result == [None, 0, 1]
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"waiting"}
    assert sorted(name for _, name, _, _ in steps()) == ["left", "nap", "right"]


def test_a_task_group_of_sleeps_alone_waits_too(bench: Bench) -> None:
    async def flow(context: Any, payload: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("one", "other"):
                group.create_task(context.asleep(name, 3600))

    job = handle(bench, flow, max_retries=0)
    bench.start()
    wait_until(lambda: Attempt.objects.exists(), 60, "the job to wait")
    job.refresh_from_db()
    assert (job.status, job.retry_count, job.error) == ("scheduled", 0, None)
    assert Attempt.objects.get().outcome == "waiting"


def test_a_task_group_with_an_error_besides_is_a_failure(bench: Bench) -> None:
    async def break_when_cancelled() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ValueError("broken") from None

    async def flow(context: Any, payload: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(break_when_cancelled())
            await asyncio.sleep(0)
            group.create_task(context.asleep("nap", 3600))

    assert bench.run(handle(bench, flow, max_retries=0)) == ["dead"]
    assert dead()[0] == "retries exhausted"
    assert "broken" in DeadLetter.objects.get().traceback
    assert Attempt.objects.get().outcome == "failed"


# --- replay and retention


@pytest.mark.parametrize("from_start", [False, True])
def test_a_replay_goes_on_behind_the_records_or_begins_from_the_start(
    bench: Bench, calls: Counter[str], from_start: bool
) -> None:
    def flow(context: Any, payload: Any) -> None:
        context.step("done", count, calls, "done")
        context.step("fails once", fails_once)

    def fails_once() -> None:
        if count(calls, "second") is None and calls["second"] == 1:
            raise Fail("broken")

    job = handle(bench, flow)
    assert bench.run(job) == ["dead"]
    DeadLetter.objects.get().replay(from_start=from_start)
    assert bench.run(job) == ["completed"]
    assert calls == {"done": 1 + from_start, "second": 2}


def test_records_are_pruned_with_their_job(bench: Bench, settings: Any) -> None:
    assert bench.run(handle(bench, lambda context, payload: context.step("one", int))) == ["completed"]
    assert prune() == 0
    settings.DJANGO_JOBS = {"RETENTION": {"completed": 0}}
    assert prune() == 1
    assert not JobStep.objects.exists()
