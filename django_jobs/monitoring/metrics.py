"""Prometheus metrics (extra `metrics`): the tables, counted at each scrape, and the events of this process, when enabled.

The metrics of `JobsCollector` are the same in every process, so scrape one process, not each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from django.db import DatabaseError
from django.db.models import Count, Q
from django.dispatch import Signal
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from django_jobs import signals
from django_jobs.conf import get_settings
from django_jobs.db.connections import jobs_alias, jobs_connection, use_database
from django_jobs.db.transactions import database_now
from django_jobs.due import seconds_until_due, seconds_until_tick
from django_jobs.models import (
    Attempt,
    AttemptOutcome,
    Batch,
    BatchStatus,
    DeadLetter,
    Event,
    Job,
    JobStatus,
    JobStep,
    StepKind,
    WorkerProcess,
)
from django_jobs.stats import LimitStats, key_stats, limit_stats, queue_stats

from .health import lag

logger = logging.getLogger("django_jobs")
CONTENT_TYPE = CONTENT_TYPE_LATEST
WAITS = (StepKind.SLEEP.value, StepKind.EVENT.value, StepKind.CHILDREN.value)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

# The events of this process, with an empty label `database`, which to Prometheus is none, unless the site names several.
# With PROMETHEUS_MULTIPROC_DIR set, all processes that share the directory are added up.
PROCESS = CollectorRegistry()
EVENTS = Counter("django_jobs_events", "What happened to jobs.", ["event", "queue", "database"], registry=PROCESS)
WAIT = Histogram(
    "django_jobs_wait_seconds", "From due to the start of the run that completed the job.", ["queue", "database"],
    registry=PROCESS, buckets=SECONDS,
)  # fmt: skip
RUN = Histogram(
    "django_jobs_run_seconds", "From the start of a run until it was recorded.",
    ["queue", "job_type", "outcome", "database"], registry=PROCESS, buckets=SECONDS,
)  # fmt: skip
LISTS = Histogram(
    "django_jobs_bulk_jobs", "Jobs of a call of a bulk handler.", ["queue", "job_type", "database"],
    registry=PROCESS, buckets=SIZES,
)  # fmt: skip
_COUNTED: dict[str, Signal] = {
    "submitted": signals.job_submitted,
    "completed": signals.job_completed,
    "failed": signals.job_failed,
    "retried": signals.job_retried,
    "dead": signals.job_dead,
    "cancelled": signals.job_cancelled,
    "rescued": signals.job_rescued,
    "replayed": signals.job_replayed,
    "acknowledged": signals.dead_letter_acknowledged,
}
_receivers: dict[str, Any] = {}


class JobsCollector(Collector):
    """Counts the rows at each scrape; register it with a registry of your own, or use `expose`."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering reads no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield gauges of the state of the tables, labelled `database` where the site names several that may hold jobs."""
        databases = get_settings().DATABASES
        if databases is None:
            yield from self._of_one()
            return
        metrics: dict[str, Metric] = {}
        for database in databases:
            for metric in self._of_database(database):
                known = metrics.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                known.samples += [
                    sample._replace(labels={"database": database, **sample.labels}) for sample in metric.samples
                ]
        yield from metrics.values()

    def _of_database(self, database: str) -> list[Metric]:
        """Return the gauges of one of several databases; of one that cannot be used, only that it cannot."""
        up = "Whether the database of jobs can be used."
        with use_database(database):
            try:
                return [*self._of_one(), _gauge("database_up", up, 1)]
            except DatabaseError as error:
                logger.warning("metrics: the database %r cannot be used: %s", database, " ".join(str(error).split()))
                if not jobs_connection().in_atomic_block:
                    jobs_connection().close()
                return [_gauge("database_up", up, 0)]

    def _of_one(self) -> Iterator[Metric]:
        """Yield the gauges of the jobs' database. One statement reads all jobs: their counts belong to one moment."""
        yield from _jobs()
        yield from _queues()
        yield from _limits()
        yield _fair_keys()
        yield from _workflows()
        workers = WorkerProcess.objects.alive().values_list("threads", flat=True)
        yield _gauge("workers_alive", "Worker processes with a live lease.", len(workers))
        yield _gauge("worker_threads", "Threads of the worker processes alive.", sum(workers))
        silent = WorkerProcess.objects.silent_threads()
        yield _gauge("worker_threads_silent", "Threads of these that neither run a job nor look for one.", silent)
        yield _gauge("dead_letters_open", "Dead letters that are open.", DeadLetter.objects.open().count())
        yield _gauge("promote_lag_seconds", "How late the next scheduled job is made ready.", lag(seconds_until_due()))
        yield _gauge("schedule_lag_seconds", "How late the next tick of a schedule is.", lag(seconds_until_tick()))
        attempts = Attempt.objects.order_by().values_list("outcome").annotate(Count("pk"))
        documentation = "Attempts on record that did not complete, by outcome."
        yield _counted("attempts", documentation, "outcome", AttemptOutcome.values, attempts)


