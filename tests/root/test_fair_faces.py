"""Fair keys as people see and give them: the command line, the admin, schedules, the library, exports, tasks."""

import json
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from django_jobs import Limit, NewJob, job, stats, submit, submit_many
from django_jobs.db.dialects import dialect
from django_jobs.db.transactions import database_now
from django_jobs.due import queues_with_work
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases
from django_jobs.lifecycle.claim import claim
from django_jobs.limit import fair_key_of
from django_jobs.models import Job
from django_jobs.monitoring.metrics import expose
from django_jobs.queue import JobQueue
from django_jobs.scheduling.store import create_schedule
from django_jobs.scheduling.ticks import tick
from django_jobs.stats import KeyStats, key_stats, queue_stats
from django_jobs.task_backend.options import fair_key_of_task

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "fair.face"


@pytest.fixture(autouse=True)
def fair() -> Iterator[None]:
    @job(NAME, fair_key="tenant")
    def handler(payload: dict[str, Any]) -> None: ...

    yield
    for name in [one.job_type for one in registry if one.job_type.startswith("fair.")]:
        registry.forget(name)


def test_enqueue_takes_a_fair_key_and_show_tells_it() -> None:
    out = StringIO()
    call_command("jobs", "enqueue", NAME, "--payload", '{"tenant": 7}', "--fair-key", "t9", stdout=out)
    job_id = out.getvalue().strip()
    assert Job.objects.get().fair_key == "t9"
    shown = StringIO()
    call_command("jobs", "show", job_id, "--json", stdout=shown)
    assert json.loads(shown.getvalue())["fair_key"] == "t9"
    call_command("jobs", "enqueue", "--json", json.dumps({"type": NAME, "payload": {"tenant": 7}, "fair_key": "t8"}))
    assert {*Job.objects.values_list("fair_key", flat=True)} == {"t9", "t8"}


def test_the_page_of_a_job_tells_its_fair_key(admin_client: Any) -> None:
    one = submit(NAME, {"tenant": "acme"})
    assert "acme" in admin_client.get(f"/admin/django_jobs/job/{one.pk}/change/").content.decode()


def test_a_job_that_is_created_first_keeps_its_key() -> None:
    queue = JobQueue("mail")
    queue.enqueue(Job.create(NAME, {"tenant": "a"}, queue="mail"))
    queue.enqueue(Job.create(NAME, {"tenant": "a"}, queue="mail", fair_key="b"))
    assert sorted(Job.objects.values_list("fair_key", flat=True)) == ["a", "b"]


def test_an_import_keeps_the_keys() -> None:
    submit(NAME, {"tenant": "a"})
    submit(NAME, {"tenant": None})
    queue = JobQueue("default")
    data = queue.export_jobs()
    Job.objects.all().delete()
    assert queue.import_jobs(data) == 2
    assert {*Job.objects.values_list("fair_key", flat=True)} == {"a", None}


def test_ready_jobs_with_keys_are_counted_and_their_queue_is_seen() -> None:
    submit(NAME, {"tenant": "a"})
    submit(NAME, {"tenant": None})
    assert [(name, one.ready) for name, one in queue_stats().items() if one.ready] == [("default", 2)]
    assert queues_with_work() == ["default"]


def test_a_schedule_has_a_fair_key_or_asks_its_payload() -> None:
    create_schedule("said", NAME, at=database_now(), payload={"tenant": "a"}, fair_key="3")
    create_schedule("asked", NAME, at=database_now(), payload={"tenant": "a"})
    tick()
    assert {*Job.objects.values_list("fair_key", flat=True)} == {"3", "a"}


def test_a_task_looks_its_key_up_among_the_keyword_arguments() -> None:
    assert fair_key_of(fair_key_of_task("tenant"), {"args": [], "kwargs": {"tenant": 7}}) == "7"
    with pytest.raises(InvalidJob, match="no key 'tenant'"):
        fair_key_of(fair_key_of_task("tenant"), {"args": [], "kwargs": {}})


