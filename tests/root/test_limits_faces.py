"""Limits as people see and set them: the command line, the admin, metrics, the library, the testing kit, exports, tasks."""

import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core import checks
from django.core.management import CommandError, call_command

from django_jobs import Limit, NewJob, job, stats, submit, submit_many
from django_jobs.exceptions import InvalidJob
from django_jobs.handlers import registry
from django_jobs.lifecycle import active_limits, leases, slots
from django_jobs.lifecycle.claim import claim
from django_jobs.models import Job, Schedule
from django_jobs.models import Limit as LimitRow
from django_jobs.monitoring.metrics import expose
from django_jobs.queue import JobQueue
from django_jobs.testing import drain
from django_jobs.worker.local_process import stop_local_process
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "limited.face"


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    @job(NAME, limit=Limit(concurrency=1, key="account"))
    def handler(payload: dict[str, Any]) -> None: ...

    leases.register("p", queues=[], threads=1)
    yield
    for name in [one.job_type for one in registry if one.job_type.startswith("limited.")]:
        registry.forget(name)
    stop_local_process()
    active_limits.forget_queues()


def command(*arguments: str) -> str:
    out = StringIO()
    call_command("jobs", *arguments, stdout=out)
    return out.getvalue()


def held() -> None:
    for number in range(3):
        submit(NAME, {"account": 7}, job_id=f"j{number}")
    assert len(claim("default", 10, "p")) == 1


def test_jobs_limits_lists_who_holds_and_who_waits() -> None:
    held()
    (line,) = [json.loads(text) for text in command("limits", "--json").splitlines()]
    of_rate = {"rate": None, "started": 0, "next_start_at": None}
    assert line == {
        "name": f"type:{NAME}", "key": "7", "concurrency": 1, "running": 1, "waiting": 2, "set_at": None, **of_rate
    }  # fmt: skip
    assert f"type:{NAME}" in command("limits")
    assert json.loads(command("show", "j1", "--json"))["held_back_by"] == f"type:{NAME} 7"


def test_of_very_many_jobs_that_are_held_back_so_many_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    job("limited.counted", limit=Limit(concurrency=1, key="account"))(lambda payload: None)
    try:
        submit_many([NewJob("limited.counted", {"account": key}) for key in "abc" for _ in range(5)])
        claim("default", 10, "p")

        def counted() -> list[tuple[str | None, int, int]]:
            found = [one for one in stats.limit_stats() if one.name == "type:limited.counted"]
            return [(one.key, one.running, one.waiting) for one in found]

        assert counted() == [("a", 1, 4), ("b", 1, 4), ("c", 1, 4)]
        monkeypatch.setattr(stats, "MOST_HELD_BACK", 11)
        monkeypatch.setattr(stats, "MOST_OF_KEY", 2)
        monkeypatch.setattr(stats, "MOST_SCOPES", 2)
        assert counted() == [("a", 1, 3), ("b", 1, 3), ("c", 1, 0)]
    finally:
        registry.forget("limited.counted")


def test_an_operator_sets_and_resets_a_limit_on_the_command_line() -> None:
    held()
    command("limits", "set", f"type:{NAME}", "--concurrency", "2")
    assert [one.id for one in claim("default", 10, "p")] == ["j1"]
    command("limits", "reset", f"type:{NAME}")
    assert not LimitRow.objects.get(pk=f"type:{NAME}").is_set
    with pytest.raises(CommandError, match="give a number of jobs, or none"):
        command("limits", "set", f"type:{NAME}", "--concurrency", "-1")
    with pytest.raises(CommandError, match="there is no limit"):
        command("limits", "reset", "queue:nowhere")


def test_a_rate_is_set_and_shown_on_the_command_line_and_in_the_admin() -> None:
    held()
    command("limits", "set", f"type:{NAME}", "--rate", "100/m")
    (line,) = [json.loads(text) for text in command("limits", "--json").splitlines()]
    assert (line["rate"], line["concurrency"], line["started"]) == ("100/m", 1, 0)
    client = operator()
    assert "100/m" in client.get("/admin/django_jobs/limit/").content.decode()
    client.post("/admin/django_jobs/limit/set/", {"limit": f"type:{NAME}", "concurrency": "3", "rate": "9/s"})
    row = LimitRow.objects.get(pk=f"type:{NAME}")
    assert (row.concurrency_now, row.rate_now) == (3, "9/s")
    with pytest.raises(CommandError, match="give --concurrency, --rate or both"):
        command("limits", "set", f"type:{NAME}")


def test_enqueue_takes_a_limit_key() -> None:
    command("enqueue", NAME, "--payload", '{"account": 1}', "--limit-key", "9")
    assert Job.objects.get().limit_key == "9"