def _jobs() -> Iterator[Metric]:
    jobs = GaugeMetricFamily("django_jobs_jobs", "Jobs on record.", labels=["queue", "status"])
    ready = GaugeMetricFamily("django_jobs_ready_jobs", "Jobs that a worker would take now.", labels=["queue"])
    waiting = GaugeMetricFamily("django_jobs_waiting_jobs", "Jobs that wait for other jobs.", labels=["queue"])
    held_back = GaugeMetricFamily("django_jobs_held_back_jobs", "Jobs that a limit holds back.", labels=["queue"])
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    held_counts: dict[str, int] = {}
    rows = Job.objects.order_by().values_list("queue", "status")
    waits, holds = Count("pk", filter=Q(pending_dependencies__gt=0)), Count("pk", filter=Q(pending_limits=1))
    for queue, status, number, waiting_number, held in rows.annotate(number=Count("pk"), waits=waits, holds=holds):
        counts.setdefault(queue, {})[status] = (number, waiting_number)
        held_counts[queue] = held_counts.get(queue, 0) + held
    for queue, by_status in sorted(counts.items()):
        for status in JobStatus.values:
            jobs.add_metric([queue, status], by_status.get(status, (0, 0))[0])
        pending, waiting_number = by_status.get(JobStatus.PENDING, (0, 0))
        ready.add_metric([queue], pending - waiting_number - held_counts[queue])
        waiting.add_metric([queue], waiting_number + by_status.get(JobStatus.SCHEDULED, (0, 0))[1])
        held_back.add_metric([queue], held_counts[queue])
    yield from (jobs, ready, waiting, held_back)


def _limits() -> Iterator[Metric]:
    """Yield what limits allow and what they hold: one value for each limit, however many values its key has."""
    most = GaugeMetricFamily("django_jobs_limit_concurrency", "Jobs of a limit that may run at once.", labels=["limit"])
    running = GaugeMetricFamily("django_jobs_limit_running", "Jobs that run under a limit.", labels=["limit"])
    waiting = GaugeMetricFamily("django_jobs_limit_held_back", "Jobs that a limit holds back.", labels=["limit"])
    started = GaugeMetricFamily("django_jobs_limit_started", "Starts in the time of a limit's rate.", labels=["limit"])
    of_limit: dict[str, list[LimitStats]] = {}
    for one in limit_stats():
        of_limit.setdefault(one.name, []).append(one)
    for name, found in of_limit.items():
        if found[0].concurrency is not None:
            most.add_metric([name], found[0].concurrency)
        if found[0].rate is not None:
            started.add_metric([name], sum(one.started for one in found))
        running.add_metric([name], sum(one.running for one in found))
        waiting.add_metric([name], sum(one.waiting for one in found))
    yield from (most, started, running, waiting)


