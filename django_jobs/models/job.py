"""One job: a row that says what is to be done, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_jobs.ids import new_id

from .doors import JobDoors
from .fields import DbNow, ExactCharField, ExactTextField, StrictJSONField
from .graph import JobGraph, graph_of
from .indexes import HotIndex, HotUnique
from .job_values import JobValues

if TYPE_CHECKING:
    from .dependency import JobDependency

RANKS_PER_PRIORITY = 20
MIDDLE_PRIORITY = 5


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


def rank_of(priority: int) -> int:
    """Return the stored rank, -100 to 80, of a priority from 1 to 10: lower ranks run first."""
    return (MIDDLE_PRIORITY - priority) * RANKS_PER_PRIORITY


def priority_of(rank: int) -> int:
    """Return the priority, 1 to 10, nearest to a rank."""
    return max(1, min(10, round(MIDDLE_PRIORITY - rank / RANKS_PER_PRIORITY)))


class JobQuerySet(models.QuerySet["Job"]):
    """Questions about jobs; none of these changes a row."""

    def live(self) -> JobQuerySet:
        """Keep the jobs that are not finished."""
        return self.filter(status__in=LIVE)

    def finished(self) -> JobQuerySet:
        """Keep the jobs that ended, well or badly."""
        return self.filter(status__in=TERMINAL)

    def ready(self) -> JobQuerySet:
        """Keep the jobs that a worker would take now, in the order it would take them."""
        return self.filter(status=JobStatus.PENDING, pending_dependencies=0).order_by("rank", "available_at", "id")

    def waiting(self) -> JobQuerySet:
        """Keep the jobs that wait for other jobs."""
        return self.filter(status__in=(JobStatus.PENDING, JobStatus.SCHEDULED), pending_dependencies__gt=0)

    def due(self) -> JobQuerySet:
        """Keep the scheduled jobs whose time has come by the database's clock."""
        return self.filter(status=JobStatus.SCHEDULED, available_at__lte=DbNow())

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


class Job(JobValues, JobDoors, models.Model):
    """A unit of work. Its state is changed by the functions in `lifecycle/` only."""

    id = ExactCharField(_("id"), primary_key=True, max_length=64, default=new_id, editable=False)
    job_type = ExactCharField(_("job type"), max_length=200)
    queue = ExactCharField(_("queue"), max_length=64, default="default")
    payload = StrictJSONField(_("payload"), default=dict)
    rank = models.SmallIntegerField(_("rank"), default=0)
    status = ExactCharField(_("status"), max_length=10, choices=JobStatus, default=JobStatus.PENDING)
    scheduled_at = models.DateTimeField(_("scheduled at"), null=True, blank=True)
    available_at = models.DateTimeField(_("available at"))
    created_at = models.DateTimeField(_("created at"))
    updated_at = models.DateTimeField(_("updated at"))
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    max_retries = models.PositiveIntegerField(_("retries allowed"), default=3)
    retry_count = models.PositiveIntegerField(_("retries"), default=0)
    timeout_seconds = models.FloatField(_("timeout in seconds"), null=True, blank=True)
    result = StrictJSONField(_("result"), null=True, blank=True)
    error = ExactTextField(_("error"), null=True, blank=True)
    metadata = StrictJSONField(_("metadata"), default=dict)
    unique_key = ExactCharField(_("unique key"), max_length=200, null=True, blank=True)
    unique_lock = ExactCharField(_("unique lock"), max_length=200, null=True, blank=True)
    pending_dependencies = models.PositiveIntegerField(_("dependencies open"), default=0)
    fence = models.BigIntegerField(_("fence"), default=0)
    worker_id = ExactCharField(_("worker process"), max_length=128, null=True, blank=True)
    crash_count = models.PositiveSmallIntegerField(_("crashes"), default=0)
    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True, blank=True)
    progress = models.FloatField(_("progress"), null=True, blank=True)
    progress_message = ExactCharField(_("progress message"), max_length=200, default="", blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering = ("-id",)
        permissions = (
            ("cancel_job", _("Can cancel jobs")),
            ("view_payload", _("Can see payloads and results")),
        )
        constraints = (
            models.CheckConstraint(name="django_jobs_job_status", condition=Q(status__in=JobStatus.values)),
            models.CheckConstraint(name="django_jobs_job_rank", condition=Q(rank__gte=-100, rank__lte=100)),
            models.CheckConstraint(
                name="django_jobs_job_finished",
                condition=Q(status__in=sorted(TERMINAL), finished_at__isnull=False)
                | Q(status__in=sorted(LIVE), finished_at__isnull=True),
            ),
            models.CheckConstraint(
                name="django_jobs_job_running",
                condition=~Q(status="running") | Q(worker_id__isnull=False, started_at__isnull=False),
            ),
            HotUnique(name="django_jobs_job_unique", field="unique_lock"),
            models.CheckConstraint(
                name="django_jobs_job_unique_lock",
                condition=Q(unique_lock__isnull=True) | Q(status__in=sorted(LIVE)),
            ),
        )
        indexes = (
            HotIndex(
                name="django_jobs_job_ready",
                fields=["queue", "rank", "available_at", "id"],
                where=Q(status="pending", pending_dependencies=0),
                full_fields=["queue", "status", "pending_dependencies", "rank", "available_at", "id"],
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
