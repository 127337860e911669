"""The overview, the queues, the workers and the schedules: what they show, and what their buttons do."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry

from django_jobs import stats
from django_jobs.admin.charts import bars_of
from django_jobs.db.dialects import base
from django_jobs.db.transactions import database_now
from django_jobs.models import Job, Queue, Schedule, ScheduleTick, WorkerProcess
from django_jobs.scheduling.store import create_schedule
from tests.support.factories import DeadLetterFactory, JobFactory, QueueFactory, WorkerProcessFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

HOME = "/admin/django_jobs/"
OVERVIEW = "/admin/django_jobs/overview/"
QUEUES = "/admin/django_jobs/queue/"
WORKERS = "/admin/django_jobs/workerprocess/"
SCHEDULES = "/admin/django_jobs/schedule/"


def finished(seconds_ago: float, status: str = "completed", *, wait: float = 1, run: float = 2, **more: Any) -> Job:
    """Write a job that ended so long ago, after it waited and ran so long."""
    end = database_now() - timedelta(seconds=seconds_ago)
    start = end - timedelta(seconds=run)
    ready = start - timedelta(seconds=wait)
    times = {"created_at": ready, "available_at": ready, "started_at": start, "finished_at": end}
    return JobFactory(status=status, worker_id="test:1:a", **{**times, **more})


def test_the_overview_is_first_in_its_section() -> None:
    names = [model["object_name"] for model in operator().get(HOME).context["app_list"][0]["models"]]
    assert names == [
        "Overview", "Alert", "Batch", "DeadLetter", "Job", "Limit", "Operation", "Queue", "Schedule",
        "WorkerProcess", "GoneProcess",
    ]  # fmt: skip


def test_the_overview_counts_what_waits_runs_and_died() -> None:
    old = database_now() - timedelta(minutes=10)
    JobFactory(queue="mail", priority=2, created_at=old)
    JobFactory.create_batch(2, queue="mail", priority=9)
    JobFactory(queue="mail", pending_dependencies=1)
    JobFactory(queue="slow", status="running")
    JobFactory(status="scheduled")
    DeadLetterFactory()
    WorkerProcessFactory(threads=4)
    context = operator().get(OVERVIEW).context
    rows = {row["name"]: row for row in context["queues"]}
    assert (rows["mail"]["ready"], rows["mail"]["oldest"][:6], rows["slow"]["running"]) == ("3", "10 min", 1)
    state = context["state"]
    assert (state["ready"], state["running"], state["scheduled"], state["dead_letters"]) == (3, 1, 1, 1)
    assert (state["alive"], state["threads"]) == (1, 4)
    assert "held back by limits" not in {card["label"] for card in context["cards"]}


def test_the_overview_counts_what_limits_hold_back_where_some_do() -> None:
    for _ in range(3):
        JobFactory(pending_limits=1).slots.create(
            scope="queue:mail", waits=True, starts=False, queue="mail", rank=0, available_at=database_now()
        )
    cards = {card["label"]: card for card in operator().get(OVERVIEW).context["cards"]}
    assert cards["ready"]["value"] == "0"
    assert (cards["held back by limits"]["value"], cards["held back by limits"]["url"]) == ("3", f"{HOME}limit/")


def test_the_overview_says_what_needs_an_operator() -> None:
    long_ago = database_now() - timedelta(minutes=20)
    JobFactory(queue="mail", created_at=long_ago)
    JobFactory(queue="stopped")
    QueueFactory(name="stopped", paused_at=long_ago)
    Schedule.objects.create(
        name="report", job_type="effects.record", kind="interval", interval_seconds=60, next_run_at=long_ago
    )
    client = operator()
    first = " ".join(map(str, client.get(OVERVIEW).context["problems"]))
    assert "no worker process is alive" in first
    assert "Queue stopped is paused, with 1 jobs ready" in first
    assert "Schedules are late: report" in first
    WorkerProcessFactory(queues=[])
    second = " ".join(map(str, client.get(OVERVIEW).context["problems"]))
    assert "A job has been ready in queue mail for 20 min" in second
    assert "no worker" not in second
    assert "neither run a job" not in second
    WorkerProcess.objects.update(threads=4, silent_threads=3)
    third = " ".join(map(str, client.get(OVERVIEW).context["problems"]))
    assert "Worker threads that neither run a job nor look for one: 3." in third


def test_the_overview_says_which_queue_nobody_serves_who_is_silent_and_what_was_disabled() -> None:
    now = database_now()
    JobFactory.create_batch(12, queue="mial")
    served = JobFactory(queue="mail")
    later = now + timedelta(hours=1)
    # It does not fall silent, however slow the machine is.
    WorkerProcessFactory(id="w-2", queues=["mail"], heartbeat_at=later)
    WorkerProcessFactory(
        id="w-3", queues=["mail"], heartbeat_at=now - timedelta(days=2, minutes=10), lease_expires_at=later
    )
    for name, error in (("nightly", "no handler for 'shop.report'"), ("old", "no longer declared in the code")):
        Schedule.objects.create(
            name=name, job_type="x", kind="interval", interval_seconds=60, enabled=False, last_error=error
        )
    problems = {str(one): one.url for one in operator().get(OVERVIEW).context["problems"]}
    assert [*problems] == [
        "Worker w-3 has been silent for 2 d.",
        "No worker serves queue mial; 12 jobs wait.",
        "Schedule nightly was disabled: no handler for 'shop.report'",
    ]
    client = browse(staff(name="bob"))
    for url in problems.values():
        assert client.get(url).status_code == 200
    WorkerProcessFactory(queues=[])
    left = " ".join(str(one) for one in client.get(OVERVIEW).context["problems"])
    assert "mial" not in left, "a process without names serves every queue"
    assert served.status == "pending"


def test_a_chart_says_what_its_colours_are_whose_time_it_is_and_its_numbers() -> None:
    finished(60)
    finished(70, "dead")
    text = operator().get(OVERVIEW).text
    figure = text.split('<figure class="jobs-figure">')[1].split("</figure>")[0]
    for part in ("completed</span>", "failed</span>", "times in UTC", "<summary>Numbers</summary>", '<th scope="row">'):
        assert part in figure


def test_an_idle_site_has_no_problems() -> None:
    assert operator().get(OVERVIEW).context["problems"] == []


def test_ended_jobs_are_counted_by_minute_and_quality() -> None:
    finished(600)
    finished(600, "dead")
    finished(600, "cancelled")
    finished(2 * 86_400)
    finished(0)
    now = database_now()
    minutes = stats.newest_stats(now, stats.window_floor()).minutes
    hour = bars_of(minutes, now, 60, timedelta(minutes=1))
    assert len(hour) == 60
    assert sum(good for _, good, _ in hour) == 2
    assert sum(bad for _, _, bad in hour) == 1
    assert [good for _, good, _ in hour][-1] + [good for _, good, _ in hour][-2] >= 1
    day = bars_of(minutes, now, 48, timedelta(minutes=30))
    assert sum(good for _, good, _ in day) == 2


def test_bars_end_with_the_present_one() -> None:
    now = datetime(2026, 7, 1, 12, 34, 56, tzinfo=UTC)
    bars = bars_of({datetime(2026, 7, 1, 12, 34, tzinfo=UTC): (3, 1)}, now, 3, timedelta(minutes=30))
    assert bars == [
        (datetime(2026, 7, 1, 11, 30, tzinfo=UTC), 0, 0),
        (datetime(2026, 7, 1, 12, 0, tzinfo=UTC), 0, 0),
        (datetime(2026, 7, 1, 12, 30, tzinfo=UTC), 3, 1),
    ]


@pytest.mark.parametrize(
    ("values", "percent", "answer"),
    [([], 50, None), ([3], 95, 3), ([1, 2, 3, 4], 50, 2), (list(range(1, 101)), 95, 95), ([5, 1], 50, 1)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: int, answer: float | None) -> None:
    assert stats.percentile(values, percent) == answer


def test_waits_and_runs_are_those_of_the_newest_completed_jobs() -> None:
    finished(30, wait=100, run=200)
    finished(20, wait=1, run=2)
    finished(10, wait=3, run=4, queue="mail")
    found = stats.queue_stats()
    stats.add_times(found, stats.newest_runs(stats.window_floor(), limit=2))
    assert [round(value) for value in found["default"].waits + found["mail"].waits] == [1, 3]
    assert [round(value) for value in found["default"].runs + found["mail"].runs] == [2, 4]


def test_a_count_of_ready_jobs_stops_at_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 5)
    JobFactory.create_batch(7, queue="mail")
    assert stats.queue_stats()["mail"].ready == 6


# --- queues


@pytest.mark.parametrize("right", ["pause_queue", "change_queue", "cancel_job"])
def test_a_queue_is_paused_by_who_may_and_resumed(right: str) -> None:
    client = browse(staff(right))
    JobFactory(queue="mail")
    answer = client.post(f"{QUEUES}switch/", {"queue": "mail", "switch": "pause"}, follow=True)
    assert Queue.objects.filter(name="mail", paused_at__isnull=False).exists() is (right == "pause_queue")
    if right != "pause_queue":
        assert answer.status_code == 403
        assert "switch" not in client.get(QUEUES).text
        return
    assert "Paused queue mail" in answer.text
    client.post(f"{QUEUES}switch/", {"queue": "mail", "switch": "resume"})
    assert not Queue.objects.filter(paused_at__isnull=False).exists()
    assert LogEntry.objects.filter(object_id="mail").count() == 2


def test_a_queue_is_not_paused_by_get_or_without_a_token() -> None:
    assert operator().get(f"{QUEUES}switch/", {"queue": "mail", "switch": "pause"}).status_code == 405
    other = browse(staff("pause_queue"), enforce_csrf_checks=True)
    assert other.post(f"{QUEUES}switch/", {"queue": "mail", "switch": "pause"}).status_code == 403
    assert not Queue.objects.exists()


@pytest.mark.parametrize("name", ["", "a;drop", "x" * 65, "\x00", "<b>"])
def test_a_queue_that_cannot_be_is_not_paused(name: str) -> None:
    answer = operator().post(f"{QUEUES}switch/", {"queue": name, "switch": "pause"}, follow=True)
    assert answer.status_code == 200
    assert not Queue.objects.exists()


# --- workers


@pytest.mark.parametrize("right", ["stop_workerprocess", "cancel_job"])
def test_a_worker_process_is_asked_to_stop_by_who_may(right: str) -> None:
    process = WorkerProcessFactory()
    data = {"action": "stop_selected", "_selected_action": [process.pk], "index": "0"}
    client = browse(staff(right))
    asked = client.post(WORKERS, data)
    assert WorkerProcess.objects.get().stopping_at is None, "it asks first"
    client.post(WORKERS, {**data, "confirmed": "1"})
    assert (WorkerProcess.objects.get().stopping_at is not None) is (right == "stop_workerprocess")
    if right == "stop_workerprocess":
        assert "This is for" in asked.text
        assert LogEntry.objects.get().object_id == process.pk


def test_workers_show_state_and_what_they_run() -> None:
    alive = WorkerProcessFactory(threads=9, silent_threads=7)
    gone = WorkerProcessFactory(lease_expires_at=database_now() - timedelta(seconds=9))
    JobFactory.create_batch(2, status="running", worker_id=alive.pk)
    rows = {row.pk: row for row in operator().get(WORKERS).context["cl"].result_list}
    assert (rows[alive.pk].running, rows[gone.pk].running) == (2, 0)
    text = operator_text(WORKERS)
    assert "lease expired" in text
    assert "alive" in text
    assert "7 silent threads" in text


def operator_text(url: str) -> str:
    """Return a page as somebody who may look sees it."""
    return browse(staff(name="bob")).get(url).text


# --- schedules


def test_a_schedule_is_run_now_enabled_and_disabled_by_who_may() -> None:
    row = create_schedule("report", "effects.record", every=3600)
    runner, switcher = browse(staff("run_schedule")), browse(staff("change_schedule", name="eve"))
    data = {"_selected_action": [row.pk], "index": "0", "confirmed": "1"}
    switcher.post(SCHEDULES, {**data, "action": "run_selected"})
    assert not Job.objects.exists()
    answer = runner.post(SCHEDULES, {**data, "action": "run_selected"}, follow=True)
    assert "Submitted the job of 1 schedule." in answer.text
    assert ScheduleTick.objects.get().job == Job.objects.get()
    runner.post(SCHEDULES, {**data, "action": "disable_selected"})
    assert Schedule.objects.get().enabled
    switcher.post(SCHEDULES, {**data, "action": "disable_selected"})
    assert not Schedule.objects.get().enabled
    switcher.post(SCHEDULES, {**data, "action": "enable_selected"})
    assert Schedule.objects.get().enabled
    assert LogEntry.objects.filter(object_id=str(row.pk)).count() == 3


def test_a_schedules_page_shows_its_next_ticks_and_last_jobs() -> None:
    row = create_schedule("report", "effects.record", cron="0 3 * * *", timezone="UTC", payload={"password": "geheim"})
    client = operator()
    client.post(SCHEDULES, {"action": "run_selected", "_selected_action": [row.pk], "index": "0", "confirmed": "1"})
    page = client.get(f"{SCHEDULES}{row.pk}/change/")
    assert len(page.context["next_ticks"]) == 10
    assert {tick.hour for tick in page.context["next_ticks"]} == {3}
    assert Job.objects.get().pk in page.text
    assert "geheim" not in page.text
    assert "At 03:00" in page.text


def test_a_broken_schedule_is_shown_and_breaks_nothing() -> None:
    row = Schedule.objects.create(
        name="broken", job_type="no.such", kind="cron", cron="61 * * * *", timezone="Mars/Base", enabled=False,
        last_error="61: no such minute",
    )  # fmt: skip
    client = operator()
    for url in (SCHEDULES, f"{SCHEDULES}{row.pk}/change/", OVERVIEW):
        assert client.get(url).status_code == 200
    data = {"action": "enable_selected", "_selected_action": [row.pk], "index": "0", "confirmed": "1"}
    answer = client.post(SCHEDULES, data, follow=True)
    assert "1 was left as it is" in answer.text
