"""JSON text: read strictly from people and files, written in one canonical form."""

from __future__ import annotations

import json
from typing import Any

from django_jobs.exceptions import InvalidJob
from django_jobs.text import shown


class _Refused(Exception):
    """Says what is wrong with the text; never leaves this file."""


def read_json(text: str | bytes, where: str) -> Any:
    """Return the value of JSON text; raise InvalidJob, prefixed with `where`, for other text and for a key given twice.

    What JSON allows and we do not (huge numbers, say) is found by the validator of payloads, which names the path.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _Refused as refused:
        raise InvalidJob(f"{where}: {refused}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise InvalidJob(f"{where}: this is not JSON: {error.msg} ({place}): {shown(error.doc)}") from None
    except UnicodeDecodeError:
        raise InvalidJob(f"{where}: this is not UTF-8 text") from None
    except RecursionError:
        raise InvalidJob(f"{where}: nested too deep to be read") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise InvalidJob(f"{where}: {shown(str(error))}") from None


def canonical(value: Any) -> str:
    """Return checked JSON as compact text with sorted keys: equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return read
