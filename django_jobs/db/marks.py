"""Marks: how far the claims of a process have got, so that they do not read again what is dead.

A transaction that stays open (a report, a backup, a forgotten shell) keeps each entry that a claim took out of the index of ready
jobs, and the next claim reads all of these before it comes to a job; so does a promotion in the index of scheduled ones. Where
jobs are many, the pages of entries that nothing keeps are read too, until a VACUUM frees them, which comes once a minute by
default. Where that is so, they begin at a mark: where the last one ended, or a moment ago. Where it is not so, each of them
looks from the beginning. What may become ready below the mark is found so:

- A commit that comes late: each look tells which transactions went on. Once one of them has ended, the mark goes back to before
  it can have begun to write.
- A promotion, which comes a little after the job was due: once a second a claim begins two seconds ago.
- A move that makes an older job ready (a release, an import, a promotion that comes late): it tells of it, and all processes of
  the queue look from the beginning.
- Whatever else there may be, and what nobody could tell of: by looks from the beginning, for a twentieth of the time.

Where nothing can be told (`Marks.is_told`), and where limits let old jobs in, looks from the beginning are a second apart at the
most, whatever they cost; elsewhere at the least.

A mark is a guess in memory and decides nothing: a wrong one makes a job wait for the next look from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from django_jobs.numbers import rank_of

from .dialects.base import Dialect
from .dialects.words import RANK_LIMITS, ClaimLook, Place, Stretch
from .unfinished import UNKNOWN, Unfinished

COUNT_SECONDS = 0.25  # how often what is read is counted, where nothing is dead
NEGLIGIBLE = 1000  # entries read in vain that are not worth a mark, and so many more for each job wanted
NEGLIGIBLE_PER_JOB = 8
LONGEST_SECONDS = 0.85  # between two looks that find what nobody tells of
MOST_QUEUES = 1_000  # of which a process keeps in mind that their claims need no mark
SHARE = 20  # looks from the beginning take one part in so many of the time
RAREST_SECONDS = 60.0  # between two of them, whatever they cost
LONG_SECONDS = 0.02  # a second look that takes longer does not follow at once

_FIRST_RANK, _END = RANK_LIMITS
BEGINNING = Place(_FIRST_RANK, "-infinity", "")
_NEVER = "infinity"
RANKS_OF_PRIORITIES = frozenset(map(rank_of, range(1, 11)))
ALL_RANKS = frozenset(range(_FIRST_RANK + 1, _END))


def is_worth_a_mark(read_in_vain: int, wanted: int) -> bool:
    """Say whether a look that wanted so many jobs read too much in vain."""
    return read_in_vain > NEGLIGIBLE + NEGLIGIBLE_PER_JOB * wanted


class Pace:
    """Says whether to begin at the mark, and when the next look from the beginning is."""

    def __init__(self) -> None:
        self.is_behind = False  # whether so much is dead that it is worth to begin at the mark
        self.is_told = False  # whether those who make old jobs ready say so
        self._is_suspect = False
        self._look_at = 0.0
        self._soon = 0.0  # when to look for what has been told of

    @property
    def is_time(self) -> bool:
        """Whether it is time for a look from the beginning that counts what it reads."""
        return time.monotonic() >= self._look_at

    @property
    def seconds_left(self) -> float:
        """The seconds until the next look from the beginning."""
        return max(0.0, self._look_at - time.monotonic())

    def judge(self, read_in_vain: int, wanted: int, seconds: float) -> None:
        """Judge a look from the beginning by what it read in vain, and how long it took.

        Entries that no snapshot keeps are marked as removed by the first look that reads them, so only a second one tells. One
        that takes long comes later: to begin at the mark until then costs nothing.
        """
        is_much = is_worth_a_mark(read_in_vain, wanted)
        self.is_behind = is_much and (self._is_suspect or seconds > LONG_SECONDS)
        self._is_suspect = is_much
        if self.is_behind:
            self.rest_after(seconds)
        else:
            # No sooner for what is told of: without a mark each claim finds it.
            self._look_at = self._soon = 0.0 if is_much else time.monotonic() + COUNT_SECONDS

    def rest_after(self, seconds: float) -> None:
        """Set the time of the next look after one that took so long: no sooner than need be where old jobs are told of."""
        now, share = time.monotonic(), SHARE * seconds
        self._soon = now + min(share, LONGEST_SECONDS)
        self._look_at = now + min(max(share, LONGEST_SECONDS), RAREST_SECONDS) if self.is_told else self._soon

    def expect_old(self) -> None:
        """Look soon, because something old has become ready."""
        self._look_at = min(self._look_at, self._soon)

    def tell(self, is_told: bool) -> None:
        """Note whether those who make old jobs ready say so from now on; until now they may have said nothing."""
        if is_told != self.is_told:
            self.is_told = is_told
            self.expect_old()


class ClaimMark:
    """How far the claims of one queue have got: a place for each rank, because the dead entries of each lie side by side.

    A rank gets its place once it was read to its end, whoever claimed there: the ranks of the ten priorities, and those in which
    this process has claimed. Others can have any of 201, through `django.tasks`: all of these get one when claims from the mark
    still read much in vain. A place more costs a claim a descent of the index.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._has_missed = False  # whether a claim from the mark has found too little since the last look
        self._is_put_off = False  # whether it was time for the last claim to look, and it found jobs at the mark
        self._has_gone_back = False  # since the last claim, because a transaction has ended
        self._places: dict[int, Place] = {}
        self._ranks = RANKS_OF_PRIORITIES
        self._unfinished = Unfinished()
        self._recent_at = 0.0  # when to begin two seconds ago next
        self._recent = BEGINNING.available_at

    def claim(
        self, dialect: Dialect, queue: str, limit: int, process_id: str, *, is_limited: bool = False
    ) -> list[tuple[Any, ...]]:
        """Claim as `Dialect.claim` does, from the mark or from the beginning.

        When it is time to look from the beginning, what lies at the mark is taken first, so that it does not wait for that.

        Args:
            is_limited: whether a limit may let in old jobs, which nobody tells of.
        """
        if is_limited:
            self.pace.expect_old()
        is_time = self.pace.is_time
        if not is_time and not self.pace.is_behind:
            return dialect.claim(queue, limit, process_id)
        if self.pace.is_behind and not (is_time and self._is_put_off):
            if time.monotonic() >= self._recent_at:
                self._go_back(self._recent)
                self._recent_at = time.monotonic() + LONGEST_SECONDS
            at_mark = self._claim_from(self._stretches(), dialect, queue, limit, process_id)
            if is_worth_a_mark(at_mark.read_in_vain, limit):
                self._ranks = ALL_RANKS
            found = at_mark.rows
            self._has_missed |= len(found) < limit
            self._is_put_off = is_time
            if found or not is_time:
                return found
        began = time.monotonic()
        look = self._claim_from([Stretch(BEGINNING, _END)], dialect, queue, limit, process_id, is_whole=True)
        self.pace.judge(look.read_in_vain, limit, time.monotonic() - began)
        self._recent_at = time.monotonic() + LONGEST_SECONDS
        if not self.pace.is_behind:
            self._places, self._ranks = {}, RANKS_OF_PRIORITIES
        self._has_missed = self._is_put_off = False
        return look.rows

    def _claim_from(
        self,
        stretches: list[Stretch],
        dialect: Dialect,
        queue: str,
        limit: int,
        process_id: str,
        *,
        is_whole: bool = False,
    ) -> ClaimLook:
        look = dialect.claim_from(stretches, queue, limit, process_id)
        self._advance(look, is_short=len(look.rows) < limit)
        self._recent = look.recent
        ended = self._unfinished.note(look.snapshot)
        self._has_gone_back = False
        if not is_whole and ended:
            if UNKNOWN in ended:
                self.pace.expect_old()
            self._has_gone_back = self._go_back(min((since for since in ended if since is not UNKNOWN), default=_NEVER))
        return look

    def _stretches(self) -> list[Stretch]:
        """Return the index without what is dead: all before the first place, and from each place to the next rank."""
        places = sorted(self._places.values())
        ends = [*(place.rank for place in places), _END]
        return [Stretch(start, end) for start, end in zip([BEGINNING, *places], ends, strict=True)]

    def _advance(self, look: ClaimLook, *, is_short: bool) -> None:
        """Move the places of ranks that were read: to where they end, which is a moment ago, or to the last job taken."""
        places = dict(self._places)
        for rank in {*places, *look.ranks, *self._ranks}:
            end = Place(rank, look.moment, "")
            if is_short or look.last is None or rank < look.last.rank:
                places[rank] = end
            elif rank == look.last.rank:
                places[rank] = min(look.last, end)
        self._places = places  # anew, because another thread may be at its claim

    def _go_back(self, moment: str) -> bool:
        """Begin at a moment in each rank where the mark lies behind it; return whether it does in any."""
        places = {rank: Place(rank, moment, "") for rank, place in self._places.items() if place > (rank, moment, "")}
        self._places = {**self._places, **places}
        return bool(places)

    def step_back(self, jobs: Iterable[tuple[int, Any, str]]) -> None:
        """Begin before jobs that were claimed and put back, given as (rank, available_at, id)."""
        places = dict(self._places)
        for job in jobs:
            if (rank := job[0]) in places:
                places[rank] = min(places[rank], Place(*job))
        self._places = places

    @property
    def seconds_owed(self) -> float | None:
        """The seconds until the look that a claim in vain has to be followed by; None when none has to."""
        if not self.pace.is_behind or not self._has_missed:
            return None
        if self._has_gone_back:
            return 0.0
        return min(self.pace.seconds_left, max(0.0, self._recent_at - time.monotonic()))


