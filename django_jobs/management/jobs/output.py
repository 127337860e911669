"""What the verbs print: text and tables for people, JSON Lines for machines, a progress bar; and how they refuse."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO, TextIO

from django.core.management.base import CommandError
from django.db.models import QuerySet

from django_jobs.exceptions import InvalidJob, JobsError
from django_jobs.lifecycle.moved import Moved

PAGE = 500

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
BAR = 30


class UsageError(CommandError):
    """The command line itself is wrong: exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=2)


class Output:
    """Where a verb writes. `as_json`: JSON Lines instead of text."""

    def __init__(self, stdout: Any, stderr: Any, *, as_json: bool, yes: bool) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._yes = yes
        self.as_json = as_json
        self._database: str | None = None

    def line(self, text: str = "") -> None:
        """Print a line; control characters, which may come from anywhere, do not reach the terminal."""
        self._stdout.write(clean(text))

    def begin(self, database: str, *, is_alone: bool) -> None:
        """Print what follows as of this one of several databases: with its name in each JSON, or below it if others follow."""
        self._database = database
        if not (self.as_json or is_alone):
            self.line(f"database {database}:")

    def json(self, value: Any) -> None:
        """Print a value as one line of JSON; times in ISO 8601, UTC."""
        if self._database is not None and isinstance(value, dict):
            value = {**value, "database": self._database}
        self._stdout.write(json.dumps(value, ensure_ascii=False, default=iso))

    def result(self, text: str, /, **values: Any) -> None:
        """Print what a verb did: the values as JSON, or the text."""
        if self.as_json:
            self.json(values)
        else:
            self.line(text)

    def state(self, name: str, state: str) -> None:
        """Print the state that a job, queue or schedule has now."""
        self.result(f"{name} {state}", id=name, state=state)

    def note(self, text: str) -> None:
        """Print a line on stderr that is no error."""
        self._stderr.write(clean(text), lambda plain: plain)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print rows in columns, with their heads; `nothing` when there are none."""
        cells = [[clean(as_text(value)).replace("\n", " ") for value in row] for row in rows]
        if not cells:
            self.line("nothing")
            return
        widths = [max(len(row[column]) for row in [heads, *cells]) for column in range(len(heads))]
        for row in [list(heads), *cells]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def rows(
        self,
        rows: Iterable[Any],
        values: Callable[[Any], dict[str, Any]],
        heads: Sequence[str],
        cells: Callable[[Any], Sequence[Any]],
    ) -> None:
        """Print the values of each row as JSON, or a table of its cells."""
        if self.as_json:
            for row in rows:
                self.json(values(row))
        else:
            self.table(heads, map(cells, rows))

    def confirm(self, question: str) -> None:
        """Ask on a terminal whether to go on; elsewhere `--yes` must have been given. Raises CommandError otherwise."""
        if self._yes:
            return
        if not sys.stdin.isatty():
            raise CommandError(f"{question} Give --yes to do it.")
        if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was changed")

    def moved(self, names: Sequence[str], moved: Moved, state: Callable[[str], str]) -> None:
        """Print the state of each row that a move changed, in the order of `names`; then refuse those that it left."""
        done = set(moved.done)
        for name in dict.fromkeys(names):
            if name in done:
                self.state(name, state(name))
        self.refuse(moved.left[name] for name in dict.fromkeys(names) if name in moved.left)

    def refuse(self, errors: Iterable[JobsError]) -> None:
        """Raise CommandError with the problems of all errors, one a line; do nothing without an error."""
        if problems := [problem for error in errors for problem in problems_of(error)]:
            raise CommandError("\n".join(problems))

    def binary(self) -> BinaryIO:
        """Return stdout for bytes."""
        stream = getattr(self._stdout, "_out", self._stdout)
        buffer = getattr(stream, "buffer", None)
        return buffer if buffer is not None else _Encoded(stream)  # type: ignore[return-value]

    def bar(self, what: str) -> Callable[[int, int], None]:
        """Return a function that draws a progress bar on a terminal, and does nothing elsewhere."""
        stream: TextIO = sys.stderr
        if not stream.isatty():
            return lambda done, total: None

        def draw(done: int, total: int) -> None:
            filled = BAR * done // total if total else BAR
            end = "\n" if done >= total else ""
            percent = 100 * done // total if total else 100
            stream.write(f"\r{what} [{'#' * filled}{'.' * (BAR - filled)}] {percent:3d} %{end}")
            stream.flush()

        return draw


class _Encoded:
    """Lets bytes be written to a stream of text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        return self._stream.write(data.decode())

    def flush(self) -> None:
        self._stream.flush()


def problems_of(error: JobsError) -> Sequence[str]:
    """Return what an error of ours says, a line for each problem."""
    return error.problems if isinstance(error, InvalidJob) else (str(error),)


def clean(text: str) -> str:
    """Return text whose control characters are shown as `?`; line ends stay."""
    return _CONTROL.sub("?", text)


def as_text(value: Any) -> str:
    """Return a value for a cell."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(value)


def iso(value: Any) -> str:
    """Return a time as ISO 8601 in UTC, with a Z; other values as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)


@contextmanager
def streamed(rows: QuerySet[Any]) -> Iterator[Iterator[Any]]:
    """Give the rows as they are read, and end the reading with the block: the reader of our output may leave early."""
    read = rows.iterator(chunk_size=PAGE)
    try:
        yield read
    finally:
        read.close()  # type: ignore[attr-defined]  # a generator
