"""The one strict JSON: what it accepts, every database keeps equal. And text that any database can store."""

from __future__ import annotations

import hashlib
import json
import math
import traceback as traceback_module
from pathlib import PurePath
from typing import Any

from .conf import get_settings
from .exceptions import InvalidJob
from .names import shown

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MAX_PROBLEMS = 10
MAX_ERROR = 2_000
MAX_TRACEBACK = 20_000
# PostgreSQL's jsonb writes floats from here on as integers.
FIRST_WIDE_FLOAT = 1e16

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))


def encode_payload(value: Any) -> str:
    """Return a JSON object as compact text; raise InvalidJob with every problem and its path."""
    if not isinstance(value, dict):
        raise InvalidJob(f"payload={shown(value)}: give a dict, not {type(value).__name__}")
    return _encode(value, "payload", get_settings().PAYLOAD_MAX_BYTES)


def encode_result(value: Any) -> str:
    """Return any JSON value as compact text; raise InvalidJob with every problem and its path."""
    return _encode(value, "result", get_settings().RESULT_MAX_BYTES)


def _encode(value: Any, where: str, max_bytes: int) -> str:
    walk = _Walk(max_bytes)
    clean = walk.clean(value, where, 0)
    if walk.problems:
        raise InvalidJob(*walk.problems)
    text = _encoder.encode(clean)
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        raise InvalidJob(f"{where}: {size} bytes as JSON; at most {max_bytes} are allowed. Store a reference instead")
    return text


class _Walk:
    """One pass over a value that copies it into plain types and collects what is wrong."""

    def __init__(self, max_bytes: int) -> None:
        self.problems: list[str] = []
        self._above: set[int] = set()
        self._left = max_bytes
        self._max_bytes = max_bytes

    def clean(self, value: Any, path: str, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._text(value, path)
        if value is None or kind is bool:
            return value
        if kind is int:
            return self._integer(value, path)
        if kind is float:
            return self._float(value, path)
        if isinstance(value, dict | list | tuple):
            return self._container(value, path, depth)
        if isinstance(value, str):
            return self._text(str.__str__(value), path)
        if isinstance(value, int):
            return self._integer(int(value), path)
        if isinstance(value, float):
            return self._float(float(value), path)
        self._refuse(path, f"{kind.__name__} is not JSON: {shown(value)}{_ADVICE.get(kind.__name__, '')}")
        return None

    def _refuse(self, path: str, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{path}: {problem}" if len(path) <= 200 else f"{path[:200]}…: {problem}")

    def _text(self, value: str, path: str) -> str:
        self._left -= len(value)
        if self._left < 0:
            if self._left != float("-inf"):
                self._refuse(path, f"more than {self._max_bytes} bytes as JSON. Store a reference instead")
                self._left = float("-inf")  # type: ignore[assignment]  said once
            return ""
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            self._refuse(path, f"a lone surrogate cannot be stored: {shown(value)}")
            return ""
        if "\0" in value:
            self._refuse(path, f"the character NUL cannot be stored: {shown(value)}")
        return value

    def _integer(self, value: int, path: str) -> int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            self._refuse(path, "the integer is outside ±(2**63 - 1); send it as a string")
        return value

    def _float(self, value: float, path: str) -> float | int:
        if not math.isfinite(value):
            self._refuse(path, f"{value} is not JSON; use None")
            return 0
        if abs(value) >= FIRST_WIDE_FLOAT and abs(value) <= MAX_INTEGER and value < 2.0**63:
            return int(value)
        return value or 0.0  # minus zero is not kept by every database

    def _container(self, value: Any, path: str, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            self._refuse(path, f"nested deeper than {MAX_DEPTH} levels")
            return None
        if id(value) in self._above:
            self._refuse(path, "the value contains itself")
            return None
        if self._left == float("-inf"):
            return None
        self._above.add(id(value))
        self._left -= 2
        try:
            if isinstance(value, dict):
                return self._object(value, path, depth)
            self._left -= len(value)
            return [self.clean(one, f"{path}[{index}]", depth + 1) for index, one in enumerate(value)]
        finally:
            self._above.discard(id(value))

    def _object(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        for key, one in value.items():
            if not isinstance(key, str):
                self._refuse(path, f"the key {shown(key)} is {type(key).__name__}; keys are strings")
                continue
            plain = self._text(str.__str__(key), f"{path} key")
            if plain in clean:
                self._refuse(path, f"the key {shown(plain)} appears twice")
            self._left -= 4
            clean[plain] = self.clean(one, f"{path}.{plain}", depth + 1)
        return clean


_ADVICE = {
    "datetime": "; use value.isoformat()",
    "date": "; use value.isoformat()",
    "time": "; use value.isoformat()",
    "timedelta": "; use value.total_seconds()",
    "UUID": "; use str(value)",
    "Decimal": "; use str(value)",
    "set": "; use sorted(value)",
    "frozenset": "; use sorted(value)",
    "bytes": "; use base64 or store a reference",
}


def _integer_of(token: str) -> int | float:
    """Read an integer; one that our encoder would never write was a float before the database rewrote it."""
    if len(token) < 19:
        return int(token)
    value = int(token) if len(token) < 400 else float(token)
    return value if -MAX_INTEGER <= value <= MAX_INTEGER else float(value)


_decoder = json.JSONDecoder(parse_int=_integer_of)


def decode(text: str | bytes) -> Any:
    """Return the value of JSON text that a database gave back."""
    return {} if text == "{}" else _decoder.decode(text if isinstance(text, str) else text.decode())


class JobsJSONDecoder(json.JSONDecoder):
    """Decode model fields by the same rule as `decode`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "parse_int": _integer_of})


def scrub(text: Any, limit: int = MAX_ERROR) -> str:
    """Return text that every database can store: no NUL, no lone surrogates, at most `limit` characters. Never raises."""
    try:
        whole = text if type(text) is str else str(text)
    except BaseException as error:
        whole = f"<{type(text).__name__} whose text cannot be made: {type(error).__name__}>"
    cut = whole[:limit]
    cut = cut.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    left = len(whole) - limit
    return f"{cut}… ({left} more characters)" if left > 0 else cut


def describe_exception(error: BaseException) -> str:
    """Return `ValueError: message`, whatever the message is made of."""
    message = scrub(error, MAX_ERROR)
    name = scrub(type(error).__name__, 200)
    return f"{name}: {message}" if message else name


def format_traceback(error: BaseException) -> str:
    """Return the traceback without local variables, its middle cut out beyond 20,000 characters. Never raises."""
    try:
        frames = "".join(traceback_module.format_tb(error.__traceback__, limit=-100))
    except Exception:
        frames = "(the traceback could not be formatted)\n"
    text = scrub(frames, 10**7)
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        text = f"{text[:half]}\n… {len(text) - MAX_TRACEBACK} characters cut …\n{text[-half:]}"
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    because = f"caused by {describe_exception(cause)}\n" if cause is not None else ""
    return f"Traceback (most recent call last):\n{text}{describe_exception(error)}\n{because}"


def fingerprint(job_type: str, error: BaseException) -> str:
    """Return 32 hexadecimal characters that failures of one cause share: type, exception and innermost own function."""
    place = ""
    entry = error.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        if "site-packages" not in code.co_filename or not place:
            place = f"{PurePath(code.co_filename).name}:{code.co_qualname}"
        entry = entry.tb_next
    text = f"{job_type}|{type(error).__module__}.{type(error).__qualname__}|{place}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
