"""Text that is safe to store and to show, made of anything: values, errors, tracebacks."""

from __future__ import annotations

import hashlib
import re
import reprlib
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from django_jobs.exceptions import Steering

SHOWN_LENGTH = 80
ERROR_LENGTH = 2_000
TRACEBACK_LENGTH = 20_000
_CHAIN = 5  # exceptions of a chain, and members of a group, that a traceback shows
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LINE_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = SHOWN_LENGTH


def shown(value: object) -> str:
    """Return a value on one line of at most 80 characters; survive a `__repr__` that raises."""
    try:
        # reprlib looks at the first few items only, so that a huge value costs nothing.
        text = _short.repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = scrub(_LINE_BREAKS.sub(" ", text), limit=10 * SHOWN_LENGTH)
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 3]}..."


def scrub(text: object, limit: int = ERROR_LENGTH) -> str:
    """Return text that every database stores: no NUL, no lone surrogate, at most `limit` characters; never raises.

    Text that is cut ends with the number of characters that it had.
    """
    plain = _as_text(text)
    if len(plain) <= limit:
        return _storable(plain)
    note = f"… [{len(plain):,} characters in all]"
    keep = limit - len(note)
    return _storable(plain[:keep]) + note if keep > 0 else _storable(plain[:limit])


def describe_exception(exc: BaseException, limit: int = ERROR_LENGTH) -> str:
    """Return `ValueError: message`, storable; survive a `__str__` that raises, or that returns a gigabyte or no string."""
    name = type(exc).__name__
    try:
        message = str(exc)
    except Exception:
        message = "<its message cannot be read>"
    # Cut before anything copies the message, which may be a gigabyte.
    text = f"{name}: {scrub(message, limit - len(name) - 2)}" if message else name
    return scrub(text, limit)


def exception_path(exc: BaseException, limit: int = 255) -> str:
    """Return the dotted path of an exception's class, storable; of its cause when it was raised to steer the job."""
    if isinstance(exc, Steering) and exc.__cause__ is not None:
        exc = exc.__cause__
    return scrub(f"{type(exc).__module__}.{type(exc).__qualname__}")[:limit]


def format_traceback(exc: BaseException) -> str:
    """Return the traceback without local variables, at most 20,000 characters: its start and its end are kept."""
    try:
        text = "\n".join(_traceback_parts(exc, set()))
    except Exception:
        text = f"<the traceback cannot be read>\n{describe_exception(exc)}"
    text = _storable(text)
    if len(text) <= TRACEBACK_LENGTH:
        return text
    note = f"\n… [{len(text):,} characters in all] …\n"
    start = TRACEBACK_LENGTH // 3
    return text[:start] + note + text[len(text) - (TRACEBACK_LENGTH - start - len(note)) :]


def fingerprint(job_type: str, exc: BaseException) -> str:
    """Return 32 hex digits that are equal for failures of one kind: job type, exception class and place.

    The place is the innermost function of the site's own code, by name and not by line, so that it survives edits.
    """
    kind = type(exc)
    place = _own_place(exc.__traceback__)
    text = "\n".join((job_type, f"{kind.__module__}.{kind.__qualname__}", place))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _as_text(text: object) -> str:
    if type(text) is str:
        return text
    try:
        return str.__str__(text) if isinstance(text, str) else str.__str__(str(text))
    except Exception:
        return f"<{type(text).__name__}>"


def _storable(text: str) -> str:
    return UNSTORABLE.sub(lambda match: "" if match[0] == "\x00" else "\ufffd", text)


def _traceback_parts(exc: BaseException, seen: set[int]) -> list[str]:
    """Return the paragraphs of a traceback, causes first.

    The standard library's formatting copies each message several times, and a message can be a gigabyte.
    """
    seen.add(id(exc))
    parts: list[str] = []
    cause = exc.__cause__
    context = None if exc.__suppress_context__ else exc.__context__
    earlier = cause or context
    if earlier is not None and id(earlier) not in seen and len(seen) < _CHAIN:
        parts += _traceback_parts(earlier, seen)
        direct = "The above exception was the direct cause of the following exception:"
        parts.append(direct if cause else "During handling of the above exception, another exception occurred:")
    lines = ["Traceback (most recent call last):\n", *traceback.format_tb(exc.__traceback__)]
    lines.append(describe_exception(exc))
    lines += [f"\n{scrub(note)}" for note in list(getattr(exc, "__notes__", None) or ())[:_CHAIN]]
    parts.append("".join(lines))
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions[:_CHAIN]:
            if id(member) not in seen and len(seen) < _CHAIN:
                parts.append("Of the group:")
                parts += _traceback_parts(member, seen)
    return parts


_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OURS = str(Path(__file__).parent)


def _own_place(tb: TracebackType | None) -> str:
    """Return `module:function` of the innermost frame of the site's own code, else of the innermost frame."""
    own = last = ""
    while tb is not None:
        code = tb.tb_frame.f_code
        # The module's name, not the file's: a release may be unpacked elsewhere.
        last = f"{tb.tb_frame.f_globals.get('__name__', '')}:{code.co_qualname}"
        file = code.co_filename
        if not file.startswith((*_LIBRARIES, _OURS, "<frozen ")) and "site-packages" not in file:
            own = last
        tb = tb.tb_next
    return own or last
