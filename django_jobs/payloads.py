"""The one strict JSON validator: what it lets through, every database gives back as it was."""

from __future__ import annotations

import json
import json.encoder
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from django_jobs.conf import get_settings
from django_jobs.exceptions import InvalidJob
from django_jobs.text import describe_exception, fingerprint, format_traceback, scrub, shown

__all__ = [
    "LARGEST_INTEGER",
    "MAX_DEPTH",
    "JobsJSONDecoder",
    "decode",
    "describe_exception",
    "encode_payload",
    "encode_result",
    "fingerprint",
    "format_traceback",
    "scrub",
]

MAX_DEPTH = 64
LARGEST_INTEGER = 2**63 - 1
_MAX_PROBLEMS = 20
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]{0,39}", re.ASCII)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_HINTS = {
    "datetime": "use isoformat()",
    "date": "use isoformat()",
    "time": "use isoformat()",
    "timedelta": "use total_seconds()",
    "UUID": "use str()",
    "Decimal": "use str()",
    "PosixPath": "use str()",
    "set": "use a sorted list",
    "frozenset": "use a sorted list",
    "bytes": "use base64 text",
    "generator": "use a list",
    "coroutine": "it was not awaited",
}


def encode_payload(value: object, *, where: str = "payload") -> str:
    """Return a JSON object as compact text; raise InvalidJob with every problem, each under its path from `where`."""
    if not isinstance(value, dict):
        raise InvalidJob(f"{where}: give a JSON object (a dict), not {_kind(value)} ({shown(value)})")
    return _encode(value, where, get_settings().PAYLOAD_MAX_BYTES, "PAYLOAD_MAX_BYTES")


def encode_result(value: object, *, where: str = "result") -> str:
    """Return any JSON value as compact text; raise InvalidJob with every problem, each under its path from `where`."""
    return _encode(value, where, get_settings().RESULT_MAX_BYTES, "RESULT_MAX_BYTES")


def decode(text: str) -> Any:
    """Return the value of stored JSON text; raise json.JSONDecodeError for other text.

    PostgreSQL writes a large float out in digits: what is beyond 2**63-1 was a float and becomes one again.
    """
    decoder = _with_long_integers if _LONG_INTEGER.search(text) else _ordinary
    try:
        value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration:
        end = -1
    # All but text with blanks around it, and what is no JSON: half the time of `decode`, which looks for both first.
    return value if end == len(text) else decoder.decode(text)


class JobsJSONDecoder(json.JSONDecoder):
    """Decode like `decode()`; for Django's `JSONField(decoder=...)`, which makes one for every value it reads."""

    def __init__(self) -> None:
        # Not the base class's: it would build a scanner for each value, which costs more than the decoding.
        self.scan_once = _with_long_integers.scan_once  # type: ignore[attr-defined]

    def decode(self, s: str, *args: Any) -> Any:
        """Return the value of JSON text; raise json.JSONDecodeError for other text."""
        return decode(s)


def _encode(value: object, where: str, max_bytes: int, setting: str) -> str:
    if _is_plain(value, max_bytes):
        text = _to_text(value)
        # This finds every NUL; text that only looks like one takes the slow way, and passes there.
        if "\\u0000" not in text and _fits(text, max_bytes):
            return text
    copy = _Copy(where, max_bytes)
    value = copy.of(value)
    text = "" if copy.problems else _to_text(value)
    if copy.too_large or not _fits(text, max_bytes):
        copy.problems.append(
            f"{where}: larger than {max_bytes:,} bytes encoded ({setting}); keep large data elsewhere and pass its key"
        )
    if copy.problems:
        raise InvalidJob(*copy.problems)
    return text


def _fits(text: str, max_bytes: int) -> bool:
    """Say whether text has at most so many bytes in UTF-8; False for text that has a lone surrogate."""
    if text.isascii():
        return len(text) <= max_bytes
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:
        return False


def _is_plain(value: object, budget: int) -> bool:
    """Say whether a value can be encoded as it is: exact types, safe numbers, string keys, not too deep or large.

    The fast way for nearly every value. It goes level by level, so that neither depth nor a cycle can hurt; `budget` is
    spent on each node and character, so that a small value which repeats itself a billion times is found out early.
    """
    level: Iterable[Any] = (value,)
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                budget -= len(item)
            elif kind is int:
                if not -LARGEST_INTEGER <= item <= LARGEST_INTEGER:
                    return False
            elif kind is dict:
                for key in item:
                    if type(key) is not str:
                        return False
                    budget -= len(key) + 1
                below += item.values()
            elif kind is list or kind is tuple:
                below += item
            elif kind is float:
                if not (0.0 < item < 1e16 or -1e16 < item < 0.0) and repr(item) != "0.0":
                    return False
            elif item is not None and kind is not bool:
                return False
            if len(below) > budget:
                return False
        budget -= len(below)
        if not below:
            return True
        level = below
    return False


