"""An index that is partial where the database can do that, and leads with the condition's columns where it cannot."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import Q


class HotIndex(models.Index):
    """Index the few rows in flight among millions that are done.

    PostgreSQL and SQLite get `fields` with the condition `where`; MariaDB and MySQL, which have no partial indexes, get
    `full_fields`. Django's own `condition` is not used because it is dropped there with a warning.
    """

    def __init__(self, *, fields: list[str], full_fields: list[str], where: Q, name: str) -> None:
        super().__init__(fields=fields, name=name)
        self.full_fields = full_fields
        self.where = where

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "full_fields": self.full_fields, "where": self.where}

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            index = models.Index(fields=self.fields, condition=self.where, name=self.name)
        else:
            index = models.Index(fields=self.full_fields, name=self.name)
        return index.create_sql(model, schema_editor, using, **kwargs)
