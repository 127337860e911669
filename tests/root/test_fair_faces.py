"""Fair keys as people see and give them: the command line, the admin, schedules, the library, exports, tasks."""

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from django_jobs import job, submit
from django_jobs.db.transactions import database_now
from django_jobs.due import queues_with_work
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.limit import fair_key_of
from django_jobs.models import Job
from django_jobs.queue import JobQueue
from django_jobs.scheduling.store import create_schedule
from django_jobs.scheduling.ticks import tick
from django_jobs.stats import queue_stats
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
