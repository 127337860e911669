"""Submit: transactional, strict, and the same on every database."""

import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

import django_jobs
from django_jobs import NewJob
from django_jobs.exceptions import CycleError, InvalidJob
from django_jobs.models import Job, JobDependency
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.django_db(transaction=True)
DEEP: dict[str, Any] = {}
for _ in range(65):
    DEEP = {"a": DEEP}
CIRCLE: dict[str, Any] = {}
CIRCLE["again"] = [CIRCLE]


def test_a_submitted_job_reads_back_as_it_was_returned() -> None:
    payload = {"n": 1, "f": 1.5, "text": "é😀", "list": [None, True, {"deep": [1]}], "wide": 1e300, "int": 2**63 - 1}
    job = django_jobs.submit("effects.record", payload, priority=9, metadata={"tenant": "a"}, job_id="mine")

    stored = Job.objects.get(pk="mine")
    assert stored.to_dict() == job.to_dict()
    assert stored.payload == payload
    assert (stored.priority, stored.status, stored.max_retries, stored.metadata) == (9, "pending", 3, {"tenant": "a"})
    assert stored.available_at == stored.created_at == job.created_at


def test_a_rolled_back_transaction_leaves_no_job_and_a_committed_one_does() -> None:
    def submit(fail: bool) -> None:
        with transaction.atomic():
            django_jobs.submit("effects.record", {})
            django_jobs.submit_many([NewJob("effects.record"), NewJob("effects.record")])
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        submit(fail=True)
    assert Job.objects.count() == 0
    submit(fail=False)
    assert Job.objects.count() == 3


