"""The table of the physical limit: the columns and indexes of a job, without the rest of django_jobs."""
# ruff: noqa: DJ001  the columns are those of the table it stands for

import uuid
from typing import Any

from django.db import connection, models
from django.db.models import Q
from django.utils import timezone


class Text(models.CharField):
    """Text with the binary order of a job's, and like it without PostgreSQL's second index for LIKE."""

    def db_type(self, connection: Any) -> str | None:
        given = super().db_type(connection) or ""
        return given.replace("varchar", "character varying") if connection.vendor == "postgresql" else given

    def db_parameters(self, connection: Any) -> Any:
        collations = {"postgresql": "C", "mysql": "utf8mb4_nopad_bin"}
        return super().db_parameters(connection) | {"collation": collations.get(connection.vendor)}


def _ready_index() -> models.Index:
    """Return the index that a claim reads: partial where the database can do that."""
    if connection.features.supports_partial_indexes:
        ready = Q(status="pending", pending_dependencies=0)
        return models.Index(fields=["queue", "rank", "available_at", "id"], name="bare_ready", condition=ready)
    return models.Index(
        fields=["queue", "status", "pending_dependencies", "rank", "available_at", "id"], name="bare_ready"
    )


def _held_index() -> models.Index:
    if connection.features.supports_partial_indexes:
        return models.Index(fields=["worker_id"], name="bare_held", condition=Q(status="running"))
    return models.Index(fields=["worker_id", "status"], name="bare_held")


def _due_index() -> models.Index:
    if connection.features.supports_partial_indexes:
        return models.Index(fields=["available_at"], name="bare_due", condition=Q(status="scheduled"))
    return models.Index(fields=["scheduled_at"], name="bare_due")


def _unique() -> models.UniqueConstraint:
    held = Q(unique_lock__isnull=False) if connection.features.supports_partial_indexes else None
    return models.UniqueConstraint(fields=["unique_lock"], name="bare_unique", condition=held)


def new_id() -> str:
    """Return a time-ordered id."""
    return f"{int(timezone.now().timestamp() * 1_000_000):016x}{uuid.uuid4().hex[:16]}"


class BareJob(models.Model):
    """A row as wide as a django_jobs job."""

    id = Text(primary_key=True, max_length=64, default=new_id)
    job_type = Text(max_length=200)
    queue = Text(max_length=64, default="default")
    payload = models.JSONField(default=dict)
    rank = models.SmallIntegerField(default=0)
    status = Text(max_length=10, default="pending")
    scheduled_at = models.DateTimeField(null=True)
    available_at = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    max_retries = models.PositiveIntegerField(default=3)
    retry_count = models.PositiveIntegerField(default=0)
    timeout_seconds = models.FloatField(null=True)
    result = models.JSONField(null=True)
    error = models.TextField(null=True)
    metadata = models.JSONField(default=dict)
    unique_key = Text(max_length=200, null=True)
    unique_lock = Text(max_length=200, null=True)
    pending_dependencies = models.PositiveIntegerField(default=0)
    fence = models.BigIntegerField(default=0)
    worker_id = Text(max_length=128, null=True)
    crash_count = models.PositiveSmallIntegerField(default=0)
    cancel_requested_at = models.DateTimeField(null=True)
    progress = models.FloatField(null=True)

    class Meta:
        app_label = "djangosite"
        db_table = "bare_job"
        constraints = (_unique(),)
        indexes = (_ready_index(), _held_index(), _due_index())

    def __str__(self) -> str:
        return self.id
