"""Strict JSON: payloads, metadata and results that every database gives back as they were, and JSON text from outside."""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from django.core.files import File
from django.http import HttpRequest
from django.utils.datastructures import MultiValueDict
from django.utils.functional import Promise

from django_jobs import encryption
from django_jobs.conf import valid_settings
from django_jobs.encryption import KEY, MARK
from django_jobs.exceptions import EncryptionError, InvalidJob
from django_jobs.text import UNSTORABLE, describe_exception, shown

MAX_DEPTH = 64
_MARK_LENGTH = len(MARK)
LARGEST_INTEGER = 2**63 - 1
_MAX_PROBLEMS = 20
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]{0,39}", re.ASCII)
_HINTS = {
    "datetime": "use isoformat()",
    "date": "use isoformat()",
    "time": "use isoformat()",
    "timedelta": "use total_seconds()",
    "UUID": "use str()",
    "Decimal": "use str()",
    "set": "use a sorted list",
    "frozenset": "use a sorted list",
    "bytes": "use base64 text",
    "bytearray": "use base64 text",
    "memoryview": "use base64 text",
    "coroutine": "it was not awaited",
}
# By nature, for the kinds that have many names. The first that fits; a queryset is iterable too.
_HINTS_BY_NATURE: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, Promise), "it is translated when it is shown: use str(), in the active language"),
    (lambda value: hasattr(type(value), "values_list"), "use primary keys: list(….values_list('pk', flat=True))"),
    (lambda value: hasattr(type(value), "_meta"), "use its primary key"),
    (lambda value: is_dataclass(value) and not isinstance(value, type), "use dataclasses.asdict()"),
    (lambda value: isinstance(value, Enum), "use its .value"),
    (lambda value: isinstance(value, PurePath), "use str()"),
    (lambda value: isinstance(value, HttpRequest), "use the values that the handler needs of it"),
    (lambda value: isinstance(value, File), "keep the file in a storage and use its name"),
    (lambda value: hasattr(type(value), "model_dump"), "use .model_dump(mode='json')"),
    (lambda value: isinstance(value, Mapping), "use dict()"),
    (lambda value: isinstance(value, Iterator | KeysView | ValuesView | ItemsView | range), "use a list"),
)


def encode_payload(value: object, *, where: str = "payload") -> str:
    """Return a JSON object as compact text; raise InvalidJob with every problem, each under its path from `where`."""
    if not isinstance(value, dict):
        raise InvalidJob(f"{where}: give a JSON object (a dict), not {_kind(value)}{_hint(value)} ({_shown(value)})")
    if KEY in value:
        return _reserved(value, where)
    return _encode(value, where, valid_settings().PAYLOAD_MAX_BYTES, "PAYLOAD_MAX_BYTES")


def encode_result(value: object, *, where: str = "result") -> str:
    """Return any JSON value as compact text; raise InvalidJob with every problem, each under its path from `where`."""
    if value is None:
        return "null"  # what most handlers return: 0.1 µs instead of 1.6, of about 25 for a job that is drained
    if isinstance(value, dict) and KEY in value:
        return compact(value) if isinstance(value, Unreadable) else _reserved(value, where)
    return _encode(value, where, valid_settings().RESULT_MAX_BYTES, "RESULT_MAX_BYTES")


def decode(text: str) -> Any:
    """Return the value of stored JSON text, decrypted if it is encrypted.

    Raises json.JSONDecodeError for other text, EncryptionError for what none of the site's keys reads.
    """
    # Not by `_decoder.decode`, which looks for white space with two regular expressions: 1.3 µs instead of 0.8 for one key,
    # and a job of submit_many, which takes about 17 µs in all, decodes twice.
    text = text.strip(" \t\n\r")
    value, end = _decoder.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return _opened(value) if text[:_MARK_LENGTH] == MARK else value


def _opened(value: Any) -> Any:
    token = encryption.token_of(value)
    return _decoder.decode(encryption.decrypted(token)) if token is not None and encryption.reads_tokens() else value