def test_nobody_else_sees_a_job_before_its_transaction_commits() -> None:
    seen: list[int] = []
    with transaction.atomic():
        django_jobs.submit("effects.record", {})
        if connection.vendor == "sqlite":
            thread = threading.Thread(target=lambda: run_in_threads(lambda: seen.append(Job.objects.count()), 1))
            thread.start()
            thread.join()
        else:
            run_in_threads(lambda: seen.append(Job.objects.count()), 1)
    assert seen == [0]
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        (("effects.record", {"a": float("nan")}), {}, "payload.a"),
        (("effects.record", {"a": object()}), {}, "payload.a"),
        (("effects.record", {"user": {"when": datetime(2026, 1, 1, tzinfo=UTC)}}), {}, "payload.user.when"),
        (("effects.record", {"a": uuid.uuid4()}), {}, "payload.a"),
        (("effects.record", {1: "a"}), {}, "key"),
        (("effects.record", {"a": "x\0y"}), {}, "NUL"),
        (("effects.record", {"a": "\ud800"}), {}, "surrogate"),
        (("effects.record", CIRCLE), {}, "itself"),
        (("effects.record", DEEP), {}, "64"),
        (("effects.record", {"a": "x" * 10_000_000}), {}, "bytes"),
        (("effects.record", {"a": 2**63}), {}, "2**63"),
        (("effects.record", [1]), {}, "dict"),
        (("effects.record", {}), {"priority": 0}, "priority"),
        (("effects.record", {}), {"priority": 11}, "priority"),
        (("effects.record", {}), {"priority": 5.5}, "priority"),
        (("effects.record", {}), {"priority": "5"}, "priority"),
        (("effects.record", {}), {"priority": True}, "priority"),
        (("effects.record", {}), {"max_retries": -1}, "max_retries"),
        (("effects.record", {}), {"max_retries": 1.0}, "max_retries"),
        (("effects.record", {}), {"timeout_seconds": 0}, "timeout"),
        (("effects.record", {}), {"timeout_seconds": float("inf")}, "timeout"),
        (("", {}), {}, "job_type"),
        ((" ", {}), {}, "job_type"),
        (("effects.recrod", {}), {}, "Did you mean 'effects.record'"),
        (("x" * 300, {}), {}, "at most 200"),
        (("effects.record", {}), {"queue": ""}, "queue"),
        (("effects.record", {}), {"queue": "a;drop"}, "queue"),
        (("effects.record", {}), {"queue": "q" * 65}, "queue"),
        (("effects.record", {}), {"scheduled_at": datetime(2026, 1, 1)}, "time zone"),
        (("effects.record", {}), {"scheduled_at": datetime(9999, 12, 31, tzinfo=UTC)}, "year"),
        (("effects.record", {}), {"scheduled_at": datetime(2027, 1, 1, tzinfo=UTC), "delay": 3}, "not both"),
        (("effects.record", {}), {"depends_on": ["me"], "job_id": "me"}, "itself"),
        (("effects.record", {}), {"depends_on": ["nobody"]}, "no job 'nobody'"),
        (("effects.record", {}), {"depends_on": ["a", "a"]}, "twice"),
        (("effects.record", {}), {"depends_on": "a"}, "list"),
        (("effects.record", {}), {"prioriy": 3}, "Did you mean 'priority'"),
        (("effects.record", {}), {"on_dependency_failure": "panic"}, "'fail' or 'run'"),
        (("effects.record", {}), {"unique_key": ""}, "unique_key"),
        (("effects.record", {}), {"metadata": {"a": {1}}}, "metadata.a"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_written(
    arguments: tuple[Any, ...], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        django_jobs.submit(*arguments, **options)
    assert problem in str(refused.value)
    assert isinstance(refused.value, ValueError)
    assert len(str(refused.value)) < 2000
    assert Job.objects.count() == 0


def test_all_problems_of_a_call_are_named_at_once() -> None:
    with pytest.raises(InvalidJob) as refused:
        django_jobs.submit("effects.record", {"a": object()}, priority=0, queue="", prioriy=1)
    assert len(refused.value.problems) == 4
    with pytest.raises(InvalidJob, match=r"Did you mean 'effects.record'\?") as refused:
        django_jobs.submit("effects.recrod", {"a": object()}, priority=0)
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize("batch", [5, "effects.record", NewJob("effects.record"), {"a": NewJob("effects.record")}])
def test_a_batch_that_is_no_list_is_refused(batch: Any) -> None:
    with pytest.raises(InvalidJob, match="submit_many takes a list of NewJob"):
        django_jobs.submit_many(batch)


def test_an_id_that_exists_is_refused_and_the_callers_transaction_goes_on() -> None:
    django_jobs.submit("effects.record", {}, job_id="one")
    with transaction.atomic():
        with pytest.raises(InvalidJob, match="exists"):
            django_jobs.submit("effects.record", {}, job_id="one")
        django_jobs.submit("effects.record", {}, job_id="two")
    assert set(Job.objects.values_list("pk", flat=True)) == {"one", "two"}


def test_names_are_compared_byte_by_byte() -> None:
    for job_id in ("a", "A", "á", "a_"):
        django_jobs.submit("effects.record", {}, job_id=job_id, unique_key=job_id)
    assert Job.objects.count() == 4


def test_a_unique_key_is_held_by_one_live_job() -> None:
    first = django_jobs.submit("effects.record", {}, unique_key="k")
    assert django_jobs.submit("effects.record", {"other": 1}, unique_key="k").id == first.id
    many = django_jobs.submit_many([NewJob("effects.record", unique_key="k"), NewJob("effects.record", unique_key="l")])
    assert many[0].id == first.id
    assert many[1].id != first.id
    first.cancel()
    assert django_jobs.submit("effects.record", {}, unique_key="k").id != first.id


def test_ten_threads_that_race_for_a_unique_key_get_one_job() -> None:
    ids: list[str] = []
    run_in_threads(lambda: ids.append(django_jobs.submit("effects.record", {}, unique_key="race").id), 10)
    assert len(ids) == 10
    assert len(set(ids)) == 1


def test_a_delay_makes_the_job_scheduled_by_the_databases_clock() -> None:
    job = django_jobs.submit("effects.record", {}, delay=timedelta(minutes=5))
    job.refresh_from_db()
    assert job.status == "scheduled"
    assert job.available_at == job.scheduled_at
    assert abs(job.available_at - job.created_at - timedelta(minutes=5)) < timedelta(minutes=1)


def test_a_time_in_the_past_is_ready_at_once() -> None:
    job = django_jobs.submit("effects.record", {}, scheduled_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert job.status == "pending"


def test_one_bad_item_of_many_is_named_and_none_is_written() -> None:
    batch = [NewJob("effects.record", {"n": n}) for n in range(500)]
    batch[417] = NewJob("effects.record", {"n": object()})
    with pytest.raises(InvalidJob, match=r"item 417: payload\.n"):
        django_jobs.submit_many(batch)
    assert Job.objects.count() == 0


def test_the_jobs_of_a_batch_read_back_as_they_were_returned() -> None:
    ids = ['"', "\\", "a'b", "{a,b}", "NULL", "é,😀", "%s"]
    batch = [NewJob("effects.record", {"text": one}, job_id=one, metadata={"said": [one]}) for one in ids]
    batch += [NewJob("effects.record", {"number": number}, priority=9, metadata={"a": 1}) for number in range(3)]
    batch += [NewJob("effects.record", delay=60), NewJob("effects.record", {"plain": True}), NewJob("effects.record")]

    jobs = django_jobs.submit_many(batch)

    jobs[-6].metadata["mine"] = "alone"
    assert jobs[-5].metadata == {"a": 1}
    del jobs[-6].metadata["mine"]
    for job, new in zip(jobs, batch, strict=True):
        stored = Job.objects.get(pk=job.pk)
        assert stored.payload == (new.payload or {})
        clocks = ("created_at", "updated_at", "available_at", "scheduled_at", "_state", "_depends_on")
        both = [{key: value for key, value in vars(one).items() if key not in clocks} for one in (job, stored)]
        assert both[0] == both[1]
        assert (job._state.adding, job._state.db, job == stored) == (False, stored._state.db, True)
        assert abs(job.available_at - stored.available_at) < timedelta(seconds=5)


def test_options_that_are_equal_but_not_equally_good_are_told_apart_in_a_batch() -> None:
    with pytest.raises(InvalidJob, match=r"item 2: priority=True.*item 3: payload.when: datetime"):
        django_jobs.submit_many(
            [
                NewJob("effects.record", priority=1),
                NewJob("effects.record", priority=1),
                NewJob("effects.record", priority=True),
                NewJob("effects.record", {"when": datetime.now(UTC)}, priority=1),
            ]
        )
    assert not Job.objects.exists()


def test_jobs_of_a_batch_may_name_each_other_forwards() -> None:
    jobs = django_jobs.submit_many(
        [NewJob("effects.record", job_id="b", depends_on=["a"]), NewJob("effects.record", job_id="a")]
    )
    assert [(job.id, job.pending_dependencies, job.depends_on) for job in jobs] == [("b", 1, ["a"]), ("a", 0, [])]
    assert Job.objects.get(pk="b").depends_on == ["a"]


@pytest.mark.parametrize("circle", [["a", "b"], ["a", "b", "c"]])
def test_a_circle_is_refused_with_its_path(circle: list[str]) -> None:
    batch = [
        NewJob("effects.record", job_id=one, depends_on=[other])
        for one, other in zip(circle, circle[1:] + circle[:1], strict=True)
    ]
    with pytest.raises(CycleError) as refused:
        django_jobs.submit_many(batch)
    path = str(refused.value).partition(": ")[2].split(" → ")
    assert path[0] == path[-1]
    assert set(path) == set(circle)
    assert len(path) == len(circle) + 1
    assert Job.objects.count() == JobDependency.objects.count() == 0


def test_jobs_of_one_process_keep_their_order() -> None:
    jobs = [django_jobs.submit("effects.record", {}) for _ in range(50)]
    assert [job.id for job in sorted(jobs)] == [job.id for job in jobs]
    assert list(Job.objects.ready().values_list("pk", flat=True)) == [job.id for job in jobs]
