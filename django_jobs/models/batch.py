"""A batch: jobs that belong together, counted as one, with jobs that are submitted when all of them have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from asgiref.sync import sync_to_async
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_jobs.db.connections import database_of, jobs_alias
from django_jobs.ids import new_id
from django_jobs.submission import NewJob, SubmitOptions

from .fields import ExactCharField, MomentField, StrictJSONField
from .job import ENDED_BADLY, MOST, Job, JobQuerySet
from .managers import JobsManager

if TYPE_CHECKING:
    from django.db.models.fields.related_descriptors import RelatedManager

Rows = TypeVar("Rows", bound="models.QuerySet[Any]")


class BatchStatus(models.TextChoices):
    """How a batch stands: running until its last member has ended, then how it ended."""

    RUNNING = "running", _("running")
    COMPLETED = "completed", _("completed")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")


class BatchQuerySet(models.QuerySet["Batch"]):
    """Questions about batches."""

    def unfinished(self) -> BatchQuerySet:
        """Keep the batches of which a member has not ended."""
        return self.filter(finished_at=None)

    def finished(self) -> BatchQuerySet:
        """Keep the batches all of whose members have ended."""
        return self.filter(finished_at__isnull=False)


class Batch(models.Model):
    """Jobs with a common end. Its state is changed by the functions in `lifecycle/` only.

    Whether a member is left is asked of the members' rows: a count here would be a row that all settles wait for.
    """

    id = ExactCharField(_("id"), primary_key=True, max_length=64, default=new_id, editable=False)
    description = ExactCharField(_("description"), max_length=200, default="", blank=True)
    metadata = StrictJSONField(_("metadata"), default=dict)
    status = ExactCharField(_("status"), max_length=9, choices=BatchStatus, default=BatchStatus.RUNNING)
    # What is submitted at the end, by the names on_success, on_failure and on_finish.
    callbacks = StrictJSONField(_("callbacks"), default=dict)
    created_at = MomentField(_("created at"))
    finished_at = MomentField(_("finished at"), null=True, blank=True)
    cancel_requested_at = MomentField(_("cancel requested at"), null=True, blank=True)
    parent = models.ForeignKey(
        "self",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="children",
        verbose_name=_("parent"),
        db_index=False,
    )
    # Rows are locked from the deepest up, so that batches that end together do not wait for each other in a circle.
    depth = models.PositiveIntegerField(_("depth"), default=0, editable=False)
    # The job whose children these are. It is told of their end.
    awaited_by = ExactCharField(_("awaited by"), max_length=64, null=True, blank=True)

    objects = JobsManager.from_queryset(BatchQuerySet)()

    if TYPE_CHECKING:
        children: RelatedManager[Batch]

    class Meta:
        verbose_name = _("batch")
        verbose_name_plural = _("batches")
        base_manager_name = "objects"
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(name="django_jobs_batch_status", condition=Q(status__in=BatchStatus.values)),
            models.CheckConstraint(name="django_jobs_batch_named", condition=~Q(id="") & Q(depth__lte=MOST)),
            models.CheckConstraint(
                name="django_jobs_batch_finished",
                condition=Q(status="running", finished_at__isnull=True)
                | (~Q(status="running") & Q(finished_at__isnull=False)),
            ),
        )
        indexes = (
            models.Index(fields=("parent", "status"), name="django_jobs_batch_children"),
            models.Index(fields=("status", "finished_at"), name="django_jobs_batch_ends"),
        )

    def __str__(self) -> str:
        return str(self.description or self.id)

    @property
    def is_finished(self) -> bool:
        """Whether all members have ended."""
        return self.finished_at is not None

    @property
    def jobs(self) -> JobQuerySet:
        """The members, in the order in which they were submitted."""
        return self._here(Job.objects.filter(membership__batch=self.pk).order_by("membership__place"))

    @property
    def progress(self) -> dict[str, int]:
        """The number of members for each status of a job; a nested batch counts as one."""
        counts = self.jobs.counts_by_status()
        nested = self._here(Batch.objects.filter(parent=self.pk)).order_by().values_list("status")
        for status, number in nested.annotate(number=models.Count("pk")):
            counts[status] += number
        return counts

    def _here(self, rows: Rows) -> Rows:
        return rows.using(self._state.db or jobs_alias())

    # Adding. Each raises InvalidJob when the batch has finished, or is being cancelled; nothing is written then.

    def submit(self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]) -> Job:
        """Submit a job as a member; arguments and errors are those of `django_jobs.submit`.

        A job that is returned because it holds the `unique_key` does not become a member.
        """
        from django_jobs.lifecycle.submit import submit

        with database_of(self):
            return submit(job_type, payload, options=options, member_of=self.pk)

    def submit_many(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Submit jobs as members, all or none; as `django_jobs.submit_many`."""
        from django_jobs.lifecycle.submit import submit_many

        with database_of(self):
            return submit_many(new_jobs, member_of=self.pk)

    async def asubmit(
        self, job_type: str, payload: Mapping[str, Any] | None = None, **options: Unpack[SubmitOptions]
    ) -> Job:
        """Submit a member from async code; see `submit`."""
        return await sync_to_async(self.submit)(job_type, payload, **options)

    async def asubmit_many(self, new_jobs: Iterable[NewJob]) -> list[Job]:
        """Submit members from async code; see `submit_many`."""
        return await sync_to_async(self.submit_many)(new_jobs)

    def batch(
        self,
        description: str = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        on_success: NewJob | None = None,
        on_failure: NewJob | None = None,
        on_finish: NewJob | None = None,
    ) -> AbstractContextManager[Batch]:
        """Begin a batch that is a member of this one; arguments and errors are those of `django_jobs.batch`."""
        from django_jobs.lifecycle.batches import new_batch

        callbacks = {"on_success": on_success, "on_failure": on_failure, "on_finish": on_finish}
        with database_of(self):
            return new_batch(description, metadata=metadata, callbacks=callbacks, parent_id=self.pk)

    # The moves. Each raises BatchNotFound when the row is gone, and InvalidJob for an illegal move, which changes nothing.

    def cancel(self) -> int:
        """Cancel the members that wait, ask the workers of those that run, and take no more; return how many these are.

        Nested batches are cancelled with it. The callbacks come when the last member has ended.
        """
        from django_jobs.lifecycle.cancel import cancel_batch

        with database_of(self):
            moved = cancel_batch(self.pk)
            self.refresh_from_db(using=jobs_alias())
        return moved

    def replay(self, *, by: Any = None) -> int:
        """Run the members that ended badly again, those of nested batches too; return how many these are.

        The batch is open again, and its callbacks come again when it ends.
        """
        from django_jobs.lifecycle.replay import replay_batch

        with database_of(self):
            moved = replay_batch(self.pk, by=by)
            self.refresh_from_db(using=jobs_alias())
        return moved

    def wait(self, timeout: float | None = None) -> Batch:
        """Wait until the batch has finished and return it, refreshed; raise TimeoutError after `timeout` seconds.

        The callbacks are not waited for. Raises InvalidJob where `Job.wait` does.
        """
        from django_jobs.waiting import wait_for_batch

        with database_of(self):
            wait_for_batch(self.pk, timeout)
            self.refresh_from_db(using=jobs_alias())
        return self

    async def acancel(self) -> int:
        """Cancel from async code; see `cancel`."""
        return await sync_to_async(self.cancel)()

    async def areplay(self, *, by: Any = None) -> int:
        """Replay from async code; see `replay`."""
        return await sync_to_async(self.replay)(by=by)

    async def await_(self, timeout: float | None = None) -> Batch:
        """Wait from async code, without holding a thread; see `wait`."""
        from django_jobs.waiting import await_batch

        with database_of(self):
            await await_batch(self.pk, timeout)
            await self.arefresh_from_db(using=jobs_alias())
        return self


