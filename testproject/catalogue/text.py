"""Measure one file as text: size, lines, hash and encoding. Knows nothing of jobs or databases."""

import codecs
import hashlib
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# The longer marks first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class NotText(ValueError):
    """The file decodes, and yet nobody wrote it to be read."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a text file measures; size in bytes."""

    size: int
    lines: int
    sha256: str
    encoding: str


def measure_text(path: Path) -> Measurement:
    """Measure a file; raise UnicodeDecodeError, SyntaxError (a bad coding cookie) or NotText when it is no text."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        encoding = _encoding(path, file)
        file.seek(0)
        with io.TextIOWrapper(file, encoding=encoding, errors="strict") as text:
            lines = 0
            for line in text:
                if "\0" in line:
                    raise NotText(f"line {lines + 1} holds a NUL character")
                lines += 1
    return Measurement(size=size, lines=lines, sha256=sha256, encoding=encoding)


def _encoding(path: Path, file: BinaryIO) -> str:
    """Return what the file says of its encoding, by its byte order mark or a Python coding cookie; else UTF-8."""
    file.seek(0)
    if path.suffix in (".py", ".pyi", ".pyw"):
        return tokenize.detect_encoding(file.readline)[0]
    start = file.read(4)
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