def _fair_keys() -> Metric:
    """Return how many fair keys have jobs that are ready or held back, in queues that have some; it stops at 1,001."""
    keys = GaugeMetricFamily(
        "django_jobs_fair_keys", "Fair keys of a queue's jobs that are ready or held back.", labels=["queue"]
    )
    for one in key_stats(largest=0):
        keys.add_metric([one.queue], one.keys)
    return keys


def _workflows() -> Iterator[Metric]:
    """Yield how batches, steps and waits stand."""
    batches = Batch.objects.order_by().values_list("status").annotate(Count("pk"))
    yield _counted("batches", "Batches on record.", "status", BatchStatus.values, batches)
    steps = JobStep.objects.order_by().values_list("kind")
    yield _counted("steps", "Steps on record.", "kind", StepKind.values, steps.annotate(Count("pk")))
    # From the scheduled jobs: a wait of one that was cancelled is over, although its record does not say so.
    waits = steps.filter(ended_at=None, job__status=JobStatus.SCHEDULED, kind__in=WAITS).annotate(Count("pk"))
    yield _counted("waits", "Sleeps, and waits for events and children, that go on.", "kind", WAITS, waits)
    new = Event.objects.undelivered().count()
    yield _gauge("events_undelivered", "Events that no worker has looked at since their commit.", new)


def _counted(name: str, documentation: str, label: str, values: Iterable[str], counts: Any) -> Metric:
    """Return a gauge with a sample for each value of its label, zeros too; the counts come as pairs."""
    gauge = GaugeMetricFamily(f"django_jobs_{name}", documentation, labels=[label])
    numbers = dict(counts)
    for value in values:
        gauge.add_metric([value], numbers.get(value, 0))
    return gauge


def _queues() -> Iterator[Metric]:
    oldest = GaugeMetricFamily(
        "django_jobs_oldest_ready_seconds", "How long the job that is ready longest has waited.", labels=["queue"]
    )
    paused = GaugeMetricFamily("django_jobs_queue_paused", "1 for a queue that is paused.", labels=["queue"])
    now = database_now()
    for name, queue in queue_stats().items():
        oldest.add_metric([name], queue.waited(now))
        paused.add_metric([name], int(queue.paused_at is not None))
    yield from (oldest, paused)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"django_jobs_{name}", documentation, value=value)


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


def expose() -> bytes:
    """Return all metrics in Prometheus' text format: of the tables and, when enabled, of processes."""
    registry = CollectorRegistry()
    registry.register(JobsCollector())
    text: bytes = generate_latest(registry)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return text + generate_latest(shared)
    return text + (generate_latest(PROCESS) if _receivers else b"")


def enable() -> None:
    """Count events and measure waits and runs in this process from now on; call it in your AppConfig's `ready()`.

    Each event then reads its job from the database once, which costs some throughput.
    """
    for event, signal in _COUNTED.items():
        if event not in _receivers:
            _receivers[event] = _counting(event)
            signal.connect(_receivers[event], sender=Job)
    signals.bulk_started.connect(_count_list, sender=Job)


def disable() -> None:
    """End what `enable` began."""
    for event, receiver in _receivers.items():
        _COUNTED[event].disconnect(receiver, sender=Job)
    _receivers.clear()
    signals.bulk_started.disconnect(_count_list, sender=Job)


def _count_list(sender: type, job_type: str, queue: str, job_ids: list[str], **kwargs: Any) -> None:
    LISTS.labels(queue, job_type, _label(jobs_alias())).observe(len(job_ids))


def _label(database: str) -> str:
    return "" if get_settings().DATABASES is None else database


def _counting(event: str) -> Any:
    def receive(sender: type, job: Job, **kwargs: Any) -> None:
        database = _label(job._state.db or jobs_alias())
        EVENTS.labels(event, job.queue, database).inc()
        if event in ("completed", "failed") and job.started_at is not None:
            ended = job.finished_at or job.updated_at
            RUN.labels(job.queue, job.job_type, event, database).observe(_seconds(job.started_at, ended))
            if event == "completed":
                WAIT.labels(job.queue, database).observe(_seconds(job.available_at, job.started_at))

    return receive
