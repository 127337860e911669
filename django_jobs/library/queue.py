"""The library: a queue as an object, for scripts and tests that run without `runworkers`. The rows are the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import wraps
from typing import Any, TypeVar, cast

from django.db.models import Q

from django_jobs import conf
from django_jobs.db.connections import check_holds_jobs, in_transaction, use_database, usual_alias
from django_jobs.db.lines import Line
from django_jobs.exceptions import InvalidJob, JobNotFound, JobsError
from django_jobs.handlers import Registry, make_handler, registry
from django_jobs.lifecycle.active_limits import active_limits, declare_queue
from django_jobs.lifecycle.ageing import aged
from django_jobs.lifecycle.cancel import cancel
from django_jobs.lifecycle.claim import ClaimedJob, claim
from django_jobs.lifecycle.promote import promote
from django_jobs.lifecycle.prune import prune
from django_jobs.lifecycle.slots import may_run, take_turns
from django_jobs.lifecycle.starts import record_start
from django_jobs.lifecycle.submit import submit
from django_jobs.lifecycle.transition import move_to
from django_jobs.lifecycle.turns import first_in_turn, look
from django_jobs.models import Job, JobStatus, LimitSlot, LimitTurn
from django_jobs.models.fields import DbNow
from django_jobs.models.job import JobQuerySet
from django_jobs.names import queue_problem
from django_jobs.submission import with_moments
from django_jobs.transfer.exporting import all_jobs, export_dicts
from django_jobs.transfer.importing import import_dicts
from django_jobs.waiting import wait
from django_jobs.worker.executor import wait_to_start
from django_jobs.worker.local_process import local_process
from django_jobs.worker.process import Process
from django_jobs.worker.thread import Worker

MOST_PEEKED = 1_000
# The options of a submit that a job from `Job.create` has under their own names.
OF_JOB = ("job_id", "scheduled_at", "max_retries", "timeout_seconds", "metadata", "unique_key", "depends_on")


F = TypeVar("F", bound=Callable[..., Any])


def _there(method: F) -> F:
    """Run a method on the database of its queue."""

    @wraps(method)
    def run(self: JobQueue, *args: Any, **kwargs: Any) -> Any:
        with use_database(self.using or usual_alias()):
            return method(self, *args, **kwargs)

    return cast(F, run)


class QueueHandlers(Registry):
    """The handlers of one JobQueue, which win over decorated ones; its configuration holds for their jobs."""

    def __init__(self, name: str, config: conf.QueueSettings) -> None:
        super().__init__(parent=registry)
        self._name = name
        self._config = config

    def queue_settings(self, queue: str) -> conf.QueueSettings:
        """Return the site's settings of a queue; of this object's queue with this object's in their place where it has any."""
        site = super().queue_settings(queue)
        if queue != self._name:
            return site
        own = {field.name: getattr(self._config, field.name) for field in fields(self._config)}
        return replace(site, **{name: value for name, value in own.items() if value is not None})

    def sets_retries(self, job_type: str) -> bool:
        """Return whether the handler of a type, this object or the site's settings of this queue set `max_retries`."""
        handler = self.find(job_type)
        of_handler = handler.max_retries if handler else None
        return of_handler is not None or self.queue_settings(self._name).max_retries is not None


def parse_config(name: str, config: Mapping[str, Any]) -> conf.QueueSettings:
    """Return the checked configuration of a queue; raise InvalidJob with all that is wrong with it."""
    parsed, problems = conf.parse({"QUEUES": {name: config}})
    if problems:
        texts = (f"{found.message} {found.hint}" if found.kind == "key" else found.message for found in problems)
        raise InvalidJob(*(text.replace(f"{conf.NAME}['QUEUES']", "queue") for text in texts))
    return parsed.QUEUES[name]