class _Enough(Exception):
    """Ends the walk: the value is too large, or has more problems than anybody reads."""


class _Copy:
    """The slow way: copies a value into plain types and notes every problem with its path."""

    def __init__(self, where: str, budget: int) -> None:
        self.problems: list[str] = []
        self.too_large = False
        self._where = where
        self._budget = budget
        self._path: list[object] = []  # keys and indexes, from the top to where we are
        self._parents: dict[int, int] = {}  # the ids of the containers around us, with their depth

    def of(self, value: object) -> Any:
        try:
            return self._any(value)
        except _Enough:
            return None

    def _any(self, value: object) -> Any:
        self._spend(1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, int):
            return self._integer(int.__int__(value))
        if isinstance(value, float):
            return self._float(float.__float__(value))
        if isinstance(value, dict | list | tuple):
            return self._container(value)
        kind = _kind(value)
        hint = _HINTS.get(kind, "use its primary key" if hasattr(type(value), "_meta") else "")
        return self._refuse(f"{kind} is not JSON{'; ' if hint else ''}{hint} ({shown(value)})")

    def _string(self, value: str) -> str:
        value = str.__str__(value)
        self._spend(len(value))
        found = _UNSTORABLE.search(value)
        if found:
            what = "a NUL character" if found[0] == "\x00" else f"a lone surrogate ({shown(found[0])})"
            self._refuse(f"{what} cannot be stored ({shown(value)})")
        return value

    def _integer(self, value: int) -> int:
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            what = shown(value) if value.bit_length() < 300 else f"{value.bit_length()} bits"
            self._refuse(f"integers go from -(2**63-1) to 2**63-1; use a string ({what})")
        return value

    def _float(self, value: float) -> float | int:
        if not math.isfinite(value):
            self._refuse(f"{value} is not JSON; use None or a string")
            return value
        # As PostgreSQL's jsonb would give them back: it knows no negative zero, and writes 1e16 as an integer.
        return int(value) if 1e16 <= abs(value) < 2.0**63 else value + 0.0

    def _container(self, value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Any:
        if id(value) in self._parents:
            return self._refuse(f"a cycle: it contains itself, being {self._place(self._parents[id(value)])}")
        if len(self._parents) >= MAX_DEPTH:
            return self._refuse(f"nested deeper than {MAX_DEPTH} levels")
        depth = len(self._path)
        self._parents[id(value)] = depth
        self._path.append(None)
        try:
            return self._object(value) if isinstance(value, dict) else self._array(value)
        except _Enough:
            raise
        except Exception as error:  # a container of the site's own, whose methods may do anything
            del self._path[depth:]
            return self._refuse(f"{_kind(value)} cannot be read: {describe_exception(error, 200)}")
        finally:
            del self._path[depth:]
            del self._parents[id(value)]

    def _array(self, value: Iterable[Any]) -> list[Any]:
        copy = []
        for index, item in enumerate(value):
            self._path[-1] = index
            copy.append(self._any(item))
        return copy

    def _object(self, value: dict[Any, Any]) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, item in value.items():
            self._path[-1] = key
            if not isinstance(key, str):
                self._refuse(f"keys are strings, not {_kind(key)}")
                continue
            plain = self._string(key)
            if plain in copy:
                self._refuse("the key stands there twice")
            copy[plain] = self._any(item)
        return copy

    def _place(self, depth: int) -> str:
        """Return the path of the container or value at a depth, such as `payload.user.tags[3]`."""
        steps = []
        for step in self._path[:depth]:
            plain = isinstance(step, str) and _PLAIN_KEY.fullmatch(step)
            steps.append(f".{step}" if plain else f"[{shown(step)}]")
        return self._where + "".join(steps)

    def _refuse(self, problem: str) -> Any:
        if len(self.problems) == _MAX_PROBLEMS:
            self.problems.append("and more")
            raise _Enough
        self.problems.append(f"{self._place(len(self._path))}: {problem}")

    def _spend(self, characters: int) -> None:
        self._budget -= characters
        if self._budget < 0:
            self.too_large = True
            raise _Enough


def _kind(value: object) -> str:
    return type(value).__name__


def _make_encoder() -> Callable[[Any], str]:
    """Return the encoding function, made once: `JSONEncoder.encode` makes one for each value."""
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
    make = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:  # an interpreter without the C accelerator
        return encoder.encode
    encode = make(None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


def _to_integer_or_float(token: str) -> int | float:
    value = int(token) if len(token) <= 20 else float(token)
    return value if -LARGEST_INTEGER <= value <= LARGEST_INTEGER else float(value)


_to_text = _make_encoder()
_LONG_INTEGER = re.compile(r"\d{19}", re.ASCII)
_ordinary = json.JSONDecoder()
_with_long_integers = json.JSONDecoder(parse_int=_to_integer_or_float)
