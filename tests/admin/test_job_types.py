"""The pages of job types: usual times, today against before, the slowest and the failed, and what the code says."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_jobs import stats
from django_jobs.admin import problems
from django_jobs.db.transactions import database_now
from django_jobs.models import Job
from django_jobs.scheduling.store import create_schedule
from tests.support.factories import JobFactory
from tests.support.staff import browse, operator, staff

pytestmark = pytest.mark.django_db

TYPES = "/admin/django_jobs/job/_types/"


def ran(at: datetime, run: float = 2, *, wait: float = 1, status: str = "completed", **more: Any) -> Job:
    """Build a job whose run ended at a time."""
    start = at - timedelta(seconds=run)
    ready = start - timedelta(seconds=wait)
    times = {"created_at": ready, "available_at": ready, "started_at": start, "finished_at": at}
    return JobFactory.build(status=status, worker_id="test:1:a", **{"job_type": "effects.record", **times, **more})


def write(*jobs: Job) -> None:
    Job.objects.bulk_create(jobs)


def page(name: str = "effects.record") -> Any:
    """Return the page of a type."""
    answer = operator().get(f"{TYPES}{quote(name)}/")
    assert answer.status_code == 200
    return answer


def test_types_are_those_of_the_code_and_those_of_the_newest_runs() -> None:
    now = database_now()
    write(ran(now), ran(now, 4, status="dead"), ran(now, job_type="old.type/with & more"), ran(now, status="cancelled"))
    rows = {row["name"]: row for row in operator().get(TYPES).context["rows"]}
    assert (rows["effects.record"]["count"], rows["effects.record"]["bad"]) == ("2", "1")
    assert rows["effects.record"]["run"] == "2.0 s / 2.0 s / 2.0 s"
    assert (rows["old.type/with & more"]["known"], rows["effects.flaky"]["count"]) == (False, "0")
    assert operator_get(rows["old.type/with & more"]["url"]).context["runs"] == 1


def operator_get(url: str) -> Any:
    return browse(staff(name="bob")).get(url)


def test_a_page_says_whether_today_is_as_usual() -> None:
    before = database_now() - timedelta(days=3)
    write(*(ran(before - timedelta(minutes=n), 2) for n in range(30)))
    assert page().context["verdicts"] == ["Too few runs to compare today with the two weeks before."]


@pytest.mark.parametrize(
    ("today", "verdict"),
    [
        ({"run": 2.2}, "Today is as usual."),
        ({"run": 6.0}, "Today's runs take 3.0 times as long: 6.0 s at the median, 2.0 s before."),
        ({"wait": 9.0}, "Today's jobs wait 9.0 times as long: 9.0 s at the median, 1.0 s before."),
        ({"status": "dead"}, "Today 100.0 of 100 runs ended badly, 0.0 before."),
    ],
)
def test_a_page_says_what_is_worse_today(today: dict[str, Any], verdict: str) -> None:
    now = database_now()
    write(*(ran(now - timedelta(days=3, minutes=n)) for n in range(30)), *(ran(now, **today) for _ in range(25)))
    assert verdict in page_without_midnight(now).context["verdicts"]


def page_without_midnight(now: datetime) -> Any:
    """Return the page in a time zone in which it is not just after midnight."""
    with timezone.override(timezone.get_fixed_timezone(12 * 60 - (now.hour * 60 + now.minute))):
        return page()


def test_a_page_lists_the_slowest_and_the_newest_failed_runs() -> None:
    now = database_now()
    write(
        *(ran(now - timedelta(minutes=n), n) for n in range(12)), ran(now, 99, status="failed", error="KeyError: 'zip'")
    )
    context = page().context
    assert [row["took"] for row in context["slowest"]][:3] == ["1 min 39 s", "11 s", "10 s"]
    assert [row["error"] for row in context["failed"]] == ["KeyError: 'zip'"]
    assert len(context["slowest"]) == 10


def test_a_page_shows_hours_days_settings_schedules_and_the_doc_string() -> None:
    now = database_now()
    write(ran(now), ran(now - timedelta(hours=3)), ran(now - timedelta(days=3)), ran(now - timedelta(days=30)))
    create_schedule("nightly", "effects.record", every=3600)
    answer = page_without_midnight(now)
    assert [row["count"] for row in answer.context["hours"]] == ["1", "1"]
    assert sorted(row["count"] for row in answer.context["days"]) == ["1", "2"]
    assert [name for _, name in answer.context["schedules"]] == ["nightly"]
    assert dict(answer.context["settings"])["max_retries"] == "3"
    assert dict(answer.context["settings"])["queue"] == "default"
    assert not [value for _, value in answer.context["settings"] if " object at " in value]
    assert answer.context["doc"]
    assert "No handler for this type is known here." in page_of_nobody().text


def page_of_nobody() -> Any:
    return operator_get(f"{TYPES}{quote('no/such.type')}/")


def test_figures_are_of_the_newest_runs_and_say_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_jobs.admin.job_types.stats.RUNS", 5)
    monkeypatch.setattr(stats.newest_runs, "__defaults__", (None, 5))
    now = database_now()
    write(*(ran(now - timedelta(minutes=9 - n)) for n in range(9)))
    context = page().context
    assert context["runs"] == 5
    assert context["since"] == Job.objects.order_by("-pk")[4].finished_at


def test_a_page_takes_a_few_queries_however_many_runs_there_are() -> None:
    now = database_now()
    counts = []
    for _ in range(2):
        write(*(ran(now, status="dead") for _ in range(30)))
        for name in ("", "effects.record/"):
            client = operator() if not counts else client  # noqa: F821
            with CaptureQueriesContext(connection) as queries:
                client.get(f"{TYPES}{name}")
            counts.append(len(queries))
    assert counts[:2] == counts[2:]
    assert max(counts) <= 10


def test_a_job_that_runs_far_beyond_its_types_usual_time_is_on_the_overview() -> None:
    now = database_now()
    write(*(ran(now, 50) for _ in range(stats.ENOUGH)))
    usual = JobFactory(status="running", started_at=now - timedelta(seconds=100))
    slow = JobFactory(status="running", started_at=now - timedelta(seconds=600))
    JobFactory(status="running", started_at=now - timedelta(seconds=600), job_type="seldom")
    found = [one for one in operator().get("/admin/django_jobs/overview/").context["problems"] if "running" in str(one)]
    (text,) = map(str, found)
    assert text.startswith("A job of type effects.record has been running for 10 min")
    assert text.endswith("; 95 of 100 take 50 s at most.")
    assert slow.pk in found[0].url
    assert usual.pk not in found[0].url
    assert problems.FAR_BEYOND == 3
