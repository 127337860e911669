"""What narrowed a list, as values that an operation can keep and a worker can apply."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def start(request: HttpRequest) -> None:
    """Forget what was noted: the list is narrowed anew."""
    request.console_filters = {}  # type: ignore[attr-defined]


def note(request: HttpRequest, filters: dict[str, Any] | None) -> None:
    """Keep that the list was narrowed by these lookups; None: by something that lookups cannot say."""
    kept = noted(request)
    if filters is None or (kept is not None and any(kept.get(name, value) != value for name, value in filters.items())):
        request.console_filters = None  # type: ignore[attr-defined]
    elif kept is not None:
        kept.update(filters)


def noted(request: HttpRequest) -> dict[str, Any] | None:
    """Return the lookups that narrowed the list; None where they do not say all."""
    filters: dict[str, Any] | None = getattr(request, "console_filters", None)
    return filters