class PromotionMark:
    """How far the promotions of a process have got."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._place: datetime | None = None
        self._unfinished = Unfinished()
        self._promoted_at = 0.0

    def promote(self, dialect: Dialect, limit: int) -> list[str]:
        """Promote as `Dialect.promote` does, from the mark or from the beginning."""
        is_look, began = self.pace.is_time, time.monotonic()
        if not is_look and not self.pace.is_behind:
            return dialect.promote(limit)
        look = dialect.promote_from(None if is_look else self._place, limit)
        ended = self._unfinished.note(look.snapshot)
        self._promoted_at = time.monotonic()
        place = look.moment if look.last is None or len(look.queues) < limit else min(look.last, look.moment)
        if is_look:
            self.pace.judge(look.read_in_vain, limit, time.monotonic() - began)
        elif UNKNOWN in ended:
            self.pace.expect_old()
        self._place = place if is_look else min([place, *(since for since in ended if since is not UNKNOWN)])
        return look.queues

    @property
    def owes_look(self) -> bool:
        """Whether to promote though nothing is known to be due: to see which transactions have ended."""
        return self.pace.is_behind and time.monotonic() >= self._promoted_at + LONGEST_SECONDS

    @property
    def start(self) -> datetime | None:
        """Where to look for what is due next; None: at the beginning."""
        return self._place if self.pace.is_behind and not self.pace.is_time else None

    def rest_after(self, start: datetime | None, seconds: float, rest: float) -> float:
        """Return how long to rest, at most `rest`, when a question that began at `start` and took `seconds` found nothing due."""
        if not self.pace.is_behind:
            return rest
        if start is None:
            self.pace.rest_after(seconds)
        look_in = max(0.0, self._promoted_at + LONGEST_SECONDS - time.monotonic())
        return min(rest, self.pace.seconds_left, look_in)


class Marks:
    """The marks of a worker process."""

    def __init__(self) -> None:
        self.promotion = PromotionMark()
        self._claims: dict[str, ClaimMark] = {}
        self._is_told = False

    def of(self, queue: str) -> ClaimMark:
        """Return the mark of a queue."""
        if queue not in self._claims and len(self._claims) >= MOST_QUEUES:
            # A site may name a queue after each of its customers, and anybody may notify of any name.
            self._claims = {name: mark for name, mark in list(self._claims.items()) if mark.pace.is_behind}
        mark = self._claims.setdefault(queue, ClaimMark())
        mark.pace.is_told = self._is_told
        return mark

    @property
    def is_told(self) -> bool:
        """Whether those who make old jobs ready say so to this process."""
        return self._is_told

    @is_told.setter
    def is_told(self, is_told: bool) -> None:
        self._is_told = is_told
        for pace in (self.promotion.pace, *(mark.pace for mark in list(self._claims.values()))):
            pace.tell(is_told)

    def expect_old(self, queue: str) -> None:
        """Look soon for jobs of a queue that have become ready, or scheduled, though they are old."""
        self.promotion.pace.expect_old()
        if queue in self._claims:
            self._claims[queue].pace.expect_old()

    def queues_behind(self) -> list[str]:
        """Return the queues whose claims begin at a mark."""
        return [queue for queue, mark in list(self._claims.items()) if mark.pace.is_behind]

    def seconds_owed(self, queues: Collection[str] | None) -> float | None:
        """Return the seconds until a look from the beginning is owed to one of the queues (None: to any); None when none is."""
        marks = [mark for queue, mark in list(self._claims.items()) if queues is None or queue in queues]
        return min((seconds for mark in marks if (seconds := mark.seconds_owed) is not None), default=None)
