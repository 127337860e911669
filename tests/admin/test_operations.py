"""Operations in the console: begun by an action on many rows, watched, paused and stopped on a page of their own."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_jobs.admin import operations
from django_jobs.db.transactions import database_now
from django_jobs.lifecycle.operations import begin, move_operations, rows_of
from django_jobs.models import Batch, BatchMember, DeadLetter, Job, Operation, OperationKind, Schedule, ScheduleTick
from tests.support.factories import DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

JOBS, DEAD_LETTERS, PAGES = (f"/admin/django_jobs/{name}/" for name in ("job", "deadletter", "operation"))


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHUNK", 1)


def do(client: Any, url: str, action: str, **fields: Any) -> Any:
    """Post an action on all rows that match, confirmed."""
    rows = (Job if "/job/" in url else DeadLetter).objects
    data = {"action": action, "index": "0", "select_across": "1", "confirmed": "1", "_selected_action": rows.first().pk}
    return client.post(url, {**data, **fields}, follow=True)


def test_an_action_on_many_rows_becomes_an_operation_and_leads_to_its_page() -> None:
    JobFactory.create_batch(3, status="dead", queue="mail")
    client = operator()
    asked = do(client, f"{JOBS}?queue=mail", "replay_selected", confirmed=[])
    assert "an operation that workers carry out" in asked.text
    answer = do(client, f"{JOBS}?queue=mail", "replay_selected")
    operation = Operation.objects.get()
    assert answer.redirect_chain[-1][0] == f"{PAGES}{operation.pk}/change/"
    assert "Began: Replay jobs (3)." in answer.text
    assert "No worker process is alive" in answer.text
    assert f"{JOBS}?queue=mail" in answer.text, "which rows"
    assert not Job.objects.filter(status="pending").exists()
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.content_type.model) == (str(operation.pk), "operation")
    assert "queue=mail" in entry.get_change_message()
    assert "operation" in client.get("/admin/django_jobs/overview/acts/").text
    move_operations()
    WorkerProcessFactory()
    text = client.get(f"{PAGES}{operation.pk}/change/").text
    assert "3 of 3" in text
    assert "finished" in text
    assert 'name="switch"' not in text


def test_a_few_selected_rows_are_moved_at_once_unless_a_rate_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHUNK", 500)
    client, letters = operator(), DeadLetterFactory.create_batch(3)
    data = {
        "action": "replay_selected",
        "index": "0",
        "confirmed": "1",
        "_selected_action": [one.pk for one in letters],
    }
    client.post(DEAD_LETTERS, {**data, "per_second": "2"})
    operation = Operation.objects.get()
    assert (operation.ids, operation.per_second) == ([one.pk for one in letters], 2.0)
    assert "3 selected rows" in client.get(f"{PAGES}{operation.pk}/change/").text
    operation.stop()
    client.post(DEAD_LETTERS, data)
    assert DeadLetter.objects.replayed().count() == 3
    assert Operation.objects.count() == 1


def _every_filter() -> None:
    """Write jobs and dead letters that differ in all that the lists can be filtered by."""
    now = database_now()
    batch = Batch.objects.create(id="b1", created_at=now)
    schedule = Schedule.objects.create(name="nightly", job_type="a", kind="interval", interval_seconds=60, queue="mail")
    for number in range(6):
        odd = number % 2 == 1
        job = JobFactory(
            id=f"job-{number}", status="dead" if odd else "failed", queue="mail" if odd else "default",
            job_type="shop.a" if odd else "shop.b", worker_id="w:1:a" if odd else None, unique_key="k" if odd else None,
            created_at=now - timedelta(hours=odd * 3), batch=batch if odd else None, payload={"account": number},
            error="TimeoutError: no" if odd else "KeyError",
        )  # fmt: skip
        if odd:
            ScheduleTick.objects.create(schedule=schedule, due_at=now + timedelta(minutes=number), job=job)
            BatchMember.objects.create(batch=batch, job=job, place=number, bad_end="dead")
        DeadLetterFactory(
            job=job, fingerprint="f1" if odd else "", reason="timeout" if odd else "crash loop", error=job.error,
            died_at=now - timedelta(hours=odd * 3),
        )  # fmt: skip
    DeadLetter.objects.filter(job_id="job-5").update(acknowledged_at=now)


@pytest.mark.parametrize(
    ("query", "by_filters"),
    [
        (f"{JOBS}?status=dead", True),
        (f"{JOBS}?queue=mail&job_type=shop.a", True),
        (f"{JOBS}?worker_id=w%3A1%3Aa", True),
        (f"{JOBS}?age=1h", True),
        (f"{JOBS}?schedule=nightly", True),
        (f"{JOBS}?batch=b1", True),
        (f"{JOBS}?sort=oldest&status=dead", True),
        (f"{JOBS}?q=type:shop.a+after:2020-01-01", True),
        (f"{JOBS}?q=type:shop.a+type:shop.b", False),
        (f"{JOBS}?q=type:shop.a&job_type=shop.b", False),
        (f"{JOBS}?q=error:timeout", False),
        (f"{JOBS}?q=account:3", False),
        (f"{JOBS}?q=job-3", False),
        (f"{JOBS}?queue__startswith=ma", False),
        (DEAD_LETTERS, True),
        (f"{DEAD_LETTERS}?state=acknowledged", True),
        (f"{DEAD_LETTERS}?state=all&age=1h", True),
        (f"{DEAD_LETTERS}?reason__exact=timeout", True),
        (f"{DEAD_LETTERS}?job_type=shop.a", True),
        (f"{DEAD_LETTERS}?fingerprint=f1", True),
        (f"{DEAD_LETTERS}?fingerprint=-&state=all", True),
        (f"{DEAD_LETTERS}?q=queue:mail", True),
        (f"{DEAD_LETTERS}?q=no", False),
    ],
)
def test_an_operation_is_on_the_rows_that_the_list_shows(query: str, by_filters: bool) -> None:
    _every_filter()
    client = operator()
    listed = {row.pk for row in client.get(query).context["cl"].result_list}
    do(client, query, "replay_selected", per_second="1")
    if not listed:
        assert not Operation.objects.exists() or not rows_of(Operation.objects.get()).exists()
        return
    operation = Operation.objects.get()
    assert set(rows_of(operation).values_list("pk", flat=True)) == listed
    assert operation.total == len(listed)
    assert (operation.ids is None) is by_filters


def test_rows_past_the_window_of_a_list_are_not_in_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_jobs.admin.paging.WINDOW", 3)
    JobFactory.create_batch(5, status="dead")
    do(operator(), f"{JOBS}?status=dead", "replay_selected")
    assert Operation.objects.get().total == 3


def test_more_rows_than_a_list_of_keys_holds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MOST_IDS", 2)
    JobFactory.create_batch(4, status="dead", error="TimeoutError")
    answer = do(operator(), f"{JOBS}?q=error:timeout", "replay_selected")
    assert Operation.objects.get().total == 2
    assert "first 2 rows" in answer.text


@pytest.mark.parametrize("right", ["cancel_job", "replay_deadletter", None])
def test_who_may_begin_an_operation_may_pause_and_stop_it(right: str | None) -> None:
    JobFactory()
    operation = begin(OperationKind.CANCEL, filters={})
    client = browse(staff(*([right] if right else [])))
    page = f"{PAGES}{operation.pk}/"
    assert ('value="pause"' in client.get(f"{page}change/").text) is (right == "cancel_job")
    seen = []
    for switch in ("pause", "resume", "stop"):
        client.post(f"{page}switch/", {"switch": switch})
        operation.refresh_from_db()
        seen.append(operation.state)
    assert seen == (["paused", "running", "stopped"] if right == "cancel_job" else ["running"] * 3)
    assert LogEntry.objects.count() == (3 if right == "cancel_job" else 0)
    assert client.get(f"{page}switch/").status_code == 405
    again = client.post(f"{page}switch/", {"switch": "stop"}, follow=True)
    assert right != "cancel_job" or "is stopped" in again.text


def test_operations_are_linked_from_lists_and_the_overview_names_failed_ones() -> None:
    client = operator()
    JobFactory(status="dead")
    going = begin(OperationKind.REPLAY, filters={"status": "dead"})
    failed = begin(OperationKind.CANCEL, filters={})
    Operation.objects.filter(pk=failed.pk).update(
        state="failed", error="FieldError: no column", next_at=None, ended_at=database_now()
    )
    overview = client.get("/admin/django_jobs/overview/").text
    assert "1 operation goes on" in overview
    assert re.search(rf'href="{PAGES}{failed.pk}/change/"><bdi>Operation #{failed.pk} \(cancel jobs\) failed', overview)
    for url in (JOBS, DEAD_LETTERS):
        assert 'href="../operation/"' in client.get(url).text
    listed = client.get(PAGES)
    assert [row.pk for row in listed.context["cl"].result_list] == [failed.pk, going.pk]
    assert [row.pk for row in client.get(f"{PAGES}?state__exact=failed").context["cl"].result_list] == [failed.pk]
    assert "FieldError: no column" in client.get(f"{PAGES}{failed.pk}/change/").text


def test_a_list_of_operations_does_not_read_the_keys_of_their_rows() -> None:
    begin(OperationKind.CANCEL, ids=["a", "b"])
    client = operator()
    with CaptureQueriesContext(connection) as queries:
        client.get(PAGES)
    sql = " ".join(query["sql"] for query in queries if "django_jobs_operation" in query["sql"])
    assert not re.search(r"\bids\b", sql)
    assert len(queries) <= 6
