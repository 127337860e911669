"""Several queues with their handlers, worker threads and events in one object, usable as a context manager."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from django.dispatch import Signal

from django_jobs import conf, signals
from django_jobs.db.connections import use_database, usual_alias
from django_jobs.exceptions import InvalidJob, JobNotFound
from django_jobs.models import DeadLetter, Job
from django_jobs.models.dead_letter import DeadLetterQuerySet
from django_jobs.names import did_you_mean
from django_jobs.submission import DEFAULT_QUEUE
from django_jobs.text import shown
from django_jobs.worker.thread import WorkerPool

from .queue import JobQueue

logger = logging.getLogger("django_jobs")


class EventHandler:
    """Base for an object that is notified of jobs; override what you need. Called in the thread in which it happens."""

    def on_job_submitted(self, job: Job) -> None:
        """A job was written."""

    def on_job_started(self, job: Job, worker_id: str) -> None:
        """Its handler is about to run."""

    def on_job_completed(self, job: Job, result: Any) -> None:
        """Its handler returned, and that was recorded."""

    def on_job_failed(self, job: Job, error: str) -> None:
        """An attempt failed; what came of it follows."""

    def on_job_retried(self, job: Job, next_scheduled_at: Any) -> None:
        """It will be tried again at that time."""

    def on_job_dead(self, job: Job) -> None:
        """It will not be tried again."""


KEYS = ("queues", "using")
# For each signal the method of an event handler, and what that is given besides the job.
EVENTS: dict[Signal, tuple[str, ...]] = {
    signals.job_submitted: ("on_job_submitted",),
    signals.job_started: ("on_job_started", "worker_id"),
    signals.job_completed: ("on_job_completed", "result"),
    signals.job_failed: ("on_job_failed", "error"),
    signals.job_retried: ("on_job_retried", "next_scheduled_at"),
    signals.job_dead: ("on_job_dead",),
}


class JobQueueManager:
    """Queues by name, with their handlers and their worker threads.

    Args:
        config: {"queues": {name: configuration of a JobQueue}, "using": the alias of the database that holds them}. When it names
            queues, "default" is added only once a handler is registered for it or a job submitted to it: a manager neither runs
            nor counts other people's jobs.
        event_handler: an object with some or all methods of EventHandler, notified of the jobs of these queues for what happens
            in this process. What it raises is logged and breaks no job.

    Raises InvalidJob for a bad configuration. Leaving it as a context manager stops its workers gracefully.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, event_handler: Any = None) -> None:
        self.queues: dict[str, JobQueue] = {}
        self._pools: dict[str, WorkerPool] = {}
        self._queue_of_type: dict[str, str] = {}
        self._event_handler = event_handler
        self._adding = threading.RLock()
        self._default_is_used = False
        queues = _queues_of(config)
        self.using: str | None = None if config is None else config.get("using")
        for name, queue_config in queues.items():
            self.create_queue(name, **queue_config)
        if not self.queues:
            self.create_queue(DEFAULT_QUEUE)
        if event_handler is not None:
            for signal in EVENTS:
                signal.connect(self._hear, sender=Job)  # held weakly: it ends with this object

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop_workers()

    def create_queue(self, name: str, **config: Any) -> JobQueue:
        """Add a queue and return it; the options are those of JobQueue. Raises InvalidJob when the name is taken."""
        if name in self.queues:
            raise InvalidJob(f"the queue {name!r} is there already")
        queue = self.queues[name] = JobQueue(name, self.using, **config)
        return queue

    def queue(self, name: str) -> JobQueue:
        """Return a queue of this manager; raise InvalidJob when there is none of that name."""
        if name not in self.queues:
            raise InvalidJob(f"there is no queue {shown(name)} here.{did_you_mean(name, self.queues)}")
        return self.queues[name]

    def register_handler(
        self, job_type: str, handler: Callable[..., Any], queue: str = DEFAULT_QUEUE, **options: Any
    ) -> None:
        """Let a queue run jobs of a type with a function; jobs of that type then go to that queue."""
        with self._queue_for_use(queue) as used:
            used.register_handler(job_type, handler, **options)
        self._queue_of_type[job_type] = queue

    def submit(self, job_type: str, payload: Mapping[str, Any] | None = None, **kwargs: Any) -> str:
        """Write a job and return its id; it goes to `queue`, else to the queue whose handler was registered for its type.

        The other options are those of `django_jobs.submit`. Raises InvalidJob.
        """
        name = kwargs.pop("queue", None) or self._queue_of_type.get(job_type, DEFAULT_QUEUE)
        with self._queue_for_use(name) as queue:
            return queue.enqueue_by_rules(job_type, payload, **kwargs)

    @contextmanager
    def _queue_for_use(self, name: str) -> Iterator[JobQueue]:
        """Give a queue of this manager; "default" is added when it is missing, and does not stay when the use is refused."""
        if name != DEFAULT_QUEUE or self._default_is_used:
            yield self.queue(name)
            return
        # One at a time: a use that is refused must not take the queue away from another one.
        with self._adding:
            is_new = name not in self.queues
            try:
                yield self.create_queue(name) if is_new else self.queues[name]
            except BaseException:
                if is_new:
                    del self.queues[name]
                raise
            self._default_is_used = True

    # Workers.

    def start_workers(self, queue: str | None = None) -> None:
        """Start the worker threads of a queue, or of all: `max_workers` of its configuration, else the site's THREADS."""
        site = conf.get_settings()
        for name in self._named(queue):
            if name not in self._pools:
                of_queue = site.QUEUES.get(name, conf.QueueSettings()).max_workers
                pool = WorkerPool(self.queues[name], self.queues[name].config.max_workers or of_queue or site.THREADS)
                self._pools[name] = pool
                pool.start()

    def stop_workers(self, queue: str | None = None, graceful: bool = True) -> None:
        """Stop the worker threads of a queue, or of all: after their current job, and `graceful` waits for that."""
        for name in self._named(queue):
            if pool := self._pools.pop(name, None):
                pool.stop(graceful=graceful)

    def _named(self, queue: str | None) -> list[str]:
        return list(self.queues) if queue is None else [self.queue(queue).name]

    # Looking and operating.

    @property
    def dead_letters(self) -> DeadLetterQuerySet:
        """The open dead letters of these queues, the newest first, as a queryset; each has its `job`."""
        return self._open_dead_letters().select_related("job")

    def _open_dead_letters(self) -> DeadLetterQuerySet:
        with use_database(self.using or usual_alias()):
            return DeadLetter.objects.open().filter(job__queue__in=list(self.queues))

    def replay_dead_letter(self, job_id: str) -> Job:
        """Run a dead job again from the start and return it; raise JobNotFound when it has no open dead letter here."""
        dead_letter = self._open_dead_letters().filter(job_id=job_id).first()
        if dead_letter is None:
            raise JobNotFound(job_id)
        dead_letter.replay()
        job: Job = dead_letter.job
        job.refresh_from_db()
        return job

    def get_stats(self) -> dict[str, Any]:
        """Return total_submitted, total_completed, total_failed and total_dead, and what each queue has to do.

        `jobs_per_queue` counts the jobs that are not finished, `workers_per_queue` the living threads of this manager.
        Jobs that were pruned are not counted.
        """
        stats = {name: queue.get_stats() for name, queue in list(self.queues.items())}
        threads = {name: self._pools[name].workers if name in self._pools else [] for name in stats}

        def total(status: str) -> int:
            return sum(counts[status] for counts in stats.values())

        return {
            "total_submitted": sum(sum(counts.values()) for counts in stats.values()),
            "total_completed": total("completed"),
            "total_failed": total("failed"),
            "total_dead": total("dead"),
            "jobs_per_queue": {
                name: counts["pending"] + counts["scheduled"] + counts["running"] for name, counts in stats.items()
            },
            "workers_per_queue": {
                name: sum(worker.is_alive() for worker in workers) for name, workers in threads.items()
            },
        }

    # Events.

    def _hear(self, signal: Signal, job: Job, **sent: Any) -> None:
        if job.queue not in self.queues or job._state.db != (self.using or usual_alias()):
            return
        method, *names = EVENTS[signal]
        try:
            call = getattr(self._event_handler, method, None)
            if call is not None:
                call(job, *(sent[name] for name in names))
        except Exception:
            logger.exception("the event handler's %s failed for job %s", method, job.id)


def _queues_of(config: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    """Return the configured queues; raise InvalidJob for keys that nobody reads."""
    given = {} if config is None else config
    if not isinstance(given, Mapping):
        raise InvalidJob(f"config: give a dict, not {shown(given)}")
    if unknown := [key for key in given if key not in KEYS]:
        raise InvalidJob(*(f"config has an unknown key {shown(key)}.{did_you_mean(key, KEYS)}" for key in unknown))
    queues = given.get("queues", {})
    if not isinstance(queues, Mapping) or not all(isinstance(queue, Mapping) for queue in queues.values()):
        raise InvalidJob('config["queues"]: give a dict of queue names to dicts')
    return queues
