"""The rules for names: job types, queues, ids, unique keys and schedules; each check returns a problem, or None."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from django_jobs.text import UNSTORABLE, shown

MAX_JOB_TYPE = 200
MAX_QUEUE = 64
MAX_ID = 64
MAX_UNIQUE_KEY = 200
MAX_STEP = 200
MAX_EVENT = 200  # an event's name, and its key
MAX_LIMIT_KEY = 200
MAX_SCHEDULE = 200  # as long as a job type: a schedule may be named after its job
# "<" and ">" for the `<locals>` in the default name of a handler that is defined in a function.
_JOB_TYPE = re.compile(r"[\w.:/<>-]+", re.ASCII)
_QUEUE = re.compile(r"[\w.:-]+", re.ASCII)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def job_type_problem(value: object) -> str | None:
    """Return what is wrong with a job type: letters, digits and `_ - . : /`, at most 200."""
    return _name_problem(value, "job_type", MAX_JOB_TYPE, _JOB_TYPE, "_ - . : /")


def queue_problem(value: object) -> str | None:
    """Return what is wrong with a queue's name: letters, digits and `_ - . :`, at most 64."""
    return _name_problem(value, "queue", MAX_QUEUE, _QUEUE, "_ - . :")


def id_problem(value: object) -> str | None:
    """Return what is wrong with a job's id: at most 64 characters, no surrounding blanks, all printable."""
    return _text_problem(value, "job_id", MAX_ID)


def unique_key_problem(value: object) -> str | None:
    """Return what is wrong with a unique key: at most 200 characters, no surrounding blanks, all printable."""
    return _text_problem(value, "unique_key", MAX_UNIQUE_KEY)


def limit_key_problem(value: object) -> str | None:
    """Return what is wrong with the value of a limit's key: 1 to 200 characters, all of them storable."""
    return _key_problem(value, "limit_key")


def fair_key_problem(value: object) -> str | None:
    """Return what is wrong with a fair key: as for the value of a limit's key."""
    return _key_problem(value, "fair_key")


def limit_name_problem(value: object) -> str | None:
    """Return what is wrong with a limit's name: as for a job type."""
    return _name_problem(value, "name", MAX_JOB_TYPE, _JOB_TYPE, "_ - . : /")


def schedule_name_problem(value: object) -> str | None:
    """Return what is wrong with a schedule's name: at most 200 characters, no surrounding blanks, all printable."""
    return _text_problem(value, "schedule", MAX_SCHEDULE)


def step_name_problem(value: object) -> str | None:
    """Return what is wrong with a step's name: 1 to 200 characters, storable, without the `#` of `name#2`."""
    if problem := _length_problem(value, "step", MAX_STEP):
        return problem
    return f"step {shown(value)}: a name has no '#', which numbers the uses of a name" if "#" in str(value) else None


def event_name_problem(value: object) -> str | None:
    """Return what is wrong with an event's name: 1 to 200 characters, storable."""
    return _length_problem(value, "event", MAX_EVENT)


def event_key_problem(value: object) -> str | None:
    """Return what is wrong with an event's key, if it has one: 1 to 200 characters, storable."""
    return None if value is None else _length_problem(value, "key", MAX_EVENT)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word most like the given one, or an empty string."""
    if not isinstance(word, str):
        return ""
    close = difflib.get_close_matches(word[:MAX_JOB_TYPE], list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _name_problem(value: object, subject: str, longest: int, pattern: re.Pattern[str], marks: str) -> str | None:
    if isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value):
        return None
    return _text_problem(value, subject, longest) or f"{subject} {shown(value)}: use letters, digits and {marks}"


def _length_problem(value: object, subject: str, longest: int) -> str | None:
    if not isinstance(value, str):
        return f"{subject} {shown(value)}: give a string, not {type(value).__name__}"
    if not 1 <= len(value) <= longest:
        return f"{subject} {shown(value)}: it has {len(value)} characters; give 1 to {longest}"
    if UNSTORABLE.search(value):
        return f"{subject} {shown(value)}: it has a NUL character or a lone surrogate, which cannot be stored"
    return None


def _key_problem(value: object, name: str) -> str | None:
    if not isinstance(value, str):
        return f"{name} {shown(value)}: give a string, not {type(value).__name__}"
    if not value:
        return f"{name} '': it must not be empty"
    if len(value) > MAX_LIMIT_KEY:
        return f"{name} {shown(value)}: it has {len(value)} characters; at most {MAX_LIMIT_KEY} are allowed"
    if _UNSTORABLE.search(value):
        return f"{name} {shown(value)}: it has characters that no database stores"
    return None


def _text_problem(value: object, subject: str, longest: int) -> str | None:
    if not isinstance(value, str):
        return f"{subject} {shown(value)}: give a string, not {type(value).__name__}"
    if not value or value != value.strip():
        return f"{subject} {shown(value)}: it must not be empty, nor start or end with a blank"
    if len(value) > longest:
        return f"{subject} {shown(value)}: it has {len(value)} characters; at most {longest} are allowed"
    if _UNPRINTABLE.search(value):
        return f"{subject} {shown(value)}: it has characters that cannot be printed"
    return None
