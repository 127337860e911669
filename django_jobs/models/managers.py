"""The manager of our models: their rows are read where they are written, on the jobs' database."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from django.db import models

from django_jobs.db.connections import jobs_alias

M = TypeVar("M", bound=models.Model, covariant=True)


# The models set `base_manager_name = "objects"`: else `refresh_from_db()` and forward relations would take Django's plain
# manager, which reads where the routers' `db_for_read` says.
class JobsManager(models.Manager[M], Generic[M]):
    """Read from the jobs' database unless `using()` names another, and from a row's own database along its relations.

    A replica may lag behind the write that a caller has just made, so none is read unless it is asked for by name.
    """

    def get_queryset(self) -> models.QuerySet[M]:
        """Return a QuerySet that is bound to a database."""
        queryset = super().get_queryset()
        if self._db:
            return queryset
        # A row stays on its own database, whatever is chosen now: its relations elsewhere would be other jobs'.
        row: Any = self._hints.get("instance") or getattr(self, "instance", None)  # type: ignore[attr-defined]
        return queryset.using(row._state.db if row is not None and row._state.db else jobs_alias())