def waiting(**numbers: int) -> None:
    submit_many([NewJob(NAME, {"tenant": key}) for key, number in numbers.items() for _ in range(number)])


def test_stats_tell_the_keys_that_wait_and_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(a=2, b=9, c=1, d=4)
    submit(NAME, {"tenant": "c"}, priority=9)
    submit(NAME, {"tenant": None})
    submit(NAME, {"tenant": "later"}, delay=3600)
    submit(NAME, {"tenant": "x"}, queue="other")
    assert key_stats(largest=3) == [
        KeyStats(queue="default", keys=4, largest=[("b", 9), ("d", 4), ("a", 2)]),
        KeyStats(queue="other", keys=1, largest=[("x", 1)]),
    ]
    assert key_stats(largest=0)[0] == KeyStats(queue="default", keys=4, largest=[])
    monkeypatch.setattr(stats, "LARGE", 2)
    assert key_stats(largest=2)[0].largest == [("b", 9), ("d", 4)], "those that have many are counted on"
    monkeypatch.setattr(stats, "MOST_OF_KEY", 5)
    assert key_stats(largest=2)[0].largest == [("b", 6), ("d", 4)]
    monkeypatch.setattr(stats, "MOST_KEYS", 2)
    assert key_stats(largest=2)[0] == KeyStats(queue="default", keys=3, largest=[("b", 6), ("a", 2)])


def test_stats_tell_the_keys_of_jobs_that_a_limit_holds_back() -> None:
    job("fair.held", fair_key="tenant", limit=Limit(concurrency=1))(lambda payload: None)
    try:
        leases.register("p", queues=[], threads=1)
        submit_many([NewJob("fair.held", {"tenant": key}) for key in "aab"])
        assert len(claim("default", 5, "p")) == 1
        waiting(a=1, c=2)
        assert key_stats() == [KeyStats(queue="default", keys=3, largest=[("a", 2), ("c", 2), ("b", 1)])]
    finally:
        registry.forget("fair.held")
        active_limits.forget_queues()


def test_stats_tell_how_long_the_first_of_all_keys_has_waited() -> None:
    waiting(a=2, b=2)
    submit(NAME, {"tenant": "c"}, priority=9)
    submit(NAME, {"tenant": "z"}, queue="other")
    hour = database_now().replace(microsecond=0) - timedelta(hours=1)
    last = Job.objects.filter(fair_key="b").order_by("pk").values_list("pk", flat=True)[1]
    Job.objects.filter(pk=last).update(available_at=hour)
    oldest = dict(sorted(dialect().oldest_ready(), key=lambda row: row[1], reverse=True))
    assert oldest["default"] == hour
    assert oldest["other"] > hour


def test_no_statement_more_for_queues_without_keys(django_assert_num_queries: Any) -> None:
    submit(NAME, {"tenant": None})
    with django_assert_num_queries(1):
        assert key_stats() == []


def test_jobs_queues_tells_the_keys_that_wait() -> None:
    waiting(acme=3, b=1)
    out = StringIO()
    call_command("jobs", "queues", "--json", stdout=out)
    (row,) = (one for one in map(json.loads, out.getvalue().splitlines()) if one["queue"] == "default")
    assert row["fair_keys"] == 2
    assert row["largest_fair_keys"] == [{"fair_key": "acme", "ready": 3}, {"fair_key": "b", "ready": 1}]
    table = StringIO()
    call_command("jobs", "queues", stdout=table)
    assert "acme: 3, b: 1" in table.getvalue()


def test_the_page_of_limits_and_the_metrics_tell_the_keys_that_wait(admin_client: Any) -> None:
    assert "Fair keys" not in admin_client.get("/admin/django_jobs/limit/").content.decode()
    waiting(acme=3, b=1)
    page = admin_client.get("/admin/django_jobs/limit/").content.decode()
    assert "Fair keys" in page
    assert "<bdi>acme</bdi> (3)" in page
    assert 'django_jobs_fair_keys{queue="default"} 2.0' in expose().decode()
