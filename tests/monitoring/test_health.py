"""Health: the three questions, asked by command and by URL, with their exit codes and statuses."""

import io
import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path, reverse

import django_jobs.urls
from django_jobs.lifecycle.leases import beat, register
from django_jobs.lifecycle.queues import pause
from django_jobs.models import WorkerProcess
from django_jobs.models.fields import DbNow
from django_jobs.monitoring import views
from django_jobs.monitoring.health import Thresholds, health, live, ready
from django_jobs.queue import Scheduler
from django_jobs.testing import advance_time, make_job
from tests.support.factories import WorkerProcessFactory

urlpatterns = [
    path("jobs/", include("django_jobs.urls")),
    path("private/", lambda request: HttpResponse("private")),
]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


@pytest.fixture
def worker() -> None:
    register("test:1:a", queues=[], threads=1)
    WorkerProcess.objects.update(lease_expires_at=DbNow() + timedelta(days=1))


def get(url: str, status: int = 200) -> dict[str, Any]:
    response = Client().get(url)
    assert response.status_code == status, response.content
    assert "no-store" in response["Cache-Control"]
    return dict(response.json())


def command(*args: str) -> tuple[int, str]:
    """Return the exit code of `jobs health` and what it prints."""
    out = io.StringIO()
    try:
        call_command("jobs", "health", *args, stdout=out)
    except CommandError as error:
        return error.returncode, str(error)
    return 0, out.getvalue()


def test_without_a_worker_nothing_is_healthy() -> None:
    assert health().problems == ["no worker process is alive"]
    assert command() == (1, "no worker process is alive")
    assert get("/jobs/health/", 503)["problems"] == ["no worker process is alive"]


def test_a_worker_whose_lease_ran_out_does_not_count() -> None:
    WorkerProcessFactory()
    assert health().healthy
    WorkerProcess.objects.update(lease_expires_at="2020-01-01T00:00:00Z")
    assert not health().healthy


@pytest.mark.usefixtures("worker")
def test_all_is_well() -> None:
    assert command() == (0, "healthy: 1 workers, longest wait 0 s, 0 dead letters open\n")
    expected = {
        "healthy": True, "workers": 1, "silent_threads": 0, "longest_wait_seconds": 0.0, "promote_lag_seconds": 0.0,
        "schedule_lag_seconds": 0.0, "dead_letters": 0, "problems": [],
    }  # fmt: skip
    assert get("/jobs/health/") == expected
    assert json.loads(command("--json")[1]) == expected


@pytest.mark.usefixtures("worker")
def test_too_few_workers_are_a_problem() -> None:
    assert health(Thresholds(min_workers=2)).problems == ["1 worker processes are alive, fewer than 2"]
    assert command("--min-workers", "2")[0] == 1
    assert command("--min-workers", "1")[0] == 0


@pytest.mark.usefixtures("worker")
def test_a_job_may_wait_as_long_as_the_threshold_says() -> None:
    make_job("effects.record", queue="mail")
    assert health().healthy
    advance_time(timedelta(hours=2))
    (problem,) = get("/jobs/health/?max_wait=7100", 503)["problems"]
    assert problem.startswith("queue 'mail': a ready job has waited 7")
    assert get("/jobs/health/?max_wait=9000")["longest_wait_seconds"] >= 7200
    assert command("--max-wait", "7100")[0] == 1
    pause("mail")
    assert command("--max-wait", "7100")[0] == 0, "a paused queue is somebody's decision"


@pytest.mark.usefixtures("worker")
def test_a_due_job_that_nobody_makes_ready_is_a_problem() -> None:
    make_job("effects.record", status="scheduled")
    assert health(Thresholds(max_wait=60)).stats["promote_lag_seconds"] == 0
    advance_time(timedelta(hours=3))
    (problem,) = health(Thresholds(max_wait=60)).problems
    assert problem.startswith("a scheduled job is due since 7")  # 7,200 s


@pytest.mark.usefixtures("worker")
def test_a_late_tick_is_a_problem() -> None:
    Scheduler().schedule_interval("minutely", "effects.record", 60)
    advance_time(timedelta(hours=2, minutes=1))
    (problem,) = health(Thresholds(max_wait=60)).problems
    assert problem.startswith("a schedule is due since 7")  # 7,200 s


@pytest.mark.usefixtures("worker")
def test_open_dead_letters_are_a_problem_when_there_is_a_threshold() -> None:
    for _ in range(2):
        make_job("effects.record", status="dead")
    assert get("/jobs/health/")["dead_letters"] == 2
    assert get("/jobs/health/?max_dead_letters=2")["healthy"]
    assert get("/jobs/health/?max_dead_letters=1", 503)["problems"] == ["2 dead letters are open, more than 1"]
    assert command("--max-dead-letters", "0")[0] == 1