def test_the_admin_shows_limits_and_what_holds_a_job_back_and_sets_one() -> None:
    held()
    client = operator()
    page = client.get("/admin/django_jobs/limit/").content.decode()
    assert f"type:{NAME}" in page
    assert "Held back" in page
    assert f"held back by type:{NAME} 7" in client.get("/admin/django_jobs/job/").content.decode()
    assert f"type:{NAME} 7" in client.get("/admin/django_jobs/job/j1/change/").content.decode()
    client.post("/admin/django_jobs/limit/set/", {"limit": f"type:{NAME}", "concurrency": "5"})
    assert LimitRow.objects.get(pk=f"type:{NAME}").concurrency_now == 5
    client.post("/admin/django_jobs/limit/set/", {"limit": f"type:{NAME}", "concurrency": "many"})
    assert LimitRow.objects.get(pk=f"type:{NAME}").concurrency_now == 5
    client.post("/admin/django_jobs/limit/set/", {"limit": f"type:{NAME}", "reset": "1"})
    assert LimitRow.objects.get(pk=f"type:{NAME}").concurrency_now == 1


def test_only_who_may_change_limits_sets_one() -> None:
    reader = browse(staff("view_limit"))
    assert "Set" not in reader.get("/admin/django_jobs/limit/").content.decode().split("<tbody>")[1]
    answer = reader.post("/admin/django_jobs/limit/set/", {"limit": f"type:{NAME}", "concurrency": "5"})
    assert answer.status_code == 403


def test_metrics_tell_what_limits_hold() -> None:
    held()
    text = expose().decode()
    assert f'django_jobs_limit_running{{limit="type:{NAME}"}} 1.0' in text
    assert f'django_jobs_limit_held_back{{limit="type:{NAME}"}} 2.0' in text
    assert 'django_jobs_held_back_jobs{queue="default"} 2.0' in text
    assert 'django_jobs_ready_jobs{queue="default"} 0.0' in text


def test_a_queue_object_has_the_limit_of_its_queue() -> None:
    queue = JobQueue("limited", limit=Limit(concurrency=1))
    queue.register_handler("own.type", lambda payload: None)
    first, second = queue.enqueue("own.type"), queue.enqueue("own.type")
    taken = queue.dequeue()
    assert taken is not None
    assert taken.id == first
    assert queue.peek() is None
    assert queue.dequeue() is None
    assert (queue.ready_count(), queue.size) == (1, 2)
    queue.update_status(first, "completed")
    assert queue.process_next() == second
    with pytest.raises(InvalidJob, match=r"a handler of one queue object has none"):
        queue.register_handler("other.type", lambda payload: None, limit=Limit(concurrency=1))


def test_the_testing_kit_obeys_limits() -> None:
    held()
    assert drain() == [], "j0 runs elsewhere"
    Job.objects.get(pk="j0").delete()
    slots.sweep()
    assert [one.id for one in drain()] == ["j1", "j2"]


def test_an_export_keeps_the_keys_and_an_import_holds_nothing() -> None:
    held()
    queue = JobQueue("default")
    data = queue.export_jobs()
    Job.objects.all().delete()
    assert queue.import_jobs(data, include_running=True) == 3
    assert {*Job.objects.values_list("limit_key", "pending_limits")} == {("7", 0)}
    assert [one.id for one in claim("default", 10, "p")] == ["j0"]


def test_a_schedule_has_a_limit_key_and_one_whose_payload_lacks_the_key_disables_itself() -> None:
    from django_jobs.db.transactions import database_now
    from django_jobs.scheduling.store import create_schedule
    from django_jobs.scheduling.ticks import tick

    create_schedule("good", NAME, at=database_now(), limit_key="3")
    create_schedule("bad", NAME, at=database_now())
    tick()
    assert Job.objects.get().limit_key == "3"
    bad = Schedule.objects.get(name="bad")
    assert (bad.enabled, "the payload has no key 'account'" in bad.last_error) == (False, True)


@pytest.mark.parametrize(
    ("queues", "ids"),
    [
        ({"mail": {"limit": {"concurrency": 0}}}, {"django_jobs.E003"}),
        ({"mail": {"limit": 5}}, {"django_jobs.E003"}),
        ({"mail": {"limit": {"concurrency": 2, "name": "bank"}}}, {"django_jobs.E012", "django_jobs.E013"}),
        ({"mail": {"limit": Limit(concurrency=1, key="x")}}, set()),
    ],
)
def test_checks_find_limits_that_cannot_be(queues: dict[str, Any], ids: set[str], settings: Any) -> None:
    settings.DJANGO_JOBS = {"QUEUES": queues}
    job("limited.bank", limit=Limit(concurrency=1, name="bank"))(lambda payload: None)
    found = {message.id for message in checks.run_checks(tags=["django_jobs"])}
    assert found & {"django_jobs.E003", "django_jobs.E012", "django_jobs.E013"} == ids
