"""Metrics, read with Prometheus' own parser: they add up to the rows, at rest and under load."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.urls import include, path
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import django_jobs
from django_jobs import NewJob, signals
from django_jobs.lifecycle.leases import register
from django_jobs.lifecycle.queues import pause
from django_jobs.models import Attempt, DeadLetter, Event, Job, JobStatus
from django_jobs.monitoring import metrics
from django_jobs.queue import Scheduler
from django_jobs.testing import advance_time, drain, make_job, run_due
from tests.support.factories import AttemptFactory
from tests.support.in_process import running_process
from tests.support.waiting import wait_until

urlpatterns = [path("jobs/", include("django_jobs.urls"))]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]
Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape() -> Samples:
    """Return the value of each sample by its name and the values of its labels, which are in the order of their names."""
    response = Client().get("/jobs/metrics")
    assert response.status_code == 200
    return read(response.content.decode())


def read(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    # An empty label is none to Prometheus.
    return {
        (one.name, tuple(filter(None, one.labels.values()))): one.value for family in families for one in family.samples
    }


def total(samples: Samples, name: str, *labels: str) -> float:
    """Add up the samples of a name that have all of these labels."""
    return sum(value for (one, values), value in samples.items() if one == name and set(labels) <= set(values))


@pytest.fixture
def enabled() -> Iterator[None]:
    for metric in (metrics.EVENTS, metrics.WAIT, metrics.RUN, metrics.LISTS):
        metric.clear()
    metrics.enable()
    yield
    metrics.disable()


def test_jobs_by_queue_and_status_add_up_to_the_rows() -> None:
    for number, status in enumerate(JobStatus.values, 1):
        for _ in range(number):
            make_job("effects.record", status=status, queue="mail" if number % 2 else "reports")
    samples = scrape()
    for status, number in Job.objects.counts_by_status().items():
        assert total(samples, "django_jobs_jobs", status) == number > 0
    assert total(samples, "django_jobs_jobs") == Job.objects.count()
    assert samples["django_jobs_jobs", ("mail", "pending")] == 1
    assert samples["django_jobs_jobs", ("reports", "pending")] == 0, "a status without a job is 0, not absent"
    assert samples["django_jobs_dead_letters_open", ()] == DeadLetter.objects.open().count() == 6


def test_what_is_ready_and_what_waits_are_counted_apart() -> None:
    first = django_jobs.submit("effects.record")
    django_jobs.submit("effects.record", depends_on=[first])
    django_jobs.submit("effects.record", depends_on=[first], delay=60)
    advance_time(timedelta(seconds=30))
    samples = scrape()
    assert samples["django_jobs_ready_jobs", ("default",)] == 1
    assert samples["django_jobs_waiting_jobs", ("default",)] == 2
    assert 30 <= samples["django_jobs_oldest_ready_seconds", ("default",)] < 90


def test_workers_lags_pauses_and_attempts_are_reported() -> None:
    register("test:1:a", queues=[], threads=3)
    make_job("effects.record", status="scheduled", delay=timedelta(seconds=60))
    Scheduler().schedule_interval("minutely", "effects.record", 60)
    AttemptFactory(outcome="crashed")
    AttemptFactory(outcome="lease lost")
    pause("mail")
    samples = scrape()
    assert samples["django_jobs_promote_lag_seconds", ()] == samples["django_jobs_schedule_lag_seconds", ()] == 0
    assert (samples["django_jobs_workers_alive", ()], samples["django_jobs_worker_threads", ()]) == (1, 3)
    assert samples["django_jobs_queue_paused", ("mail",)] == 1
    assert samples["django_jobs_attempts", ("crashed",)] == samples["django_jobs_attempts", ("lease lost",)] == 1
    assert total(samples, "django_jobs_attempts") == Attempt.objects.count() == 2
    advance_time(timedelta(seconds=100))
    samples = scrape()
    assert samples["django_jobs_promote_lag_seconds", ()] >= 39
    assert samples["django_jobs_schedule_lag_seconds", ()] >= 39


def test_empty_tables_are_reported_too() -> None:
    samples = scrape()
    assert samples["django_jobs_workers_alive", ()] == 0
    assert total(samples, "django_jobs_jobs") == 0


def test_the_collector_fits_into_a_sites_own_registry() -> None:
    registry = CollectorRegistry()
    registry.register(metrics.JobsCollector())
    make_job("effects.record", queue="mail")
    assert registry.get_sample_value("django_jobs_jobs", {"queue": "mail", "status": "pending"}) == 1
    assert not [family for family in REGISTRY.collect() if family.name.startswith("django_jobs")], "nothing by itself"


def test_nobody_listens_unless_it_is_enabled() -> None:
    assert not signals.job_completed.has_listeners(Job)
    assert not any(name == "django_jobs_events_total" for name, _ in scrape())


@pytest.mark.usefixtures("enabled")
def test_events_waits_and_runs_are_counted() -> None:
    django_jobs.submit("effects.record", queue="mail")
    django_jobs.submit("effects.fail", queue="mail", max_retries=1)
    advance_time(timedelta(seconds=20))
    drain(reraise=False)
    advance_time(timedelta(hours=1))
    drain(reraise=False)
    samples = scrape()
    events = {labels[0]: value for (name, labels), value in samples.items() if name == "django_jobs_events_total"}
    assert events == {"submitted": 2, "completed": 1, "failed": 2, "retried": 1, "dead": 1}
    assert samples["django_jobs_run_seconds_count", ("effects.fail", "failed", "mail")] == 2
    assert samples["django_jobs_run_seconds_count", ("effects.record", "completed", "mail")] == 1
    assert samples["django_jobs_wait_seconds_count", ("mail",)] == 1
    assert 20 <= samples["django_jobs_wait_seconds_sum", ("mail",)] < 80
    assert samples["django_jobs_wait_seconds_bucket", ("10.0", "mail")] == 0


@pytest.mark.usefixtures("enabled")
def test_the_lists_of_bulk_handlers_are_counted_by_their_size() -> None:
    django_jobs.submit_many([NewJob("effects.record_bulk", {}) for _ in range(60)])
    drain()
    samples = scrape()
    assert samples["django_jobs_bulk_jobs_count", ("effects.record_bulk", "default")] == 2
    assert samples["django_jobs_bulk_jobs_sum", ("effects.record_bulk", "default")] == 60
    assert samples["django_jobs_bulk_jobs_bucket", ("effects.record_bulk", "10.0", "default")] == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("enabled")
@pytest.mark.slow
def test_scraped_under_load_the_counts_of_each_scrape_add_up() -> None:
    jobs = [NewJob("effects.record", {}, queue="mail") for _ in range(250)]
    jobs += [NewJob("effects.fail", {}, max_retries=0) for _ in range(50)]
    django_jobs.submit_many(jobs)
    seen: list[Samples] = []

    def done() -> bool:
        seen.append(scrape())
        return total(seen[-1], "django_jobs_jobs", "completed") + total(seen[-1], "django_jobs_jobs", "dead") == 300

    with running_process():
        wait_until(done, timeout=60)
    assert {total(samples, "django_jobs_jobs") for samples in seen} == {300}, "no scrape missed a job or saw one twice"
    last = scrape()
    assert total(last, "django_jobs_jobs", "mail", "completed") == 250
    assert total(last, "django_jobs_attempts", "failed") == Attempt.objects.count() == 50
    assert total(last, "django_jobs_dead_letters_open") == DeadLetter.objects.count() == 50
    assert total(last, "django_jobs_events_total", "completed") == 250
    assert total(last, "django_jobs_events_total", "submitted") == 300
    assert total(last, "django_jobs_run_seconds_count", "completed") == 250
    assert total(last, "django_jobs_run_seconds_count", "failed") == 50


PROCESS = """
import django
django.setup()
from django_jobs import metrics
from django_jobs.models import Job
metrics.enable()
from django_jobs import signals
signals.job_submitted.send(Job, job=Job.create("effects.record", {}, queue="mail"))
"""


@pytest.mark.slow
def test_processes_that_share_a_directory_are_added_up(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.settings"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", PROCESS], env=env, check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        samples = scrape()
    assert total(samples, "django_jobs_events_total", "submitted", "mail") == 2
    assert total(samples, "django_jobs_workers_alive") == 0, "the tables are reported besides"


def test_batches_steps_and_waits_are_counted() -> None:
    family = django_jobs.submit("workflows.family", {"n": [1, 2]}, queue="parents")
    storm = {"sleep": 60, "rows": 1}
    asleep, cancelled = (django_jobs.submit("workflows.storm", storm, queue="parents") for _ in range(2))
    django_jobs.emit("workflows.go", key=asleep.pk)
    run_due(queue="parents")
    cancelled.refresh_from_db()
    cancelled.cancel()
    samples = scrape()
    assert {kind: samples["django_jobs_waits", (kind,)] for kind in ("sleep", "event", "children")} == {
        "sleep": 1, "event": 0, "children": 1
    }  # fmt: skip
    assert (total(samples, "django_jobs_steps"), samples["django_jobs_steps", ("step",)]) == (7, 4)
    assert (samples["django_jobs_batches", ("running",)], total(samples, "django_jobs_events_undelivered")) == (1, 0)
    django_jobs.emit("workflows.go", key="nobody")
    drain()
    family.refresh_from_db()
    samples = scrape()
    assert (family.result, samples["django_jobs_batches", ("completed",)]) == ([1, 2], 1)
    assert samples["django_jobs_waits", ("children",)] == 0
    assert total(samples, "django_jobs_events_undelivered") == Event.objects.filter(delivered_at=None).count()
