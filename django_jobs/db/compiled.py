"""A query that is asked so often that Django composes it once, and not each time: that is nine tenths of its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from .connections import jobs_connection

_MARK = "\0"  # no text that a database takes


class _Compiled(NamedTuple):
    statement: str
    parameters: tuple[Any, ...]
    converters: list[tuple[int, Any, list[Callable[..., Any]]]]  # (place, expression, its converters)


class CompiledQuery:
    """A query with one text as its parameter, compiled once for each database.

    Args:
        build: returns the query for a text. What else it depends on must not change while the process lives.
    """

    def __init__(self, build: Callable[[str], QuerySet[Any, Any]]) -> None:
        self._build = build
        self._compiled: dict[tuple[str, str], _Compiled] = {}

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of the query for a text."""
        connection = jobs_connection()
        key = (connection.alias, connection.vendor)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(connection)
        with connection.cursor() as cursor:
            cursor.execute(compiled.statement, [text if value == _MARK else value for value in compiled.parameters])
            rows = list(map(list, cursor.fetchall()))
        for row in rows:  # as `SQLCompiler.apply_converters` does
            for place, expression, converters in compiled.converters:
                for convert in converters:
                    row[place] = convert(row[place], expression, connection)
        return list(map(tuple, rows))

    def _compile(self, connection: BaseDatabaseWrapper) -> _Compiled:
        compiler: Any = self._build(_MARK).query.get_compiler(connection=connection)
        statement, parameters = compiler.as_sql()
        found = compiler.get_converters([column for column, *_ in compiler.select])
        converters = [(place, expression, steps) for place, (steps, expression) in found.items()]
        return _Compiled(statement, tuple(parameters), converters)
