"""One job: a row that says what is to be done, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connections, models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_jobs.db.connections import database_of, jobs_alias, use_database
from django_jobs.encryption import compared
from django_jobs.handlers import registry
from django_jobs.ids import new_id
from django_jobs.numbers import LONGEST_SECONDS, priority_of, to_unix
from django_jobs.payloads import decode
from django_jobs.submission import check_submission, resolve, with_moments

from .fields import DbNow, ExactCharField, ExactTextField, MomentField, StrictJSONField
from .graph import JobGraph, graph_of
from .indexes import HotIndex, HotUnique, PartialIndex
from .managers import JobsManager

if TYPE_CHECKING:
    from .dependency import JobDependency


class JobStatus(models.TextChoices):
    """The seven states of a job; the last four are terminal."""

    PENDING = "pending", _("pending")
    SCHEDULED = "scheduled", _("scheduled")
    RUNNING = "running", _("running")
    COMPLETED = "completed", _("completed")
    FAILED = "failed", _("failed")
    DEAD = "dead", _("dead")
    CANCELLED = "cancelled", _("cancelled")


TERMINAL = frozenset({"completed", "failed", "dead", "cancelled"})
ENDED_BADLY = frozenset({"failed", "dead", "cancelled"})
LIVE = frozenset({"pending", "scheduled", "running"})
WAITING = frozenset({"pending", "scheduled"})
MOST, MOST_CRASHES, LAST_FENCE = 2_000_000_000, 32_000, 2**62  # with room for one more in their columns


def _status_is(statuses: Iterable[str]) -> Q:
    """Name each: SQLite looks a longer list up in a table that it makes for the statement, a sixteenth of a run."""
    return reduce(or_, (Q(status=status) for status in sorted(statuses)))


class JobQuerySet(models.QuerySet["Job"]):
    """Questions about jobs, and the moves on many: those that are in another state are left as they are."""

    def live(self) -> JobQuerySet:
        """Keep the jobs that are not finished."""
        return self.filter(status__in=LIVE)

    def finished(self) -> JobQuerySet:
        """Keep the jobs that ended, well or badly."""
        return self.filter(status__in=TERMINAL)

    def ready(self) -> JobQuerySet:
        """Keep the jobs that a worker would take now, in the order it would take them but for turns and ageing."""
        # Each half has an index of its own, and is found by that only when it is named.
        either = Q(fair_key__isnull=True) | Q(fair_key__isnull=False)
        ready = self.filter(either, status=JobStatus.PENDING, pending_dependencies=0, pending_limits=0)
        return ready.order_by("rank", "available_at", "id")

    def pending(self) -> JobQuerySet:
        """Keep the jobs that wait for a worker, for dependencies or for a limit."""
        pending = self.filter(status=JobStatus.PENDING)
        if not connections[self.db].features.supports_partial_indexes:
            return pending
        # Each part has an index of its own, and is found by that only when it is named.
        free = Q(pending_dependencies=0, pending_limits=0)
        parts = free & Q(fair_key__isnull=True) | free & Q(fair_key__isnull=False)
        return pending.filter(parts | Q(pending_dependencies__gt=0) | Q(pending_limits__gt=0))

    def held_back(self) -> JobQuerySet:
        """Keep the jobs that a limit holds back."""
        # By their slots: jobs that no limit holds are not looked at.
        return self.filter(slots__waits=True, pending_limits=1)

    def due(self) -> JobQuerySet:
        """Keep the scheduled jobs whose time has come by the database's clock."""
        return self.filter(status=JobStatus.SCHEDULED, available_at__lte=DbNow())

    def held_by(self, process_id: str) -> JobQuerySet:
        """Keep the running jobs that name a worker process."""
        return self.filter(worker_id=process_id, status=JobStatus.RUNNING)

    def held_under(self, job_id: str, fence: int) -> JobQuerySet:
        """Keep the running job that nobody has taken since it was claimed under this fence."""
        # The fence says that it runs. With the status the planner may read the index of running rows, all of them.
        return self.filter(pk=job_id, fence=fence)

    def in_queues(self, names: Iterable[str]) -> JobQuerySet:
        """Keep the jobs of the named queues."""
        return self.filter(queue__in=list(names))

    def counts_by_status(self) -> dict[str, int]:
        """Return the number of jobs for each status; statuses without a job are 0."""
        counts = dict.fromkeys(JobStatus.values, 0)
        counts.update(self.order_by().values_list("status").annotate(number=models.Count("pk")))
        return counts

    def graph_of(self, job: Job) -> JobGraph:
        """Return the jobs connected with a job by dependencies, nearest first and at most 200, and their edges."""
        return graph_of(job)

    def cancel(self) -> int:
        """Cancel the jobs that wait and ask the workers of those that run; return how many these are."""
        from django_jobs.lifecycle.cancel import cancel

        return self._move(cancel)

    def replay(self, *, by: Any = None, dependents: bool = True, from_start: bool = False) -> int:
        """Run the jobs that ended badly again, as `Job.replay` does; return how many these are."""
        from django_jobs.lifecycle.replay import replay

        return self._move(replay, by=by, dependents=dependents, from_start=from_start)

    def run_now(self) -> int:
        """Make the scheduled jobs ready at once; return how many wait for a worker now."""
        from django_jobs.lifecycle.promote import run_now

        return self._move(run_now)

    async def acancel(self) -> int:
        """Cancel the jobs from async code; see `cancel`."""
        return await sync_to_async(self.cancel)()

    async def areplay(self, *, by: Any = None, dependents: bool = True, from_start: bool = False) -> int:
        """Replay the jobs from async code; see `replay`."""
        return await sync_to_async(self.replay)(by=by, dependents=dependents, from_start=from_start)

    async def arun_now(self) -> int:
        """Make the scheduled jobs ready from async code; see `run_now`."""
        return await sync_to_async(self.run_now)()

    def _move(self, move: Callable[..., Any], **options: Any) -> int:
        self._for_write = True
        with use_database(self.db):
            return len(move(list(self.values_list("pk", flat=True)), **options).done)