class JobQueue:
    """A named queue with handlers of its own.

    Args:
        name: the queue's name; two objects of one name share its jobs, but not their handlers.
        using: the alias of the database that holds its jobs, one of DJANGO_JOBS["DATABASES"]; None: that of the routers.
        config: default_priority, max_workers, max_retries, base_delay, max_delay, timeout_seconds, dead_letter, limit, ageing.

    Raises InvalidJob for a bad name or configuration.
    """

    def __init__(self, name: str = "default", using: str | None = None, **config: Any) -> None:
        if using is not None:
            check_holds_jobs(using)
        self.using = using
        if problem := queue_problem(name):
            raise InvalidJob(problem)
        self.name = name
        self.config = parse_config(name, config)
        self.handlers = QueueHandlers(name, self.config)
        if self.config.limit is not None:
            with use_database(using or usual_alias()):
                declare_queue(name, self.config.limit)
        self._inline_workers = threading.local()

    def __repr__(self) -> str:
        return f"JobQueue({self.name!r})"

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True  # an empty queue is a queue

    # Submitting.

    def register_handler(self, job_type: str, function: Callable[..., Any], **options: Any) -> None:
        """Let this queue run jobs of a type with a function, in place of any other; the options are those of `@job`.

        A limit is the queue's here, not the handler's: `JobQueue(name, limit=Limit(…))`.
        """
        if options.get("limit") is not None:
            raise InvalidJob(f"limit: a handler of one queue object has none; give JobQueue({self.name!r}, limit=…)")
        self.handlers.replace(make_handler(function, job_type, options))

    def enqueue(self, job: Job | str, payload: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Write a job to this queue and return its id; a type without a handler here is accepted.

        Args:
            job: a job type, or a job from `Job.create`, which then becomes the job that is stored.
            payload, options: as for `django_jobs.submit`, without `queue`; `scheduled_at` may also be Unix seconds.
                Given a type, `max_retries` is 0 unless the options, the handler, this queue's configuration or the
                site's settings of this queue set another: what a handler raises ends the job.

        Raises InvalidJob with every problem.
        """
        if isinstance(job, Job):
            if payload is not None or options:
                raise InvalidJob("give a job, or a job type with its payload and options")
            return self._enqueue_job(job)
        if options.get("max_retries") is None and isinstance(job, str) and not self.handlers.sets_retries(job):
            options["max_retries"] = 0
        return self.enqueue_by_rules(job, payload, **options)

    @_there
    def enqueue_by_rules(self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Write a job as `enqueue` does; without any other `max_retries` the site's MAX_RETRIES holds."""
        if options.get("queue", self.name) != self.name:
            raise InvalidJob(f"queue={options['queue']!r}: this is the queue {self.name!r}")
        given = with_moments({**options, "queue": self.name})
        stored = submit(job_type, payload, handlers=self.handlers, any_type=True, options=given)
        return str(stored.id)

    @_there
    def _enqueue_job(self, job: Job) -> str:
        if job.status not in (JobStatus.PENDING, JobStatus.SCHEDULED) or not job._state.adding:
            raise InvalidJob(f"job {job.id!r} is {job.status} and not new; import_jobs() takes jobs in any state")
        options = {
            "queue": self.name,
            "limit_key": job.__dict__.get("_limit_key"),
            "fair_key": job.__dict__.get("_fair_key"),
            "on_dependency_failure": job.__dict__.get("_on_dependency_failure"),
            **{name: getattr(job, name) for name in OF_JOB},
        }
        stored = submit(
            job.job_type, job.payload, handlers=self.handlers, any_type=True, rank=job.rank, options=options
        )
        job.__dict__.update(stored.__dict__)
        return str(stored.id)

    # Running.

    @_there
    def dequeue(self) -> Job | None:
        """Claim the next ready job and return it, or None; end it with `update_status`.

        The job is held by this script's worker process, whose lease lasts as long as the script runs.
        """
        process = self._process()
        with process.state.claiming():
            with process.state.connections.lent():  # prepared, whatever the site's isolation level is
                jobs = claim(self.name, 1, process.id, ageing=self._ageing)
            for claimed in jobs:
                process.hold(claimed)
                _start(claimed)
        return self.get_job(jobs[0].id) if jobs else None

    @_there
    def peek(self) -> Job | None:
        """Return the job that `dequeue` would claim, or None; it is not claimed."""
        due = LimitTurn.objects.filter(due_at__lte=DbNow()).values("scope")
        its_turn = Q(pk__in=LimitSlot.objects.filter(waits=True, scope__in=due).values("job"))
        ready = self._ready().filter(Q(pending_limits=0) | its_turn).order_by("rank", "available_at", "id")
        ageing = self._ageing
        if look(self.name):
            in_turn = (job.id for job in first_in_turn(Line(self.name), MOST_PEEKED, ageing))
            jobs: Iterator[Job] = (job for job_id in in_turn if (job := self.jobs().filter(pk=job_id).first()))
        else:
            jobs = ready.iterator() if ageing is None else aged(ready, ageing)
        return next((job for job in jobs if may_run(job)), None)

    @property
    def _ageing(self) -> float | None:
        return self.handlers.job_options(None, self.name).ageing

    @_there
    def process_next(self) -> str | None:
        """Run the next ready job now, to its end, and return its id; None when none is ready.

        What the handler raises ends the attempt and is not raised here: the job is retried or dead by its rules.
        """
        process = self._process()
        worker: Worker | None = getattr(self._inline_workers, "worker", None)
        if worker is None or worker.process is not process:
            worker = self._inline_workers.worker = Worker(self, process=process)
        return worker.run_one(self.name)

    def _process(self) -> Process:
        """Start this script's worker process and promote what is due; return the process."""
        if in_transaction():
            raise JobsError(
                "a job cannot be claimed inside a transaction: the claim must be committed before the handler starts"
            )
        process = local_process(self.using)
        process.start()
        with process.state.connections.lent():
            promote()
            if active_limits().have_rates:
                take_turns()
        return process

    @_there
    def update_status(self, job_id: str, status: str) -> None:
        """Move a job to a status by a transition of the state machine.

        A running job can be moved by the process that holds it: to completed, failed, dead, cancelled, pending (handed
        back) or scheduled (a retry). Raises JobNotFound, and InvalidJob when there is no such transition.
        """
        job = self.get_job(job_id)
        options = self.handlers.job_options(self.handlers.find(job.job_type), self.name)
        process = local_process(self.using)
        process.start()
        with process.state.claiming():
            with process.state.connections.lent():
                claimed = move_to(job_id, str(status), process_id=process.id, options=options)
            if claimed is not None:
                process.hold(claimed)
                _start(claimed)
        if claimed is None:
            process.let_go(job_id)

    # Looking.

    @_there
    def jobs(self) -> JobQuerySet:
        """Return all jobs of this queue, as a queryset."""
        return all_jobs(self.name)

    def get_job(self, job_id: str) -> Job:
        """Return a job of this queue; raise JobNotFound when it has none of that id."""
        job = self.jobs().filter(pk=job_id).first() if isinstance(job_id, str) else None
        if job is None:
            raise JobNotFound(job_id)
        return job

    @property
    def size(self) -> int:
        """The number of jobs that are not finished."""
        return self.jobs().live().count()

    @_there
    def ready_count(self) -> int:
        """Return the number of jobs that are due, those that a limit holds back included."""
        return self._ready().count()

    def _ready(self) -> JobQuerySet:
        due = Q(status=JobStatus.SCHEDULED, available_at__lte=DbNow())
        return self.jobs().filter(Q(status=JobStatus.PENDING) | due, pending_dependencies=0)

    @_there
    def get_stats(self) -> dict[str, int]:
        """Return the number of jobs in each status."""
        return self.jobs().counts_by_status()

    @_there
    def wait_for_completion(self, job_id: str, timeout: float | None = None) -> bool:
        """Wait until a job is finished, in whatever status; return False when it is not after `timeout` seconds.

        Raises JobNotFound.
        """
        try:
            wait(self.get_job(job_id).id, timeout)
        except TimeoutError:
            return False
        return True

    # Operating.

    @_there
    def cancel(self, job_id: str) -> bool:
        """Cancel a job, or ask its worker to; return False when there is no such job or it is finished."""
        try:
            return bool(cancel([self.get_job(job_id).id]).done)
        except JobNotFound:
            return False

    @_there
    def export_jobs(self) -> list[dict[str, Any]]:
        """Return all jobs of this queue with what a faithful restore needs, as `import_jobs` takes them."""
        return export_dicts(self.jobs())

    @_there
    def import_jobs(self, data: Iterable[Mapping[str, Any]], *, include_running: bool = False) -> int:
        """Write jobs from `export_jobs` or `Job.to_dict`, all or none, and return how many were not there before.

        Args:
            include_running: take jobs that were running, as pending ones.

        Raises InvalidJob that names the item of each problem.
        """
        return import_dicts(data, include_running=include_running, queue=self.name).written

    @_there
    def cleanup(self) -> int:
        """Delete finished jobs past the site's RETENTION, of every queue; return how many."""
        return prune()


def _start(job: ClaimedJob) -> None:
    """Wait until a job may start that the caller handles itself, and record for its rates that it does."""
    if job.rated:
        wait_to_start(job)
        record_start(job.id, job.fence, job.rated)