class Unreadable(dict[str, Any]):
    """A value in a row that none of the site's keys reads, as it is stored; whoever asks it for a key gets an EncryptionError."""

    def __missing__(self, key: str) -> Any:
        raise EncryptionError(encryption.UNREADABLE)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the token; raise EncryptionError for another key, of which nobody knows whether it is there."""
        return super().get(key, default) if key == KEY else self[key]


def readable(value: Any) -> Any:
    """Return a value of a row; raise EncryptionError for one that none of the site's keys reads."""
    if isinstance(value, Unreadable):
        raise EncryptionError(encryption.UNREADABLE)
    return value


def opened(value: Any) -> Any:
    """Return a value that may be encrypted, as a part of another value; raise EncryptionError for one that nothing reads."""
    return value if encryption.token_of(value) is None else _opened(value)


def sealed(value: Any) -> Any:
    """Return a checked value encrypted, for a column; what is encrypted already stays as it is."""
    return value if encryption.token_of(value) is not None else _decoder.decode(encryption.encrypted(compact(value)))


def _reserved(value: Mapping[str, Any], where: str) -> str:
    """Return the text of an object that is encrypted, where such are taken; raise InvalidJob, also when it cannot be read."""
    token = encryption.token_of(value)
    if isinstance(value, Unreadable):
        raise InvalidJob(f"{where}: {encryption.UNREADABLE}")
    if token is None or not encryption.takes_tokens():
        raise InvalidJob(f"{where}: the key {KEY!r} is that of what is encrypted; choose another one")
    if encryption.looks_into_tokens():
        try:
            encryption.decrypted(token)
        except EncryptionError as error:
            raise InvalidJob(f"{where}: {error}") from None
    return compact({KEY: token})


class JobsJSONDecoder(json.JSONDecoder):
    """Decode like `decode()`, for Django's `JSONField(decoder=...)`.

    What no key reads is `Unreadable`, so that a row can be shown.
    """

    def __init__(self) -> None:
        # Django makes a decoder for every value that it reads. The base class's __init__ would build a scanner each time:
        # 2.4 µs beside 1.4 µs for the decoding of a small payload, three times for every job that the ORM reads.
        pass

    def decode(self, s: str, *args: Any) -> Any:
        """Return the value of JSON text; for other text, as only a hand can write it, a text that says so.

        One row that cannot be read would be the end of each list that it is in, and of each chore that reads it.
        """
        try:
            return decode(s)
        except EncryptionError:
            return Unreadable(_decoder.decode(s))
        except (ValueError, RecursionError) as error:
            return f"(unreadable: {describe_exception(error, 200)})"


def _to_integer_or_float(digits: str) -> int | float:
    """Return an integer of JSON text, or the float it was: PostgreSQL writes a large float out in digits."""
    value = int(digits) if len(digits) <= 20 else float(digits)
    return value if -LARGEST_INTEGER <= value <= LARGEST_INTEGER else float(value)


def read_json(text: str | bytes, where: str) -> Any:
    """Return the value of JSON text from outside; raise InvalidJob, prefixed with `where`, for other text or a repeated key.

    What JSON allows and a payload does not (huge numbers, say) is left to `encode_payload`, which names the path.
    """
    try:
        # As json.loads() does, without a new decoder for each text, and without its look for other encodings than UTF-8.
        if isinstance(text, bytes):
            text = text.removeprefix(BOM_UTF8).decode(errors="surrogatepass")
        return _outside_decoder.decode(text)
    except _RepeatedKey as error:
        raise InvalidJob(f"{where}: the key {shown(error.args[0])} stands there twice") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise InvalidJob(f"{where}: this is not JSON: {error.msg} ({place}): {shown(error.doc)}") from None
    except UnicodeDecodeError:
        raise InvalidJob(f"{where}: this is not UTF-8 text") from None
    except RecursionError:
        raise InvalidJob(f"{where}: nested too deep to be read") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise InvalidJob(f"{where}: {shown(str(error))}") from None


class _RepeatedKey(Exception):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return read


