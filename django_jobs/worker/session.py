"""Notice the statements of a handler that outlive it in its database session; they must not reach the next job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What the driver tells without a question (an open transaction on PostgreSQL and SQLite) is not looked for here.
LASTING = {"SET", "RESET", "USE", "LOCK", "LISTEN", "PREPARE", "PRAGMA", "ATTACH", "DISCARD", "XA"}
LASTING_ON_MYSQL = {*LASTING, "BEGIN", "START"}


class SessionWatch:
    """An `execute_wrapper` that remembers whether one of the statements changed the session."""

    def __init__(self) -> None:
        self.has_changed = False

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Look at the first word and pass the statement on."""
        words = str(sql[:40] if isinstance(sql, str) else sql).split(None, 1)
        if words and words[0].upper().rstrip(";") in (
            LASTING_ON_MYSQL if context["connection"].vendor == "mysql" else LASTING
        ):
            self.has_changed = True
        return execute(sql, params, many, context)