def test_a_process_none_of_whose_threads_looks_for_work_is_no_worker() -> None:
    """Its heartbeat goes on. With one thread of several it still is one, and a problem for people."""
    worker = WorkerProcessFactory(host=socket.gethostname(), threads=3, silent_threads=1)
    assert health().problems == ["worker threads that neither run a job nor look for one: 1"]
    assert (health().stats["workers"], health().stats["silent_threads"], live().healthy) == (1, 1, True)
    WorkerProcess.objects.update(silent_threads=3)
    assert health().stats["workers"] == 0
    assert get("/jobs/health/", 503)["problems"] == ["worker threads that neither run a job nor look for one: 3"]
    assert command("--live") == (1, "no thread of the worker processes of this machine looks for work")
    assert beat(worker.pk)
    assert (health().healthy, live().healthy) == (True, True)


def test_a_worker_of_this_machine_is_alive_or_not() -> None:
    WorkerProcessFactory(host="another")
    assert live().problems == ["no worker process of this machine is alive"]
    assert command("--live")[0] == 1
    register("test:1:a", queues=[], threads=1)
    assert command("--live") == (0, "healthy: a worker of this machine is alive\n")


def test_the_web_process_lives_without_a_database(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert get("/jobs/health/live") == {"healthy": True}


def test_ready_wants_a_migrated_database() -> None:
    assert get("/jobs/health/ready") == {"healthy": True, "problems": []}
    assert command("--ready") == (0, "healthy: the database is ready\n")
    with mock.patch("django_jobs.monitoring.health.missing_migrations", return_value=["django_jobs.0002_more"]):
        problem = "the database lacks django_jobs.0002_more: run manage.py migrate"
        assert get("/jobs/health/ready", 503)["problems"] == [problem]
        assert command("--ready") == (1, problem)


def test_a_database_that_is_away_is_an_answer_and_its_address_stays_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = mock.patch(
        "django_jobs.monitoring.health.missing_migrations", side_effect=OperationalError("no route to 10.0.0.7")
    )
    with gone:
        assert ready().problems == ["the database 'default' cannot be used (OperationalError)"]
        assert "10.0.0.7" not in str(get("/jobs/health/ready", 503))
    assert "10.0.0.7" in caplog.text


def test_no_probe_is_in_a_transaction_of_any_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "connections", ["default", "jobs", "reports"])
    view: Any = views._open_to_probes(lambda request: HttpResponse())
    assert view._non_atomic_requests == {"default", "jobs", "reports"}


@pytest.mark.parametrize("query", ["max_wait=soon", "max_wait=nan", "min_workers=1.5", "max_wiat=3"])
def test_a_threshold_that_means_nothing_is_refused(query: str) -> None:
    assert get(f"/jobs/health/?{query}", 400)["problems"]


class TestASiteThatAsksEverybodyToLogIn:
    """Django's LoginRequiredMiddleware turns each view away that does not say that it needs no login."""

    @pytest.fixture(autouse=True)
    def site(self) -> Iterator[None]:
        added = "django.contrib.auth.middleware.LoginRequiredMiddleware"
        with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, added]):
            yield

    def test_asks_no_probe_to_log_in(self) -> None:
        names = [pattern.name for pattern in django_jobs.urls.urlpatterns]
        assert len(names) >= 4
        for name in names:
            answer = Client().get(reverse(f"django_jobs:{name}"))
            assert answer.status_code in (200, 503), name
            assert "Location" not in answer, name

    @pytest.mark.usefixtures("worker")
    def test_answers_and_refuses_as_any_other(self) -> None:
        assert get("/jobs/health/")["healthy"]
        assert get("/jobs/health/live")["healthy"]
        assert get("/jobs/health/ready")["healthy"]
        assert "django_jobs_workers_alive 1.0" in Client().get("/jobs/metrics").text
        assert get("/jobs/health/?min_workers=2", 503)["problems"]
        assert Client().post("/jobs/health/").status_code == 405

    def test_still_asks_for_a_login_elsewhere(self) -> None:
        assert Client().get("/private/").status_code == 302


@pytest.mark.usefixtures("worker")
def test_an_address_answers_with_and_without_the_final_slash() -> None:
    for url in ("health", "health/live", "health/ready", "metrics"):
        assert Client().get(f"/jobs/{url}").status_code == Client().get(f"/jobs/{url}/").status_code == 200


def test_probes_only_look() -> None:
    for url in ("health/", "health/live", "health/ready", "metrics"):
        assert Client().post(f"/jobs/{url}").status_code == 405


@override_settings(DEBUG=False)
def test_metrics_without_the_client_say_what_to_install() -> None:
    with mock.patch.dict("sys.modules", {"django_jobs.monitoring.metrics": None}):
        response = Client().get("/jobs/metrics")
    assert (response.status_code, b"[metrics]" in response.content) == (501, True)
