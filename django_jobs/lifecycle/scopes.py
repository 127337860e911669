"""Scopes: how much room there is in what a limit counts, who waits there, and who is let in.

All of it is asked and decided while the scopes are locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple, Protocol, TypeVar

from django.db.models import QuerySet

from django_jobs.db import lines
from django_jobs.db.dialects import dialect
from django_jobs.db.lines import NO_KEY, InLine, Line
from django_jobs.db.notify import notify_room, notify_work
from django_jobs.db.transactions import database_now
from django_jobs.handlers import registry
from django_jobs.limit import MOST_AT_ONCE, Rate
from django_jobs.models import JobStatus, LimitSlot

from . import starts, turns
from .active_limits import ActiveLimits
from .moved import in_chunks

MOST_COMPARED = 200  # with more free slots than this, who is first does not matter
MOST_AHEAD = 1_000
STEP = 500
FEW_LOCKED = 20  # at how many more is looked first where some of those who are next are locked; then at STEP
SCOPES_PER_STATEMENT = 50
IN_LINE = ("rank", "available_at", "job_id", "fair_key")  # the columns of an InLine
T = TypeVar("T")


class Claimed(Protocol):
    """What is asked of a claimed job: a ClaimedJob."""

    @property
    def id(self) -> str: ...
    @property
    def job_type(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def available_at(self) -> Any: ...
    @property
    def fair_key(self) -> str: ...


class Slot(NamedTuple):
    """What a LimitSlot says of a job: it runs, or may, or waits in a scope; and whether a start is to come that a rate counts."""

    scope: str
    waits: bool
    starts: bool


class Waiter(NamedTuple):
    """A job that waits for a slot; without a type where turns or ageing choose who is next."""

    rank: int
    since: Any
    id: str
    job_type: str = ""
    limit_key: str | None = None
    queue_limit_key: str | None = None
    is_overtaken: bool | None = None  # by a ready job that was not let in; None: nobody has looked


class LetIn(NamedTuple):
    """The jobs of a queue that were let in to a scope and are ready: how many, and a place in claim order that none is behind."""

    number: int = 0
    last: tuple[int, Any, str] = (0, None, "")


class Taker(NamedTuple):
    """A worker thread that settles, has no other job to run, and takes who is next in the same transaction.

    `takes` says whether it runs jobs of a queue, `most` how many it takes.
    """

    process_id: str
    takes: Callable[[str], bool]
    most: int


class Room:
    """How much of a scope is free: slots, and starts of its rate."""

    def __init__(self, concurrency: int, rate: Rate | None) -> None:
        self.slots = concurrency
        self.rate = rate
        self.starts = MOST_AT_ONCE if rate is None else rate.number
        self.about_to_start = 0
        self.window = starts.Window()
        self.let_in: dict[str, LetIn] = {}  # by queue

    @property
    def left(self) -> int:
        """How many jobs may be claimed, to start now or in a moment."""
        return min(self.slots, self.starts_soon)

    def in_queue(self, queue: str) -> tuple[int, LetIn]:
        """Return how many jobs of a queue may be ready, and those that were let in."""
        return min(self.left, STEP), self.let_in.get(queue, LetIn())

    @property
    def starts_soon(self) -> int:
        """How many starts its rate has room for, now or in a moment."""
        return self.starts + len(self.window.leaving)

    @property
    def last_may_start_at(self) -> datetime | None:
        """When the job that was counted last may start; None: at once."""
        return None if self.starts >= 0 else self.window.leaving[-self.starts - 1]

    def take(self, number: int, starting: int) -> None:
        """Count jobs that run, and those of them that have yet to start."""
        self.slots -= number
        if self.rate is not None:
            self.starts -= starting
            self.about_to_start += starting

    def count(self, window: starts.Window) -> None:
        """Count the starts of the time of its rate."""
        self.window = window
        self.starts -= window.number


def rooms_of(limits: ActiveLimits, scopes: Iterable[str]) -> dict[str, Room]:
    """Return what is free in those of the scopes whose limits are known."""
    known = {scope: number for scope in scopes if (number := limits.concurrency(scope)) is not None}
    while True:
        rooms = {scope: Room(number, limits.rate(scope)) for scope, number in known.items()}
        for chunk in in_chunks([*rooms], SCOPES_PER_STATEMENT):
            for scope, queue, running, starting, let_in, *last in dialect().slots_taken(chunk):
                rooms[scope].take(running, starting)
                if let_in:
                    rooms[scope].let_in[queue] = LetIn(let_in, (last[0], last[1], last[2]))
        rates = {scope: room.rate for scope, room in rooms.items() if room.rate is not None}
        if not rates:
            return rooms
        windows = starts.windows(rates, database_now())
        yet_to_start = {scope: rooms[scope].about_to_start for scope in rates if rooms[scope].about_to_start}
        # A job that has started in between was counted as both; nobody else is let in while the scopes are locked.
        if yet_to_start == _about_to_start([*yet_to_start]):
            for scope, window in windows.items():
                rooms[scope].count(window)
            return rooms


def _about_to_start(scopes: Sequence[str]) -> dict[str, int]:
    """Return how many jobs have yet to start in those of the scopes that have some."""
    found: Counter[str] = Counter()
    for chunk in in_chunks(scopes, SCOPES_PER_STATEMENT):
        for scope, _, _, starting, *_ in dialect().slots_taken(chunk):
            found[scope] += starting
    return {scope: number for scope, number in found.items() if number}


class Scopes:
    """Scopes whose limits are known, locked until the transaction ends: how much room there is in each, and who waits."""

    def __init__(self, limits: ActiveLimits, scopes: Iterable[str]) -> None:
        known = [scope for scope in sorted(set(scopes)) if limits.concurrency(scope) is not None]
        # The first and the last queue where somebody waits, without a fair key and with one, or has just been held back.
        self._waiters: dict[str, list[_Queues]] = {}
        self._ahead: dict[str, list[tuple[Any, ...]]] = {}
        self._in_turn: dict[str, _InTurn] = {}  # where those of the claimed jobs' queue are served in turn
        self._limits = limits
        if known:
            dialect().lock_scopes(known)
        self.rooms_of = rooms_of(limits, known)
        if ahead := [scope for scope, room in self.rooms_of.items() if room.window.is_ahead]:
            starts.mend(ahead)
            self.rooms_of = rooms_of(limits, known)
        self.have_turns = False
        self.not_before: dict[str, datetime] = {}  # by job id
        for chunk in in_chunks(known, SCOPES_PER_STATEMENT):
            for scope, (first, last, first_keyed, last_keyed) in zip(
                chunk, dialect().queues_of_waiters(chunk), strict=True
            ):
                for keyed, start, end in ((False, first, last), (True, first_keyed, last_keyed)):
                    if start is not None and end is not None:
                        self._waiters.setdefault(scope, []).append(_Queues(start, end, keyed))

    def hand_back(self, slots: Iterable[Slot]) -> None:
        """Count slots as free that were counted as taken: those with which jobs were let in that are claimed only now."""
        for slot in slots:
            if not slot.waits and slot.scope in self.rooms_of:
                self.rooms_of[slot.scope].take(-1, -int(slot.starts))

    def leave_out_locked(self) -> None:
        """Count nobody as let in whom somebody else has locked: another goes before one that a transaction of the site keeps."""
        for scope in self._waiters:
            room = self.rooms_of[scope]
            for queue, let_in in room.let_in.items() if room.left > 0 else ():
                ids = [*_let_in_of(Line(queue, scope)).values_list("job_id", flat=True)[:STEP]]
                locked = len(ids) - len(dialect().lock_free_jobs(ids)) if ids else 0
                room.let_in[queue] = let_in._replace(number=let_in.number - locked)

    def see_who_comes_first(self, claimed: Sequence[Claimed]) -> None:
        """See which jobs come before the claimed ones of a queue: they wait for a slot, or another claim has taken them."""
        last = claimed[-1]
        contested = {scope: room.left for scope, room in self.rooms_of.items() if 0 < room.left <= MOST_COMPARED}
        if not contested:
            return
        ageing = registry.queue_settings(last.queue).ageing
        keyed = any(job.fair_key != NO_KEY for job in claimed)
        for scope, free in list(contested.items()):
            if ageing is not None or keyed or last.queue in self._queues_of_waiters(scope, keyed=True):
                self._in_turn[scope] = _InTurn(Line(last.queue, scope), free, ageing, [job.id for job in claimed])
                del contested[scope]
        if not contested:
            return
        self._ahead = {
            scope: [job[:3] for job in jobs]
            for (scope, _), jobs in _first_that_wait(
                [(scope, last.queue, free) for scope, free in contested.items() if scope in self._waiters]
            ).items()
        }
        order = (last.rank, last.available_at, last.id)
        for job_id, job_type, key, queue_key, *since in dialect().ready_ahead(last.queue, order, MOST_AHEAD):
            for scope in self._limits.scopes(job_type, last.queue, key, queue_key):
                if scope in contested:
                    self._ahead.setdefault(scope, []).append((*since, job_id))

    def take(self, job: Claimed, scopes: Sequence[str]) -> str | None:
        """Take a slot in each scope, or in none: then return the one that is full, or where others come first."""
        for scope in scopes:
            if not self._has_room(scope, job):
                self._waiters.setdefault(scope, []).append(_Queues(job.queue, job.queue, job.fair_key != NO_KEY))
                return scope
        for scope in scopes:
            room = self.rooms_of[scope]
            room.take(1, 1)
            if scope in self._in_turn:
                self._in_turn[scope].take(job)
            if (moment := room.last_may_start_at) is not None:
                self.not_before[job.id] = max(moment, self.not_before.get(job.id, moment))
        return None

    def serve_turns(self) -> None:
        """Keep whose turns the jobs have taken that got a slot."""
        for in_turn in self._in_turn.values():
            in_turn.serve()

    def _has_room(self, scope: str, job: Claimed) -> bool:
        if scope in self._in_turn:
            return self.rooms_of[scope].left > 0 and self._in_turn[scope].has_room(job)
        order = (job.rank, job.available_at, job.id)
        ahead = sum(other < order for other in self._ahead.get(scope, ()))
        return ahead < self.rooms_of[scope].left

    def let_in(self, taker: Taker | None = None) -> list[tuple[Any, ...]]:
        """Let those in who are first where there is room: as many in each queue as there is room for; set the turns of others.

        Those that a `taker` takes are claimed instead; returns their rows, as a claim does.
        """
        wanted: list[tuple[str, str, int]] = []
        found: dict[tuple[str, str], list[Waiter]] = {}
        for scope in self._waiters:
            room = self.rooms_of[scope]
            if room.left <= 0:
                continue
            keyed = {*self._queues_of_waiters(scope, keyed=True)}
            for queue in {*self._queues_of_waiters(scope, keyed=False), *keyed}:
                most, let_in = room.in_queue(queue)
                ageing = registry.queue_settings(queue).ageing
                if queue in keyed or ageing is not None:
                    found[scope, queue] = _next_in_turn(Line(queue, scope), most, let_in, ageing)
                else:  # with one more, which shows whether there are any that come before one of those that were let in
                    wanted.append((scope, queue, max(most - let_in.number, 0) + bool(let_in.number)))
        for (scope, queue), jobs in _first_that_wait(wanted).items():
            found[scope, queue] = _next_beside(Line(queue, scope), *self.rooms_of[scope].in_queue(queue), jobs)
        left = {scope: room.slots if room.rate is None else 0 for scope, room in self.rooms_of.items()}
        claimed = go_on(found, taker, self._limits, left)
        self._set_turns()
        return claimed

    def _set_turns(self) -> None:
        """Keep when the next may start in scopes where somebody waits, and the rate lets nobody start now."""
        rated = {scope: room for scope, room in self.rooms_of.items() if room.rate is not None}
        if not rated:
            return
        now = database_now()
        due: dict[str, datetime | None] = dict.fromkeys(rated)
        for scope, room in rated.items():
            if room.rate is not None and room.starts_soon <= 0 and scope in self._waiters:
                due[scope] = starts.turn_of(scope, room.rate, room.window, room.about_to_start, now)
        starts.write_turns(due, now)
        self.have_turns = any(due.values())

    def _queues_of_waiters(self, scope: str, *, keyed: bool) -> Iterator[str]:
        for queues in self._waiters.get(scope, ()):
            if queues.keyed == keyed:
                queue: str | None = queues.first
                while queue is not None:
                    yield queue
                    is_last = queue >= queues.last
                    queue = None if is_last else dialect().next_queue_of_waiters(scope, queue, keyed=keyed)


def go_on(
    found: Mapping[tuple[str, str], Sequence[Waiter]],
    taker: Taker | None,
    limits: ActiveLimits,
    left: dict[str, int],
) -> list[tuple[Any, ...]]:
    """Let those in who are first, given by scope and queue; return the rows of those that were claimed for a `taker` instead.

    `left` says how many may be claimed in a scope, over all queues.
    """
    claimed = [] if taker is None else _claim_for(taker, found, limits, left)
    taken = {row[0] for row in claimed}
    left_over = {where: [job.id for job in jobs if job.id not in taken] for where, jobs in found.items()}
    for queue in _let_in({where: ids for where, ids in left_over.items() if ids}):
        notify_work(queue)
    return claimed


def _let_in(wanted: Mapping[tuple[str, str], Sequence[str]]) -> set[str]:
    """Let jobs in, given by scope and queue, and others of their line in place of those that somebody else has locked.

    A transaction of the site may have done that, for as long as it likes: nobody waits for it. Returns the queues in which jobs
    were let in.
    """
    if not wanted:
        return set()
    let_in = dialect().let_in(sorted({job_id for ids in wanted.values() for job_id in ids}))
    queues: set[str] = set()
    for (scope, queue), ids in wanted.items():
        locked = sum(job_id not in let_in for job_id in ids)
        others = _let_in_behind(Line(queue, scope), locked) if locked else 0
        if others < locked:
            notify_room(scope)
        if len(ids) - locked + others:
            queues.add(queue)
    return queues


def _let_in_behind(line: Line, number: int) -> int:
    """Let in the first `number` jobs of a line that nobody has locked; return how many there were."""
    ageing = registry.queue_settings(line.queue).ageing
    chosen: list[str] = []
    for most in (number + FEW_LOCKED, STEP):
        ids = [job.id for job in turns.first_in_turn(line, most, ageing)]
        free = dialect().lock_free_jobs(ids) if ids else set()
        chosen = [job_id for job_id in ids if job_id in free][:number]
        if len(chosen) == number or len(ids) < most:
            break
    return len(dialect().let_in(sorted(chosen))) if chosen else 0


def _claim_for(
    taker: Taker, found: Mapping[tuple[str, str], Sequence[Waiter]], limits: ActiveLimits, left: dict[str, int]
) -> list[tuple[Any, ...]]:
    """Claim those of the jobs who are next that come first in their queue as well, and that have this limit alone.

    So a freed slot costs its next job neither a commit nor a look of its own. Where another job comes first, a claim decides.
    """
    chosen: dict[tuple[str, str], list[Waiter]] = {}
    most = taker.most
    for (scope, queue), jobs in found.items():

        def is_plain(job: Waiter, scope: str = scope, queue: str = queue) -> bool:
            scopes = limits.scopes(job.job_type, queue, job.limit_key, job.queue_limit_key)
            return bool(job.job_type) and scopes == (scope,) and not job.is_overtaken

        some = list(takewhile(is_plain, jobs[: min(most, left[scope])])) if taker.takes(queue) else []
        if some:
            chosen[scope, queue] = some
            most -= len(some)
            left[scope] -= len(some)
    unknown = [(*where, *jobs[-1][:3]) for where, jobs in chosen.items() if jobs[-1].is_overtaken is None]
    overtaken = {
        some[number][:2] for some in in_chunks(unknown, SCOPES_PER_STATEMENT) for number in dialect().overtaken(some)
    }
    by_queue: dict[str, list[str]] = {}
    for (scope, queue), jobs in chosen.items():
        if (scope, queue) not in overtaken:
            by_queue.setdefault(queue, []).extend(job.id for job in jobs)
    return [row for queue, ids in by_queue.items() for row in dialect().claim_held(queue, ids, taker.process_id)]


def next_in_one_queue(limits: ActiveLimits, scopes: Sequence[str]) -> dict[tuple[str, str], list[Waiter]] | None:
    """Lock scopes and return who is next by scope and queue, found in one look; None where that does not do.

    It does where no rate, no fair key and no ageing counts, where all jobs of a scope are in one queue, and where nobody who
    waits comes before one who was let in.
    """
    if any(limits.rate(scope) is not None for scope in scopes):
        return None
    dialect().lock_scopes(scopes)
    rows = dialect().next_in_one_queue([(scope, limits.concurrency(scope) or 0) for scope in scopes], STEP)
    if rows is None or any(
        is_more or is_before or registry.queue_settings(queue).ageing is not None
        for _, queue, is_more, _, is_before, *_ in rows
    ):
        return None
    found: dict[tuple[str, str], list[Waiter]] = {}
    free: dict[tuple[str, str], int] = {}
    for number, queue, _, left, _, *job in rows:
        if job[2] is not None:
            free[scopes[number], queue] = left
            found.setdefault((scopes[number], queue), []).append(Waiter(*job))
    return {where: sorted(jobs, key=lambda job: job[:3])[: free[where]] for where, jobs in found.items()}


def _next_beside(line: Line, most: int, let_in: LetIn, jobs: list[Waiter]) -> list[Waiter]:
    """Return who is next: of the first `jobs` that wait, those that are among the first `most` of all, with those let in."""
    free = max(most - let_in.number, 0)
    if len(jobs) > free and let_in.number and _is_before(jobs[free], let_in):
        return _first_of_all(line, most, None)
    return jobs[:free]


def _next_in_turn(line: Line, most: int, let_in: LetIn, ageing: float | None) -> list[Waiter]:
    """Return who is next where turns or ageing decide about that. Within a rank, whom a claim reaches first matters little."""
    if let_in.number and (ageing is not None or any(rank < let_in.last[0] for rank in lines.ranks(line))):
        return _first_of_all(line, most, ageing)
    free = most - let_in.number
    return [_as_waiter(job) for job in turns.first_in_turn(line, free, ageing)] if free > 0 else []


def _first_of_all(line: Line, most: int, ageing: float | None) -> list[Waiter]:
    """Return those that wait of the first `most` jobs of a line, of which some were let in already.

    Who has come later and comes first waits behind nobody who was let in before, and has not been claimed since.
    """
    waiting, let_in = turns.first_in_turn(line, most, ageing), _let_in_of(line).values_list(*IN_LINE)[:MOST_AHEAD]
    everyone = turns.in_turn([*waiting, *(InLine(*row) for row in let_in)], turns.turns_of(line), ageing)
    are_waiting = {job.id for job in waiting}
    return [_as_waiter(job) for job in everyone[:most] if job.id in are_waiting]


def _let_in_of(line: Line) -> QuerySet[LimitSlot]:
    return LimitSlot.objects.filter(
        scope=line.scope, waits=False, queue=line.queue, job__status=JobStatus.PENDING
    ).order_by("rank", "available_at", "job_id")


def _as_waiter(job: InLine) -> Waiter:
    return Waiter(job.rank, job.since, job.id)


def _is_before(job: Waiter, let_in: LetIn) -> bool:
    rank, since, job_id = let_in.last
    to_datetime = dialect().to_datetime
    return (job.rank, to_datetime(job.since), job.id) < (rank, to_datetime(since), job_id)


class _Queues(NamedTuple):
    """The first and the last queue, by name, in which jobs wait that have a fair key, or that have none."""

    first: str
    last: str
    keyed: bool


class _InTurn:
    """Who comes first in a scope among the jobs of one queue, where turns or ageing decide about that."""

    def __init__(self, line: Line, free: int, ageing: float | None, claimed: Sequence[str]) -> None:
        self._line = line
        self._ageing = ageing
        self._free = free
        self._served = turns.turns_of(line)
        # Those that wait, and those that were let in and are not among the claimed ones.
        rows = _let_in_of(line).exclude(job__in=claimed).values_list(*IN_LINE)
        self._others = [*turns.first_in_turn(line, free, ageing), *(InLine(*row) for row in rows[:MOST_AHEAD])]
        self._taken: list[InLine] = []

    def has_room(self, job: Claimed) -> bool:
        served = self._served.get(job.rank, NO_KEY)
        return turns.number_ahead(_waiting(job), [*self._others, *self._taken], served, self._ageing) < self._free

    def take(self, job: Claimed) -> None:
        self._taken.append(_waiting(job))

    def serve(self) -> None:
        turns.serve(self._line, [(job.rank, job.key) for job in self._taken])


def _waiting(job: Claimed) -> InLine:
    return InLine(job.rank, dialect().to_datetime(job.available_at), job.id, job.fair_key)


def _first_that_wait(wanted: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str], list[Waiter]]:
    """Return the first waiting jobs, in order, by scope and queue; `wanted` also says how many of each."""
    found: dict[tuple[str, str], list[Waiter]] = {}
    for chunk in in_chunks(wanted, SCOPES_PER_STATEMENT):
        for number, *columns in dialect().first_that_wait(chunk):
            scope, queue, _ = chunk[number]
            found.setdefault((scope, queue), []).append(Waiter(*columns))
    for jobs in found.values():
        jobs.sort(key=lambda job: job[:3])
    return found
