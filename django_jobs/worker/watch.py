"""How an idle thread sees between two looks that there may be work, for less than they cost; with notifications none watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from django_jobs.db.dialects import dialect
from django_jobs.db.dialects.base import Dialect
from django_jobs.due import queues_with_work

from .stagger import ProcessCount, seconds_of_a_round

LONG_IDLE_SECONDS = 60.0
LEAST_PAUSE = 0.005
SHARE = 10  # a question is followed by a pause that is so many times as long as usual ones take
MOST_SECONDS = 0.5  # that a question counts as


class Watch:
    """Says whether there may be work, for one thread; what a kind asks is its own.

    Looks in vain that it led to make it pause, twice as long each time and up to the poll interval, so that a busy site, or one
    whose jobs wait for more than a worker, has its workers look no more often than polling would.
    """

    # How often to ask (seconds) until idle for so long (seconds): the longer there has been no work, the more seldom.
    paces: ClassVar[tuple[tuple[float, float], ...]]

    def __init__(self) -> None:
        self._pause = 0.0
        self._deaf_until = 0.0
        self._has_told = False

    @property
    def is_possible(self) -> bool:
        """Whether it can tell."""
        return True

    def begin(self, dialect: Dialect) -> None:
        """Note that the thread has a connection for all that it does here."""

    def end(self) -> None:
        """Note that it has none, or that an error has cost it."""

    def pace(self, idle_seconds: float) -> float:
        """Return how often to ask, in seconds, after so long without work."""
        return next(pace for limit, pace in self.paces if idle_seconds < limit)

    def has_changed(self) -> bool:
        """Ask, unless it pauses."""
        if self._deaf_until and time.monotonic() < self._deaf_until:
            return False
        self._has_told = self._ask()
        return self._has_told

    def _ask(self) -> bool:
        raise NotImplementedError

    def pause_after_looks_in_vain(self, longest: float) -> None:
        """Pause if it had led to the look in vain that was just made; call it after each look in vain."""
        self._pause = min(max(2 * self._pause, LEAST_PAUSE), longest) if self._has_told else 0.0
        self._deaf_until = time.monotonic() + self._pause if self._pause else 0.0
        self._has_told = False

    def found_work(self) -> None:
        """Pause no more."""
        self._pause = self._deaf_until = 0.0


class CommitWatch(Watch):
    """Sees that another session has committed since it was asked last, where that costs microseconds (SQLite).

    It says so of any commit, the site's own among them. A thread that wakes up and asks takes 50 to 200 µs, of which a look that
    claims is worth two or three.
    """

    paces = ((5.0, 0.005), (LONG_IDLE_SECONDS, 0.04), (float("inf"), 0.1))

    def __init__(self) -> None:
        super().__init__()
        self._dialect: Dialect | None = None
        self._seen: int | None = None

    @property
    def is_possible(self) -> bool:
        """Whether it can tell: once it was asked, and found that the database does."""
        return self._seen is not None

    def begin(self, dialect: Dialect) -> None:
        """Ask on this connection from now on."""
        self._dialect, self._seen = dialect, None

    def end(self) -> None:
        """Ask no more."""
        self._dialect = self._seen = None

    def _ask(self) -> bool:
        """Ask. A commit from before a look may be told after it, but none after a look is missed."""
        if self._dialect is None:
            return False
        seen, self._seen = self._seen, self._dialect.version_of_data()
        return self._seen is not None and self._seen != seen


class ReadyWatch(Watch):
    """Sees that a queue has a ready job, with one short question over a connection of the process (servers that notify nobody).

    Its paces are in poll intervals. All processes together ask a hundred times a second, as long as each of them asks once in a
    poll interval: any of them may find the job.

    Args:
        lent: lends the connection.
        names: the queues of the thread; None means every queue.
        poll_interval: the seconds that workers rest at the most where nobody watches.
        processes: how many of them ask.
        is_notified: whether notifications arrive, which makes it superfluous.
        tell: called with the queues that have a ready job.
    """

    paces = ((5.0, 0.1), (LONG_IDLE_SECONDS, 1.0), (float("inf"), 5.0))

    def __init__(
        self,
        lent: Callable[[], AbstractContextManager[None]],
        names: Sequence[str] | None,
        poll_interval: float,
        processes: ProcessCount,
        is_notified: Callable[[], bool],
        tell: Callable[[list[str]], None],
    ) -> None:
        super().__init__()
        self._lent = lent
        self._names = names
        self._poll_interval = poll_interval
        self._is_notified = is_notified
        self._tell = tell
        self._processes = processes
        self._usual_seconds = 0.0  # that a question takes

    @property
    def is_possible(self) -> bool:
        """Whether it can tell: no notifications arrive."""
        return not self._is_notified()

    def pace(self, idle_seconds: float) -> float:
        """Return how often to ask: the less often, the longer that takes and the more processes do."""
        usual = super().pace(idle_seconds) * self._poll_interval
        return max(
            usual, min(seconds_of_a_round(self._processes.number), self._poll_interval), SHARE * self._usual_seconds
        )

    def end(self) -> None:
        """Ask no more until a look was answered: who rests after an error must not meet it again in its rest."""
        self._deaf_until = float("inf")

    def pause_after_looks_in_vain(self, longest: float) -> None:
        """Pause as after any look in vain, and for a moment also after one that was made without it, which said the same."""
        super().pause_after_looks_in_vain(longest)
        self._usual_seconds *= 7 / 8  # the rest may be shorter than its pause, and nobody would ask ever again
        self._deaf_until = max(self._deaf_until, time.monotonic() + LEAST_PAUSE)

    def _ask(self) -> bool:
        if self._is_notified():
            return False
        with self._lent():
            self._processes.refresh(dialect().count_processes)
            began = time.monotonic()
            found = queues_with_work(among=self._names)
        self._usual_seconds += (min(MOST_SECONDS, time.monotonic() - began) - self._usual_seconds) / 8
        if found:
            self._tell(found)
        return bool(found)