class BatchMember(models.Model):
    """The place of one job in its batch: a side table, so that jobs without a batch enter no index for it."""

    # Without constraints in the database: they would be looked up for every job that is pruned.
    job = models.OneToOneField(
        Job,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="membership",
        verbose_name=_("job"),
        db_constraint=False,
    )
    batch = models.ForeignKey(
        Batch,
        on_delete=models.CASCADE,
        related_name="members",
        verbose_name=_("batch"),
        db_constraint=False,
        db_index=False,
    )
    place = models.BigIntegerField(_("place"))
    # How it ended, where that was not well; empty while it is open, and where it completed.
    bad_end = ExactCharField(_("bad end"), max_length=9, default="", blank=True)

    objects = JobsManager()

    class Meta:
        verbose_name = _("member")
        verbose_name_plural = _("members")
        base_manager_name = "objects"
        constraints = (
            models.CheckConstraint(
                name="django_jobs_member_end", condition=Q(bad_end__in=("", *sorted(map(str, ENDED_BADLY))))
            ),
        )
        indexes = (models.Index(fields=("batch", "bad_end", "place"), name="django_jobs_members"),)

    def __str__(self) -> str:
        return f"{self.job_id} in {self.batch_id}"


class OpenMember(models.Model):
    """A member that has not ended, and holds its batch open.

    A row of its own and not a state of the place: to delete it costs a fraction of what a change in an index does.
    """

    job = models.OneToOneField(
        Job,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="+",
        verbose_name=_("job"),
        db_constraint=False,
    )
    batch = models.ForeignKey(
        Batch,
        on_delete=models.CASCADE,
        related_name="open_members",
        verbose_name=_("batch"),
        db_constraint=False,
        db_index=False,
    )
    place = models.BigIntegerField(_("place"))  # as in `BatchMember`

    objects = JobsManager()

    class Meta:
        verbose_name = _("open member")
        verbose_name_plural = _("open members")
        base_manager_name = "objects"
        indexes = (models.Index(fields=("batch", "place"), name="django_jobs_open_members"),)

    def __str__(self) -> str:
        return f"{self.job_id} in {self.batch_id}"