class Job(models.Model):
    """A unit of work. Its state is changed by the functions in `lifecycle/` only."""

    # First what the hot indexes read: a database finds a column by walking over those before it, for each index of each change.
    # Last what may be long, and lies on further pages.
    id = ExactCharField(_("id"), primary_key=True, max_length=64, default=new_id, editable=False)
    queue = ExactCharField(_("queue"), max_length=64, default="default")
    status = ExactCharField(_("status"), max_length=10, choices=JobStatus, default=JobStatus.PENDING)
    pending_dependencies = models.PositiveIntegerField(_("dependencies open"), default=0)
    # 1 while a limit holds the job back, else 0; its LimitSlot says which one.
    pending_limits = models.SmallIntegerField(_("limits that hold it back"), default=0)
    # Lower runs first: MariaDB cannot read an index of mixed directions without a sort, which locks every row that it reads.
    # A step of priority is 20, which leaves room for all priorities of Django's tasks, -100 to 100, in one order.
    rank = models.SmallIntegerField(_("rank"), default=0)
    available_at = MomentField(_("available at"))
    # The jobs of one queue and rank take turns by this key; those without it are one more key.
    fair_key = ExactCharField(_("fair key"), max_length=200, null=True, blank=True)
    worker_id = ExactCharField(_("worker process"), max_length=128, null=True, blank=True)
    # The key while the job is live, else NULL: unique wherever it is not NULL, which every database can promise.
    unique_lock = ExactCharField(_("unique lock"), max_length=200, null=True, blank=True)
    fence = models.BigIntegerField(_("fence"), default=0)
    job_type = ExactCharField(_("job type"), max_length=200)
    started_at = MomentField(_("started at"), null=True, blank=True)
    finished_at = MomentField(_("finished at"), null=True, blank=True)
    created_at = MomentField(_("created at"))
    updated_at = MomentField(_("updated at"), twins=("started_at", "finished_at"))
    scheduled_at = MomentField(_("scheduled at"), null=True, blank=True)
    max_retries = models.PositiveIntegerField(_("retries allowed"), default=3)
    retry_count = models.PositiveIntegerField(_("retries"), default=0)
    crash_count = models.PositiveSmallIntegerField(_("crashes"), default=0)
    timeout_seconds = models.FloatField(_("timeout in seconds"), null=True, blank=True)
    cancel_requested_at = MomentField(_("cancel requested at"), null=True, blank=True)
    progress = models.FloatField(_("progress"), null=True, blank=True)
    progress_message = ExactCharField(_("progress message"), max_length=200, default="", blank=True)
    # The batch of a member, or the one that a callback tells of. Not to be searched: an index would cost every job, and
    # `BatchMember` has one. It is here because a claim reads it, so that a settle knows without another look.
    batch = models.ForeignKey(
        "Batch",
        on_delete=models.DO_NOTHING,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
        verbose_name=_("batch"),
        db_index=False,
        db_constraint=False,
    )
    # The values of the keys of its type's and its queue's limit, as asked at the submit.
    limit_key = ExactCharField(_("limit key"), max_length=200, null=True, blank=True)
    queue_limit_key = ExactCharField(_("limit key of the queue"), max_length=200, null=True, blank=True)
    unique_key = ExactCharField(_("unique key"), max_length=200, null=True, blank=True)
    payload = StrictJSONField(_("payload"), default=dict)
    metadata = StrictJSONField(_("metadata"), default=dict)
    result = StrictJSONField(_("result"), null=True, blank=True)
    error = ExactTextField(_("error"), null=True, blank=True)

    objects = JobsManager.from_queryset(JobQuerySet)()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        base_manager_name = "objects"
        ordering = ("-id",)
        permissions = (
            ("cancel_job", _("Can cancel jobs")),
            ("discard_job", _("Can discard waiting jobs")),
            ("view_payload", _("Can see payloads and results")),
        )
        constraints = (
            models.CheckConstraint(name="django_jobs_job_rank", condition=Q(rank__gte=-100, rank__lte=100)),
            models.CheckConstraint(
                name="django_jobs_job_finished",
                condition=Q(finished_at__isnull=False) & _status_is(TERMINAL)
                | Q(finished_at__isnull=True) & _status_is(LIVE),
            ),
            models.CheckConstraint(
                name="django_jobs_job_running",
                condition=~Q(status="running") | Q(worker_id__isnull=False, started_at__isnull=False),
            ),
            HotUnique(name="django_jobs_job_unique", field="unique_lock"),
            models.CheckConstraint(
                name="django_jobs_job_unique_lock",
                condition=Q(unique_lock__isnull=True) | _status_is(LIVE),
            ),
            # A hand with SQL is refused what no code of ours writes: one could not be added to it, PostgreSQL's floats may be no
            # numbers, and SQLite takes anything as a number; text and bytes are greater than all of them. The fence stands
            # alone, for it is the one number that each claim and settle writes.
            models.CheckConstraint(name="django_jobs_job_fence", condition=Q(fence__gte=0, fence__lte=LAST_FENCE)),
            models.CheckConstraint(
                name="django_jobs_job_numbers",
                condition=Q(
                    retry_count__lte=MOST,
                    max_retries__lte=MOST,
                    pending_dependencies__lte=MOST,
                    crash_count__lte=MOST_CRASHES,
                    timeout_seconds__gt=0,
                    timeout_seconds__lte=LONGEST_SECONDS,
                    progress__gte=0,
                    progress__lte=1,
                ),
            ),
            models.CheckConstraint(name="django_jobs_job_named", condition=~Q(id="") & ~Q(job_type="")),
            models.CheckConstraint(
                name="django_jobs_job_held_back",
                condition=Q(pending_limits=0) | Q(pending_limits=1, status="pending", pending_dependencies=0),
            ),
        )
        # Each further index costs the hot path about 13 %. Scheduled jobs stay out of the first one: kept in it, many of them
        # made a claim cost 2.9 times as much. Where no index can be partial, `status` keeps them apart.
        indexes = (
            HotIndex(
                name="django_jobs_job_ready",
                fields=["queue", "rank", "available_at", "id"],
                where=Q(status="pending", pending_dependencies=0, pending_limits=0, fair_key__isnull=True),
                full_fields=[
                    "queue",
                    "status",
                    "pending_dependencies",
                    "pending_limits",
                    "rank",
                    "fair_key",
                    "available_at",
                    "id",
                ],
            ),
            # Jobs with a fair key by their keys; all others stay out of it.
            PartialIndex(
                name="django_jobs_job_fair",
                fields=["queue", "rank", "fair_key", "available_at", "id"],
                where=Q(status="pending", pending_dependencies=0, pending_limits=0, fair_key__isnull=False),
            ),
            # Those that wait for more than a worker, for lists of all that is pending. It costs only the jobs that do.
            PartialIndex(
                name="django_jobs_job_blocked",
                fields=["id"],
                where=Q(status="pending") & (Q(pending_dependencies__gt=0) | Q(pending_limits__gt=0)),
            ),
            HotIndex(
                name="django_jobs_job_due",
                fields=["available_at"],
                where=Q(status="scheduled"),
                full_fields=["status", "available_at"],
            ),
            HotIndex(
                name="django_jobs_job_held",
                fields=["worker_id"],
                where=Q(status="running"),
                full_fields=["worker_id", "status"],
            ),
        )

    def __str__(self) -> str:
        return f"{self.job_type} {self.id}"

    def __lt__(self, other: object) -> bool:
        """Say whether this job is claimed before the other one, both being ready in one queue."""
        if not isinstance(other, Job):
            return NotImplemented
        return self._claim_order() < other._claim_order()

    def _claim_order(self) -> tuple[int, datetime, str]:
        return (self.rank, self.available_at, self.id)

    @property
    def job_id(self) -> str:
        """The primary key."""
        return str(self.id)

    @property
    def priority(self) -> int:
        """The priority from 1 to 10; higher runs first."""
        return priority_of(self.rank)

    @property
    def held_back_by(self) -> str | None:
        """The limit that holds the job back, with the value of its key, such as "type:mail.send acme"; None when none does."""
        if not self.pending_limits:
            return None
        return next((slot.scope for slot in self.slots.all() if slot.waits), None)

    @property
    def held_back_until(self) -> datetime | None:
        """When a rate lets start the first of those that wait with this job; None when it is no rate that holds it back."""
        from .limit import LimitTurn

        scope = self.held_back_by
        turns = LimitTurn.objects.using(self._state.db or jobs_alias())
        return None if scope is None else turns.filter(pk=scope).values_list("due_at", flat=True).first()

    @property
    def is_finished(self) -> bool:
        """Whether the job ended, well or badly."""
        return self.status in TERMINAL

    @property
    def depends_on(self) -> list[str]:
        """The ids of the jobs that this one depends on, sorted."""
        given = self.__dict__.get("_depends_on")
        if given is not None:
            return sorted(given)
        return sorted(edge.depends_on_id for edge in self._edges())

    def _edges(self) -> Iterable[JobDependency]:
        return self.dependencies.all() if self.pk and not self._state.adding else ()

    @classmethod
    def create(cls, job_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Job:
        """Check and build a job without saving it; `JobQueue.enqueue` takes it.

        The options are those of `django_jobs.submit`; `scheduled_at` may also be Unix seconds, as in `to_dict()`.
        Raises InvalidJob, a ValueError, with every problem.
        """
        given = check_submission(job_type, payload, with_moments(options))
        template = resolve(given, registry.find(job_type), registry)
        keys = template.keys(payload)
        now = timezone.now()
        scheduled_at = template.scheduled_at(now)
        waits = scheduled_at is not None and scheduled_at > now
        job = cls(
            id=given.job_id or new_id(),
            job_type=given.job_type,
            queue=template.queue,
            payload=decode(given.payload),
            metadata=decode(given.metadata),
            rank=template.rank,
            status=JobStatus.SCHEDULED if waits else JobStatus.PENDING,
            scheduled_at=scheduled_at,
            available_at=scheduled_at if waits and scheduled_at else now,
            created_at=now,
            updated_at=now,
            max_retries=template.max_retries,
            timeout_seconds=template.timeout_seconds,
            unique_key=given.unique_key,
            unique_lock=given.unique_key,
            pending_dependencies=len(given.depends_on),
            limit_key=keys.limit_key,
            queue_limit_key=keys.queue_limit_key,
            fair_key=keys.fair_key,
        )
        job.__dict__["_depends_on"] = given.depends_on
        job.__dict__["_on_dependency_failure"] = given.on_dependency_failure
        job.__dict__["_limit_key"] = given.limit_key
        job.__dict__["_fair_key"] = given.fair_key
        return job

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Build a job, without saving it, from what `to_dict()` or an export gives; keys left out get their defaults.

        Raises InvalidJob with every problem.
        """
        from django_jobs.transfer.record import Record

        with compared():  # of an export it reads what is encrypted there
            return Record.from_dict(data).job

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain values under its fifteen documented keys; times are Unix seconds."""
        return {
            "job_id": self.id,
            "job_type": self.job_type,
            "queue": self.queue,
            "payload": self.payload,
            "priority": self.priority,
            "scheduled_at": to_unix(self.scheduled_at),
            "created_at": to_unix(self.created_at),
            "max_retries": self.max_retries,
            "retry_count": self.retry_count,
            "timeout_seconds": self.timeout_seconds,
            "status": str(self.status),
            "result": self.result,
            "error": self.error,
            "metadata": self.metadata,
            "depends_on": self.depends_on,
        }

    # The moves. Each raises JobNotFound when the row is gone, and InvalidJob for an illegal move, which changes nothing.
    # They hold no rule. Only here a room imports from above, inside the methods: `job.cancel()` is what people look for.

    def cancel(self) -> str:
        """Cancel the job: at once when it waits, by asking its worker when it runs; return the status then."""
        from django_jobs.lifecycle.cancel import cancel

        self._move(cancel)
        return str(self.status)

    def replay(self, *, by: Any = None, dependents: bool = True, from_start: bool = False) -> None:
        """Run a dead, failed or cancelled job again, and the dependents that failed because of it.

        Its recorded steps are not done again, unless it is to begin from the start.
        """
        from django_jobs.lifecycle.replay import replay

        self._move(replay, by=by, dependents=dependents, from_start=from_start)

    def run_now(self) -> None:
        """Make a scheduled job ready at once; a pending one is left as it is."""
        from django_jobs.lifecycle.promote import run_now

        self._move(run_now)

    def add_dependency(self, depends_on: Job | str, on_failure: str = "fail") -> None:
        """Make this job, which still waits, depend on one more; raise CycleError when that closes a circle."""
        from django_jobs.lifecycle.add_dependency import add_dependency

        other: Any = depends_on
        with database_of(self):
            add_dependency(self.pk, getattr(other, "pk", other), on_failure)
            self._reread()

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job is finished and return it, refreshed; raise TimeoutError after `timeout` seconds."""
        from django_jobs.waiting import wait

        with database_of(self):
            wait(self.pk, timeout)
            self._reread()
        return self

    async def acancel(self) -> str:
        """Cancel the job from async code; see `cancel`."""
        return await sync_to_async(self.cancel)()

    async def areplay(self, *, by: Any = None, dependents: bool = True, from_start: bool = False) -> None:
        """Replay the job from async code; see `replay`."""
        await sync_to_async(self.replay)(by=by, dependents=dependents, from_start=from_start)

    async def arun_now(self) -> None:
        """Make a scheduled job ready from async code; see `run_now`."""
        await sync_to_async(self.run_now)()

    async def aadd_dependency(self, depends_on: Job | str, on_failure: str = "fail") -> None:
        """Add a dependency from async code; see `add_dependency`."""
        await sync_to_async(self.add_dependency)(depends_on, on_failure)

    async def await_(self, timeout: float | None = None) -> Job:
        """Wait in async code, without holding a thread; see `wait`."""
        from django_jobs.waiting import await_

        with database_of(self):
            await await_(self.pk, timeout)
            await sync_to_async(self._reread)()
        return self

    def _move(self, move: Callable[..., Any], **options: Any) -> None:
        with database_of(self):
            move([self.pk], **options).raise_if_left()
            self._reread()

    def _reread(self) -> None:
        self.__dict__.pop("_depends_on", None)
        self.refresh_from_db(using=jobs_alias())