def canonical(value: Any) -> str:
    """Return checked JSON as compact text with sorted keys: equal values give equal text."""
    return _canonical_encoder.encode(value)


def compact(value: Any) -> str:
    """Return checked JSON as compact text, its keys in their order."""
    return _encoder.encode(value)


# Made once: `json.dumps` and `json.loads` would make one for each value.
_encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_canonical_encoder = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
_decoder = json.JSONDecoder(parse_int=_to_integer_or_float)
_outside_decoder = json.JSONDecoder(object_pairs_hook=_object)


def _encode(value: object, where: str, max_bytes: int, setting: str) -> str:
    if _is_plain(value, max_bytes):
        text = _encoder.encode(value)
        # This finds every NUL; text that only looks like a NUL is copied below, and accepted there.
        if "\\u0000" not in text and _fits(text, max_bytes):
            return text
    copy = _Copy(where, max_bytes)
    value = copy.of(value)
    text = "" if copy.problems else _encoder.encode(value)
    if copy.too_large or not _fits(text, max_bytes):
        copy.problems.append(
            f"{where}: larger than {max_bytes:,} bytes encoded ({setting}); keep large data elsewhere and pass its key"
        )
    if copy.problems:
        raise InvalidJob(*copy.problems)
    return text


def _fits(text: str, max_bytes: int) -> bool:
    """Return whether text has at most so many bytes in UTF-8; False for text that has a lone surrogate."""
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:
        return False


def _is_plain(value: object, budget: int) -> bool:
    """Return whether a value can be encoded without a copy: exact types, safe numbers, string keys, not too deep or large.

    It walks level by level, so that neither depth nor a cycle can hurt; `budget` is spent on each node and character, so
    that a small value which repeats itself a billion times is found early.
    """
    # A second walk beside `_Copy`, which would do alone: encoding takes 1.6 times as long with `_Copy` for one integer, and
    # 2.5 to 3 times for seven keys (9 → 23 µs, of a submit of about 100 µs) or 1 KB (46 → 141 µs). Python 3.11, medians.
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


class _StopCopying(Exception):
    """The value is too large, or has more problems than anybody reads."""


class _Copy:
    """Copies a value into plain types and notes every problem with its path, for the values that are not plain."""

    def __init__(self, where: str, budget: int) -> None:
        self.problems: list[str] = []
        self.too_large = False
        self._where = where
        self._budget = budget
        self._path: list[object] = []  # the keys and indexes that lead to the current value
        self._parents: dict[int, int] = {}  # the ids of the containers around the current value, with their depth

    def of(self, value: object) -> Any:
        try:
            return self._any(value)
        except _StopCopying:
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
        return self._refuse(f"{_kind(value)} is not JSON{_hint(value)} ({_shown(value)})")

    def _string(self, value: str) -> str:
        value = str.__str__(value)
        self._spend(len(value))
        found = UNSTORABLE.search(value)
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
        except _StopCopying:
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
        if isinstance(value, MultiValueDict):
            for key, values in value.lists():
                if len(values) > 1:  # its items have the last one only
                    self._path[-1] = key
                    self._refuse(
                        f"{_kind(value)} has {len(values)} values here; use dict(….lists()), or .dict() for the last"
                    )
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
            raise _StopCopying
        self.problems.append(f"{self._place(len(self._path))}: {problem}")

    def _spend(self, characters: int) -> None:
        self._budget -= characters
        if self._budget < 0:
            self.too_large = True
            raise _StopCopying


def _kind(value: object) -> str:
    return "lazy string" if isinstance(value, Promise) else type(value).__name__


def _hint(value: object) -> str:
    """Return `; ` and what to use in the place of a value that is not JSON, or an empty string."""
    hint = _HINTS.get(_kind(value)) or next((hint for fits, hint in _HINTS_BY_NATURE if fits(value)), "")
    return f"; {hint}" if hint else ""


def _shown(value: object) -> str:
    # A queryset's repr() is a query, and the transaction may be one that refuses it.
    return f"of {value.model.__name__}" if hasattr(type(value), "values_list") else shown(value)  # type: ignore[attr-defined]
