"""Text that is safe to store and to show, made of anything: values, errors, tracebacks."""

from __future__ import annotations

import hashlib
import re
import reprlib
import sysconfig
import traceback
from pathlib import Path
from types import CodeType, TracebackType

from django_jobs.exceptions import Steering

SHOWN_LENGTH = 80
ERROR_LENGTH = 2_000
TRACEBACK_LENGTH = 20_000
_CHAIN = 5  # exceptions of a chain, and members of a group, that a traceback shows
MOST_FRAMES, MOST_PLACES = 100, 200  # of a traceback that is kept; of tracebacks that are kept
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
        return storable(plain)
    note = f"… [{len(plain):,} characters in all]"
    keep = limit - len(note)
    return storable(plain[:keep]) + note if keep > 0 else storable(plain[:limit])


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


def exception_path(exc: BaseException) -> str:
    """Return the dotted path of an exception's class, storable; of its cause when it was raised to steer the job."""
    if isinstance(exc, Steering) and exc.__cause__ is not None:
        exc = exc.__cause__
    return scrub(f"{type(exc).__module__}.{type(exc).__qualname__}")[:255]


def format_traceback(exc: BaseException) -> str:
    """Return the traceback without local variables, at most 20,000 characters: its start and its end are kept."""
    try:
        text = "\n".join(_traceback_parts(exc, set()))
    except Exception:
        text = f"<the traceback cannot be read>\n{describe_exception(exc)}"
    text = storable(text)
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


def storable(text: str) -> str:
    """Return text without what no database stores: NUL is left out, a lone surrogate replaced."""
    if text.isascii() and "\x00" not in text:
        return text  # at a tenth of the time
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
    lines = ["Traceback (most recent call last):\n", _frames(exc.__traceback__), describe_exception(exc)]
    lines += [f"\n{scrub(note)}" for note in list(getattr(exc, "__notes__", None) or ())[:_CHAIN]]
    parts.append("".join(lines))
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions[:_CHAIN]:
            if id(member) not in seen and len(seen) < _CHAIN:
                parts.append("Of the group:")
                parts += _traceback_parts(member, seen)
    return parts


# The text of a traceback's frames by where they stand in their code, with that code, so that its id stays its own. Thousands of
# jobs that fail fail in a few places; to ask the disk for each file and look for its lines anew costs some 400 µs a failure.
_known_frames: dict[tuple[int, ...], tuple[list[CodeType], str]] = {}


def _frames(tb: TracebackType | None) -> str:
    """Return the frames of a traceback as the standard library writes them, from the site's own first one on."""
    first = tb
    places: list[int] = []
    codes: list[CodeType] = []
    while tb is not None:
        code = tb.tb_frame.f_code
        places += (id(code), tb.tb_lasti, tb.tb_lineno)
        codes.append(code)
        tb = tb.tb_next
    if len(codes) > MOST_FRAMES:
        return "".join(traceback.format_tb(_of_the_site(first)))
    key = tuple(places)
    known = _known_frames.get(key)
    if known is None:
        known = codes, "".join(traceback.format_tb(_of_the_site(first)))
        if len(_known_frames) >= MOST_PLACES:
            _known_frames.clear()
        _known_frames[key] = known
    return known[1]


_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OURS = str(Path(__file__).parent)


def _of_the_site(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame of the site's own code on: those before are how we call it. All without one."""
    own = tb
    while own is not None and not _is_own(own.tb_frame.f_code):
        own = own.tb_next
    return own or tb


def _is_own(code: CodeType) -> bool:
    file = code.co_filename
    return not file.startswith((*_LIBRARIES, _OURS, "<frozen ")) and "site-packages" not in file


def _own_place(tb: TracebackType | None) -> str:
    """Return `module:function` of the innermost frame of the site's own code, else of the innermost frame."""
    own = last = ""
    while tb is not None:
        code = tb.tb_frame.f_code
        # The module's name, not the file's: a release may be unpacked elsewhere.
        last = f"{tb.tb_frame.f_globals.get('__name__', '')}:{code.co_qualname}"
        if _is_own(code):
            own = last
        tb = tb.tb_next
    return own or last
