"""Measure one file as text: size, lines, hash and encoding. Knows nothing of jobs or databases."""

import codecs
import hashlib
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    encoding = encoding_of(path)
    return Measurement(**hash_of(path), lines=lines_of(path, encoding), encoding=encoding)


def hash_of(path: Path) -> dict[str, Any]:
    """Return the hash and the size of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": file.tell()}


def lines_of(path: Path, encoding: str) -> int:
    """Count the lines of a text; raise UnicodeDecodeError or NotText when it is none."""
    lines = 0
    with path.open(encoding=encoding, errors="strict") as text:
        for line in text:
            if "\0" in line:
                raise NotText(f"line {lines + 1} holds a NUL character")
            lines += 1
    return lines


def encoding_of(path: Path) -> str:
    """Return what the file says of its encoding, by its byte order mark or a Python coding cookie; else UTF-8."""
    with path.open("rb") as file:
        if path.suffix in (".py", ".pyi", ".pyw"):
            return tokenize.detect_encoding(file.readline)[0]
        start = file.read(4)
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
