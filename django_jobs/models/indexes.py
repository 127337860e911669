"""Indexes that are partial where the database can do that, so that a row enters only those that will be asked for it."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.ddl_references import Statement
from django.db.models import Q

NOTHING = Statement("DO 0")  # Django's editor has to be given a statement


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


class PartialIndex(HotIndex):
    """Index the rows for which `where` holds, on PostgreSQL and SQLite alone; elsewhere there is none, and another serves."""

    def __init__(self, *, fields: list[str], where: Q, name: str) -> None:
        super().__init__(fields=fields, full_fields=[], where=where, name=name)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {name: value for name, value in kwargs.items() if name != "full_fields"}

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using, **kwargs)
        return NOTHING

    def remove_sql(self, model: Any, schema_editor: Any, **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().remove_sql(model, schema_editor, **kwargs)
        return NOTHING


class HotUnique(models.UniqueConstraint):
    """Keep a nullable field unique, by an index that rows with NULL do not enter where the database has partial indexes.

    Django's own `condition` is not used because MariaDB and MySQL would then have no constraint at all.
    """

    def __init__(self, *, field: str, name: str) -> None:
        super().__init__(fields=[field], name=name)
        self.field = field

    def deconstruct(self) -> Any:
        path, args, _ = super().deconstruct()
        return path, args, {"field": self.field, "name": self.name}

    def _for(self, schema_editor: Any) -> models.UniqueConstraint:
        is_partial = schema_editor.connection.features.supports_partial_indexes
        condition = Q(**{f"{self.field}__isnull": False}) if is_partial else None
        return models.UniqueConstraint(fields=self.fields, name=self.name, condition=condition)

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).constraint_sql(model, schema_editor)

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).create_sql(model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Any:
        return self._for(schema_editor).remove_sql(model, schema_editor)
