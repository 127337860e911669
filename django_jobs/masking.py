"""Payloads and results as the console shows them: what stands under a key of REDACT is masked, in every depth."""

from __future__ import annotations

import json
from typing import Any

from django.utils.translation import gettext

from django_jobs.conf import get_settings
from django_jobs.payloads import Unreadable

MASK = "••••••"
LONGEST = 100_000


def masked(value: Any) -> Any:
    """Return a JSON value in which whatever stands under a key with a REDACT word in its name is replaced by a mask.

    Of a value that no key of the site reads, that is said.
    """
    if isinstance(value, Unreadable):
        return gettext("encrypted; no key of this site reads it")
    words = tuple(_plain(word) for word in get_settings().REDACT)
    try:
        return _masked(value, words)
    except RecursionError:  # written by hand into the row
        return "(unreadable: nested too deep)"


def _masked(value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: MASK if _is_secret(key, words) else _masked(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, words) for item in value]
    return value


def _is_secret(key: Any, words: tuple[str, ...]) -> bool:
    name = _plain(str(key))
    return any(word in name for word in words)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def unmasked(edited: Any, original: Any) -> Any:
    """Return an edited value with each mask that was left in place turned back into the value that it hid."""
    if isinstance(edited, dict) and isinstance(original, dict):
        return {
            key: original[key] if item == MASK and key in original else unmasked(item, original.get(key))
            for key, item in edited.items()
        }
    if isinstance(edited, list) and isinstance(original, list) and len(edited) == len(original):
        return [unmasked(item, before) for item, before in zip(edited, original, strict=True)]
    return edited


def pretty(value: Any) -> str:
    """Return a JSON value, masked, indented, and cut when it is very long."""
    text = json.dumps(masked(value), indent=2, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n…"
