"""The verbs that move jobs between databases: export, import."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandError

from django_jobs.transfer.exporting import export_file
from django_jobs.transfer.importing import import_file

from .jobs import add_filters, filtered
from .output import Output
from .verbs import Verbs


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = verbs.add(
        "export", export, "write jobs with all that belongs to them to a file of JSON Lines",
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
    """Export to a file that is complete or not there at all."""
    jobs = filtered(options)
    name = options["file"]
    if name == "-":
        binary = out.binary()
        export_file(jobs, binary)
        binary.flush()
        return
    with _new_file(Path(name)) as file:
        number = export_file(jobs, file, out.bar("export"))
    out.result(f"{number} jobs exported to {name}", file=name, exported=number)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` when the block ends well."""
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
    known = f", {done.known} were there already" if done.known else ""
    out.result(f"{done.written} jobs imported{known}", file=name, imported=done.written, known=done.known)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Give the file, which is read twice; stdin is copied to a temporary one first."""
    try:
        if name == "-":
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
                copy.seek(0)
                yield copy
        else:
            with Path(name).open("rb") as file:
                yield file
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}") from None
