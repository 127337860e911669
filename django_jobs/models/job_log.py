"""What the handler of a job logged in one attempt."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactTextField
from .job import Job
from .managers import JobsManager


class JobLog(models.Model):
    """The log of one attempt, at most 64 KiB: the middle of a longer one is cut. Written only where `log_level` asks for it."""

    # No foreign key in the database, which would look here for each job that is pruned.
    job = models.ForeignKey(
        Job, on_delete=models.CASCADE, related_name="logs", db_constraint=False, db_index=False, verbose_name=_("job")
    )
    # retry_count + 1, as that of an attempt. A run after a wait, a release or a replay goes on with the log of its number.
    number = models.PositiveIntegerField(_("number"))
    text = ExactTextField(_("text"))

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        default_permissions = ()  # the permission view_payload guards it
        verbose_name = _("log")
        verbose_name_plural = _("logs")
        ordering = ("job", "number")
        constraints = (models.UniqueConstraint(name="django_jobs_joblog_number", fields=["job", "number"]),)

    def __str__(self) -> str:
        return f"{self.job_id} #{self.number}"
