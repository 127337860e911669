"""The verbs that move jobs, queues and schedules between databases: export, import."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandError

from django_jobs.transfer.exporting import export_file
from django_jobs.transfer.importing import import_file
from django_jobs.transfer.site_lines import all_lines, lines_of_queue, no_lines

from .jobs import add_filters, filtered
from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "export", export, "write jobs with all that belongs to them, queues and schedules to a file of JSON Lines",
        "export jobs.jsonl", "export - --queue mail | gzip > mail.jsonl.gz",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="- for stdout")
    add_filters(parser)
    parser = verbs.add(
        "import", import_jobs, "read a file that `export` wrote; all of it, or nothing when something is wrong",
        "import jobs.jsonl", "import jobs.jsonl --database other --include-running",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="- for stdin")
    parser.add_argument("--include-running", action="store_true", help="take jobs that were running, as pending ones")


def export(options: dict[str, Any], out: Output) -> None:
    """Export to a file that is complete or not there at all.

    With `--queue`, the pause of that queue and the schedules that name it; with `--status`, jobs alone.
    """
    jobs = filtered(options)
    queue = options["queue"]
    site_lines = no_lines if options["status"] else partial(lines_of_queue, queue) if queue else all_lines
    name = options["file"]
    if name == "-":
        binary = out.binary()
        export_file(jobs, binary, site_lines=site_lines)
        binary.flush()
        return
    with _new_file(Path(name)) as file:
        done = export_file(jobs, file, out.bar("export"), site_lines)
    others = {key: number for key, number in (("queues", done.queues), ("schedules", done.schedules)) if number}
    out.result(f"{_listed({'jobs': done.jobs, **others})} exported to {name}", file=name, exported=done.jobs, **others)


def _listed(numbers: dict[str, int]) -> str:
    """Return numbers with what they count: `800 jobs, 1 queue and 3 schedules`."""
    words = [f"{number} {what[:-1] if number == 1 and what != 'jobs' else what}" for what, number in numbers.items()]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when the block ends well; a device or a pipe is written to as it is."""
    if path.exists() and not path.is_file():  # root would put a file in the place of /dev/null
        with _opened_for_writing(path) as file:
            yield file
        return
    try:
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(part).replace(path)
    except OSError as error:
        Path(part).unlink(missing_ok=True)
        raise CommandError(f"{path}: {error.strerror}") from None
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@contextmanager
def _opened_for_writing(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None


def import_jobs(options: dict[str, Any], out: Output) -> None:
    """Import all or nothing."""
    name = options["file"]
    with _opened(name) as file:
        done = import_file(
            file,
            "stdin" if name == "-" else Path(name).name,
            include_running=options["include_running"],
            progress=out.bar("import"),
        )
    if done.unknown_types:
        out.note(f"note: no handler in this process for {', '.join(done.unknown_types)}")
    there = {"queues": done.queues_known, "schedules": done.schedules_known}
    others = {
        key: number for key, number in (("queues", done.queues), ("schedules", done.schedules)) if number or there[key]
    }
    text = f"{_listed({'jobs': done.written, **others})} imported"
    if known := {key: number for key, number in {"jobs": done.known, **there}.items() if number}:
        text += f", {_listed(known) if others else done.known} were there already"
    values = others | {f"{key}_known": there[key] for key in others}
    out.result(text, file=name, imported=done.written, known=done.known, **values)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Give the file to be read, or stdin."""
    try:
        if name == "-":
            yield sys.stdin.buffer
        else:
            with Path(name).open("rb") as file:
                yield file
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}") from None
