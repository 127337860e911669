"""The transactions that go on while a process looks for jobs: what they have written appears late, below where it has got."""

from __future__ import annotations

from typing import Any

from .dialects.words import Snapshot

UNKNOWN = None  # a transaction that went on at the first look may have begun at any time


class Unfinished:
    """When the transactions that had not ended at the last look may have begun to write."""

    def __init__(self) -> None:
        self._since: dict[int, Any] = {}
        self._before: Any = UNKNOWN

    def note(self, snapshot: Snapshot) -> list[Any]:
        """Note what a look could not see; return for each transaction that has ended since the last one a moment before its
        first row, or UNKNOWN.

        Looks of several threads may be noted in another order than they were made: the older one brings back what has ended, with
        a time that is too early.
        """
        since, before = self._since, self._before
        ended = [moment for number, moment in since.items() if number not in snapshot.running]
        self._since = {number: since.get(number, before) for number in snapshot.running}
        self._before = snapshot.before
        return ended
