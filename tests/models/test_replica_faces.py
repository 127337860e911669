"""Every face reads the jobs where they are written, with a replica that Django's documented router would read from."""

import io
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import include, path

import django_jobs
from django_jobs import NewJob
from django_jobs.checks import check_database
from django_jobs.due import has_due_work, known_queues, queues_with_work
from django_jobs.lifecycle.cascade import cascade_all
from django_jobs.lifecycle.change import change
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.queues import pause, resume
from django_jobs.lifecycle.replay import revive_all
from django_jobs.lifecycle.rescue import rescue_nameless, rescue_process
from django_jobs.models import Job, Schedule
from django_jobs.models.graph import graph_of
from django_jobs.monitoring import health, metrics
from django_jobs.queue import JobQueue, JobQueueManager, Scheduler
from django_jobs.scheduling import spec
from django_jobs.scheduling.store import disable, enable, sync_after_migrate
from django_jobs.scheduling.ticks import run_schedule_now, tick
from django_jobs.stats import queue_stats
from django_jobs.testing import (
    advance_time,
    assert_submitted,
    drain,
    make_job,
    refute_submitted,
    run_due,
    tick_schedules,
)
from django_jobs.transfer.importing import import_dicts
from django_jobs.worker.local_process import stop_local_process
from testproject.urls import urlpatterns as site_urls
from tests.support.commands import jobs
from tests.support.console import pages
from tests.support.effects import tasks
from tests.support.factories import DeadLetterFactory, JobFactory, WorkerProcessFactory
from tests.support.replica import unreadable_replica
from tests.support.staff import operator
from tests.support.transfers import delete_all, exported, imported, make_mixed_jobs

urlpatterns = [*site_urls, path("probes/", include("django_jobs.urls"))]
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def replica() -> Iterator[None]:
    with unreadable_replica():
        yield


@pytest.fixture
def schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_declared", {})
    Schedule.objects.all().delete()


def test_export_and_import() -> None:
    make_mixed_jobs(12)
    pause("mail")
    first = exported()
    dicts = JobQueue("mail").export_jobs()
    delete_all()
    assert imported(first).written == 12
    assert exported() == first
    assert import_dicts(dicts).known == 6
    assert [job.to_dict() for job in Job.objects.order_by("pk")]


def test_schedules_and_their_ticks(schedules: None) -> None:
    spec.declare("code", "effects.record", every=3600)
    sync_after_migrate("default")
    Scheduler().schedule_interval("poll", "effects.record", 3600, overlap="skip")
    disable("poll")
    enable("poll")
    assert run_schedule_now("poll").metadata["schedule"] == "poll"
    advance_time(timedelta(hours=2))
    tick()
    assert Job.objects.filter(metadata__schedule="code").count() == 1
    row = Schedule.objects.get(name="poll")
    assert row.ticks.count() == 1
    row.priority = 9
    row.full_clean()
    row.save()
    row.refresh_from_db()
    assert row.priority == 9
    assert Scheduler().cancel("poll")
    spec._declared.clear()
    sync_after_migrate("default")
    assert not Schedule.objects.get().enabled


def test_reads_and_moves_on_many() -> None:
    first, second = django_jobs.submit_many(
        [NewJob("effects.record", job_id="a"), NewJob("effects.record", depends_on=["a"])]
    )
    DeadLetterFactory()
    assert queue_stats()["default"] == queue_stats(["default"])["default"]
    assert queues_with_work() == ["default"]
    assert known_queues() >= {"default"}
    assert has_due_work()
    assert graph_of(second)
    assert second.depends_on == ["a"]
    assert change([first.pk], priority=9).done == ["a"]
    WorkerProcessFactory(id="dead")
    JobFactory(status="running", worker_id="dead")
    JobFactory(status="running", worker_id="nobody")
    rescue_process("dead", 0)
    rescue_nameless()
    cascade_all()
    revive_all()
    assert prune() == 0
    pause("default")
    resume("default")


@pytest.mark.django_db(transaction=True)
def test_the_library() -> None:
    queue = JobQueue("mine")
    queue.register_handler("t", lambda payload: payload["n"])
    job_id = queue.enqueue("t", {"n": 5})
    assert (queue.size, queue.ready_count(), queue.get_stats()["pending"]) == (1, 1, 1)
    assert queue.peek().pk == job_id  # type: ignore[union-attr]
    assert queue.process_next() == job_id
    assert queue.wait_for_completion(job_id, timeout=60)
    with JobQueueManager({"queues": {"mine": {}}}) as manager:
        manager.register_handler("bad", lambda payload: 1 // 0, queue="mine")
        bad = manager.submit("bad", max_retries=0)
        manager.start_workers()
        manager.queue("mine").wait_for_completion(bad, timeout=60)
        assert [dead_letter.job.pk for dead_letter in manager.dead_letters] == [bad]
        manager.stop_workers()
        assert manager.replay_dead_letter(bad).status == "pending"
        assert manager.get_stats()["total_submitted"] == 2
    stop_local_process()


def test_tasks() -> None:
    result = tasks.add.enqueue(1, two=2)
    result.refresh()
    assert tasks.add.get_result(result.id).status == result.status
    drain()
    assert tasks.add.get_result(result.id).return_value == 3
    result.refresh()
    assert result.is_finished


def test_the_testing_kit() -> None:
    django_jobs.submit("effects.record", {"n": 1}, delay=60)
    assert_submitted("effects.record", {"n": 1})
    refute_submitted("effects.record", {"n": 2})
    assert run_due() == []
    advance_time(timedelta(minutes=2))
    assert [job.status for job in drain()] == ["completed"]
    make_job("effects.record", status="dead", error="no")
    make_job("effects.record", status="running")
    assert tick_schedules() == []


@pytest.mark.urls(__name__)
def test_probes_and_metrics_and_checks() -> None:
    JobFactory(), DeadLetterFactory()
    for name in ("health/", "health/live", "health/ready", "metrics"):
        assert Client().get(f"/probes/{name}").status_code in (200, 503)
    assert health.health().problems == ["no worker process is alive"]
    assert metrics.expose()
    assert [
        message.id for message in check_database(databases=["default"]) if message.id.startswith("django_jobs.E")
    ] == []


@pytest.mark.slow
def test_the_admin_shows_every_page() -> None:
    make_mixed_jobs(12)
    WorkerProcessFactory()
    Scheduler().schedule_interval("poll", "effects.record", 60)
    run_schedule_now("poll")
    client = operator()
    assert [url for url in pages() if client.get(url).status_code != 200] == []


@pytest.mark.slow
def test_the_command_line() -> None:
    make_mixed_jobs(12)
    Scheduler().schedule_interval("poll", "effects.record", 60)
    for line in (
        "list", "show job-000004", "stats", "dlq list", "dlq show job-000004", "dlq ack job-000004", "dlq replay job-000010",
        "queues", "pause mail", "resume mail", "schedules", "schedules disable poll", "schedules enable poll",
        "schedules run poll", "graph job-000000", "check", "prune --yes", "cancel job-000000", "retry job-000003",
        "enqueue effects.record --id x", "export -",
    ):  # fmt: skip
        assert jobs(*line.split()) is not None
    call_command("check", databases=["default"], stdout=io.StringIO(), stderr=io.StringIO())
