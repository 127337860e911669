"""Column types that mean the same on every database: exact text, strict JSON, and the database's own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage
from django.db import (
    models,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now

from django_jobs.handlers import encrypts_type
from django_jobs.payloads import JobsJSONDecoder, sealed


def exact_collation(connection: BaseDatabaseWrapper) -> str | None:
    """Return the collation that compares text byte by byte, blanks at the end included."""
    if connection.vendor == "postgresql":
        return "C"
    if connection.vendor == "mysql":
        return "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"  # type: ignore[attr-defined]
    return None  # SQLite compares bytes by default


def _text_only(column: str, connection: BaseDatabaseWrapper) -> str | None:
    """Return a condition that keeps what is no text out of a column of text; the other databases do that by its type."""
    return f"typeof({connection.ops.quote_name(column)}) IN ('text', 'null')" if connection.vendor == "sqlite" else None


class ExactCharField(models.CharField):  # type: ignore[type-arg]
    """Hold a name or key that is compared byte by byte: `Mail` and `mail` are two names on every database."""

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Leave a warning out: of 255 characters in an index, where InnoDB has taken 768 since MariaDB 10.3 and MySQL 5.7."""
        return [message for message in super().check(**kwargs) if message.id != "mysql.W003"]

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        """Spell `varchar` out on PostgreSQL, where Django gives each indexed `varchar` a second index for LIKE.

        With the collation C the first index serves LIKE as well, and each job's row would enter the second one three times.
        """
        given = super().db_type(connection)
        return given.replace("varchar", "character varying") if given and connection.vendor == "postgresql" else given

    def db_check(self, connection: BaseDatabaseWrapper) -> str | None:
        return _text_only(self.column or "", connection)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        parameters["collation"] = exact_collation(connection)
        return parameters


class ExactTextField(models.TextField):  # type: ignore[type-arg]
    """Hold any storable text, four-byte characters included, whatever the character set of the database."""

    def db_check(self, connection: BaseDatabaseWrapper) -> str | None:
        return _text_only(self.column or "", connection)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = exact_collation(connection)
        return parameters


_SECOND, _DIGITS = "????-??-?? ??:??:??", "[0-9][0-9][0-9]"
_FORMS = (f"{_SECOND}.{_DIGITS}", f"{_SECOND}.{_DIGITS}{_DIGITS}", _SECOND)  # of a time on SQLite


class MomentField(models.DateTimeField):  # type: ignore[type-arg]
    """Hold a time that Python can read, from 1970 to 9998, as our rules allow it.

    Databases take more: PostgreSQL `infinity` and years before 1 or beyond 9999, SQLite any text. One such row, written by hand,
    cannot be read, nor can any list that it is in: a queue would stand still, and nobody be rescued.

    `twins` names columns of which most statements set one to the same time: on SQLite, where the condition takes two thirds of a
    microsecond for each row, theirs is then enough for both.
    """

    def __init__(self, *args: Any, twins: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.twins = twins

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {**kwargs, "twins": self.twins} if self.twins else kwargs

    def db_check(self, connection: BaseDatabaseWrapper) -> str | None:
        name = connection.ops.quote_name(self.column or "")
        zone = "+00" if connection.vendor == "postgresql" else ""
        check = f"{name} >= '1970-01-01 00:00:00{zone}' AND {name} < '9999-01-01 00:00:00{zone}'"
        if connection.vendor == "sqlite":
            # To the second: SQLite rounds to milliseconds, and so a moment before midnight up to the next day. And with a
            # modifier: without one the 31st of February is a date. Behind that what SQLite and Django write, and no zone.
            check += f" AND date(substr({name}, 1, 19), '+0 days') IS substr({name}, 1, 10)"
            forms = " OR ".join(f"{name} GLOB '{form}'" for form in _FORMS)
            check += f" AND ({forms})"
            check = " OR ".join([*(f"{name} = {connection.ops.quote_name(twin)}" for twin in self.twins), check])
        elif connection.vendor == "mysql":  # where 2024-00-00 is a date, which drivers read as none
            check += f" AND MONTH({name}) > 0 AND DAYOFMONTH({name}) > 0"
        return check


class StrictJSONField(models.JSONField):
    """Hold JSON that was checked by `payloads`; numbers come back equal from every database."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["decoder"] = JobsJSONDecoder
        super().__init__(*args, **kwargs)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql" and connection.mysql_is_mariadb:  # type: ignore[attr-defined]
            # MariaDB's JSON is LONGTEXT with a check that refuses more than 31 levels; ours are checked, and have 64.
            parameters.update(type="longtext", check=None, collation=exact_collation(connection))
        return parameters

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("decoder", None)
        return name, path, args, kwargs


class PayloadField(StrictJSONField):
    """Hold the payload of a row that has a job_type too; saved encrypted where that of the type's jobs is."""

    def pre_save(self, model_instance: Any, add: bool) -> Any:
        value = super().pre_save(model_instance, add)
        return sealed(value) if encrypts_type(model_instance.job_type) else value

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, f"{StrictJSONField.__module__}.{StrictJSONField.__name__}", args, kwargs  # the columns are alike


class DbNow(Now):
    """Read the database's own clock, in UTC.

    Django's `Now()` is local to the server on MariaDB and MySQL, and the start of the transaction on some others; this one is
    the start of the statement everywhere.
    """

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra)


class UtcText(models.Func):
    """Read a time as text in UTC, without its zone: an export makes a number of it in a tenth of the time of a datetime."""

    template = "CAST(%(expressions)s AS CHAR)"
    output_field = models.TextField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="(%(expressions)s AT TIME ZONE 'UTC')::text", **extra)
