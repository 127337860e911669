"""An edge of the job graph: one job waits for another."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from .fields import ExactCharField
from .indexes import PartialIndex
from .job import Job
from .managers import JobsManager


class OnFailure(models.TextChoices):
    """What a dependency that ended badly does to its dependent."""

    FAIL = "fail", _("fail")
    RUN = "run", _("run anyway")


class DependencyState(models.TextChoices):
    """Whether the edge still holds its dependent back."""

    OPEN = "open", _("open")
    SATISFIED = "satisfied", _("satisfied")
    BROKEN = "broken", _("broken")


class JobDependency(models.Model):
    """One edge: `job` may start only after `depends_on` has completed."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="dependencies", verbose_name=_("job"))
    depends_on = models.ForeignKey(
        Job, on_delete=models.CASCADE, related_name="dependents", verbose_name=_("depends on"), db_index=False
    )
    on_failure = ExactCharField(_("on failure"), max_length=4, choices=OnFailure, default=OnFailure.FAIL)
    state = ExactCharField(_("state"), max_length=9, choices=DependencyState, default=DependencyState.OPEN)

    objects = JobsManager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("dependency")
        verbose_name_plural = _("dependencies")
        constraints = (
            models.UniqueConstraint(fields=("job", "depends_on"), name="django_jobs_dependency_pair"),
            models.CheckConstraint(name="django_jobs_dependency_not_itself", condition=~Q(job=models.F("depends_on"))),
            models.CheckConstraint(
                name="django_jobs_dependency_on_failure", condition=Q(on_failure__in=OnFailure.values)
            ),
            models.CheckConstraint(name="django_jobs_dependency_state", condition=Q(state__in=DependencyState.values)),
        )
        indexes = (
            models.Index(fields=("depends_on", "state"), name="django_jobs_dependents"),
            # What a replay has to revive, without a look at all that was satisfied.
            PartialIndex(fields=["depends_on", "job"], where=Q(state="broken"), name="django_jobs_dependency_broken"),
        )

    def __str__(self) -> str:
        return f"{self.job_id} → {self.depends_on_id}"
