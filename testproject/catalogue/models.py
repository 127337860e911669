"""A scan of a folder, and the files it found."""

from django.db import models

from django_jobs.models.fields import ExactCharField


class Scan(models.Model):
    """One scan of a folder, made by the job `job_id`; `report` is written when all its files were tried."""

    folder = models.TextField()
    job_id = models.CharField(max_length=64, unique=True)
    started_at = models.DateTimeField()
    report = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.folder} ({self.started_at:%Y-%m-%d %H:%M})"


class SourceFile(models.Model):
    """A file that a scan found; what it measures (size in bytes) is empty until its job has read it as text."""

    scan = models.ForeignKey(Scan, on_delete=models.CASCADE, related_name="files")
    path = ExactCharField(max_length=700)  # below the scan's folder; an index of MariaDB holds no longer one
    size = models.PositiveBigIntegerField(null=True, blank=True)
    lines = models.PositiveBigIntegerField(null=True, blank=True)
    sha256 = models.CharField(max_length=64, blank=True, default="")
    encoding = models.CharField(max_length=40, blank=True, default="")
    measured_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("scan", "path")
        constraints = (models.UniqueConstraint(fields=("scan", "path"), name="catalogue_path_once_per_scan"),)

    def __str__(self) -> str:
        return str(self.path)
